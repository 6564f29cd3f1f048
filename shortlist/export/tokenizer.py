"""Tokenizers that add an input contract's prompts and special tokens themselves.

Other tools know nothing of a contract: they give a tokenizer one text or two. So the contract's additions go into the
template of `tokenizer.json`. The ids are compared with those of `text/inputs.py` before anything is written, since a
prompt may be tokenised differently beside a text than alone.
"""

import re
from dataclasses import replace
from itertools import product
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, processors
from transformers import PreTrainedTokenizerFast

from shortlist.errors import UserError
from shortlist.records import Document, Query
from shortlist.text.contract import is_token
from shortlist.text.inputs import Inputs
from shortlist.text.templates import field_names, token_name, unescaped

TEXTS = ("what is x", "How do 12 naïve cafés rank?", "(A-b) c", "東京 x", "once upon a time", "x")
"""Texts to compare the ids on."""

_FIELD = r"(?<!\{)\{(?:url|title|text)\}(?!\})"
DOCUMENT_PART = re.compile(rf"{_FIELD}(?: ?{_FIELD})*")
PIECE = re.compile(r"((?<!\{)\{(?:query|document)\}(?!\}))")


def for_single_texts(inputs: Inputs) -> tuple[Any, dict[str, str]]:
    """Make one tokenizer for queries and documents, and return it with their prompts.

    The tokenizer's user puts the prompt before the text.

    Raises:
        UserError: the contract has more than special tokens, a prompt and a text, or the ids cannot be made the same.
    """
    forms = {kind: _split(inputs, getattr(inputs.form, kind), kind) for kind in ("query", "document")}
    (start, _, end), other = forms["query"], forms["document"]
    if (start, end) != (other[0], other[2]):
        raise _cannot(inputs, "its queries and documents have other special tokens")
    tokenizer = _with_template(inputs, single=[*start, "$A", *end])
    prompts = {kind: prompt for kind, (_, prompt, _) in forms.items()}
    _compare(tokenizer, inputs, prompts)
    return tokenizer, prompts


def _compare(tokenizer: Any, inputs: Inputs, prompts: dict[str, str]) -> None:
    """Refuse a tokenizer that gives texts behind their prompts other ids than the inputs do.

    Raises:
        UserError: it does.
    """
    for text in TEXTS:
        expected = inputs.query_ids([Query("", text)]) + inputs.document_ids([Document("", text)])
        found = [tokenizer(prompts[kind] + text)["input_ids"] for kind in ("query", "document")]
        longest = inputs.form.query_length, inputs.form.document_length
        for ids, wanted, length in zip(found, expected, longest, strict=True):
            if len(ids) <= length and ids != wanted:
                raise _cannot(inputs, f"{text!r} gets other ids there")


def for_marked_texts(inputs: Inputs) -> tuple[Any, dict[str, str], dict[str, str]]:
    """Make one tokenizer for the queries and documents of late interaction.

    Markers are tokens that it knows in front of a text; what fills queries up is left to the tokenizer's user.

    Returns:
        The tokenizer, the markers and the prompts, which its user puts before the text in this order.

    Raises:
        UserError: as for `for_single_texts`.
    """
    markers, bare = {}, {}
    for kind in ("query", "document"):
        pieces = getattr(inputs.form, kind)
        names = [token_name(piece) for piece in pieces]
        markers[kind] = "".join(filter(None, names))
        bare[kind] = tuple(piece for piece, name in zip(pieces, names, strict=True) if name is None)
        if (places := [place for place, name in enumerate(names) if name]) and places != [_first_text(pieces) - 1]:
            raise _cannot(inputs, f"its {kind} has a marker that is not right before the text")
    form = replace(inputs.form, expansion="", expansion_length=0, expansion_read=False, skipped=())
    tokenizer, prompts = for_single_texts(Inputs(replace(form, **bare), inputs.tokenizer))
    known = [AddedToken(marker, normalized=False, special=True) for marker in markers.values() if marker]
    tokenizer.add_special_tokens({"additional_special_tokens": known})
    _compare(tokenizer, Inputs(form, inputs.tokenizer), {kind: markers[kind] + prompts[kind] for kind in markers})
    return tokenizer, markers, prompts


def for_pairs(inputs: Inputs, *, token_types: bool = False) -> Any:
    """Make a tokenizer for a query with a document, which adds all prompts.

    Args:
        token_types: return token types too, as a contract's reading may need them.

    Raises:
        UserError: the ids cannot be made the same.
    """
    for spaced, led in product((False, True), repeat=2):
        pieces = [piece for part in inputs.form.pair for piece in _pieces(part, led=led)]
        tokenizer = _with_template(inputs, pair=pieces, spaced=spaced, token_types=token_types)
        if all(_same(tokenizer, inputs, query, text) for query, text in product(TEXTS, TEXTS)):
            return tokenizer
    raise _cannot(inputs, "its prompts are tokenised otherwise beside a text than by themselves")


def _split(inputs: Inputs, template: tuple[str, ...], kind: str) -> tuple[list[str], str, list[str]]:
    """Split a template into special tokens before, the prompt, and special tokens after."""
    texts = [place for place, piece in enumerate(template) if field_names(piece)]
    if len(texts) != 1 or inputs.form.verbatim:
        raise _cannot(inputs, f"its {kind} is more than a prompt and a text")
    place = texts[0]
    prompt = _joined(template[place]).removesuffix("{document}").removesuffix("{query}")
    if field_names(prompt):
        raise _cannot(inputs, f"its {kind} does not end with its text")
    return [*template[:place]], unescaped(prompt), [*template[place + 1 :]]


def _first_text(template: tuple[str, ...]) -> int:
    """Find the first piece of a template with a field."""
    return next(place for place, piece in enumerate(template) if field_names(piece))


def _joined(piece: str) -> str:
    """Replace all document fields in a text piece by one {document}."""
    return DOCUMENT_PART.sub("{document}", piece)


def _pieces(part: str, *, led: bool) -> list[str]:
    """Split a part of a pair's template into pieces.

    A piece is a special token, `$A` (the query), `$B` (the document) or a prompt.

    Args:
        led: keep the space between a text and a prompt that follows it.
    """
    if is_token(part):
        return [part]
    found = []
    for place, piece in enumerate(PIECE.split(_joined(part))):
        if piece in ("{query}", "{document}"):
            found.append("$A" if piece == "{query}" else "$B")
        elif piece.strip():
            found.append(piece.rstrip() if place == 0 or led else piece.strip())
    return found


def _with_template(
    inputs: Inputs,
    *,
    single: list[str] | None = None,
    pair: list[str] | None = None,
    spaced: bool = False,
    token_types: bool = False,
) -> Any:
    """Copy the tokenizer with another template.

    Args:
        spaced: put a space before each text, as texts follow a prompt.
        token_types: give tokens from a pair's second text on the type 1.
    """
    tokenizer: Any = inputs.tokenizer
    fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if spaced:
        steps = _space_before(inputs.form.pair)
        fast.normalizer = normalizers.Sequence([*steps, fast.normalizer] if fast.normalizer else steps)
    if inputs.form.lower_case:
        lower = normalizers.Lowercase()
        fast.normalizer = normalizers.Sequence([lower, fast.normalizer]) if fast.normalizer else lower
    single, pair = single or _first_part(pair or []), pair or ["$A", "$B"]
    entries = {piece: _entry(inputs, piece) for piece in (*single, *pair) if not piece.startswith("$")}
    names = {piece: f"<{number}>" for number, piece in enumerate(entries)}
    fast.post_processor = processors.TemplateProcessing(
        single=[names.get(piece, piece) for piece in single],
        pair=[
            names.get(piece, piece) + (":1" if token_types and place >= pair.index("$B") else "")
            for place, piece in enumerate(pair)
        ],
        special_tokens=[{"id": names[piece], **entry} for piece, entry in entries.items()],
    )
    names_of_special = ("bos_token", "eos_token", "unk_token", "cls_token", "sep_token", "mask_token")
    special = {name: getattr(tokenizer, name) for name in names_of_special}
    special["pad_token"] = tokenizer.convert_ids_to_tokens(inputs.pad_id)
    form = inputs.form
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        **{name: token for name, token in special.items() if token is not None},
        padding_side="right",
        truncation_side="right",
        model_max_length=form.document_length if form.document else form.pair_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def _space_before(template: tuple[str, ...]) -> list[Any]:
    """Make normalizers that put a space before a text.

    They skip texts that begin with a prompt already, as in `text/inputs.py`.
    """
    prompts = "|".join(re.escape(piece.split("{")[0]) for piece in template if not is_token(piece))
    return [normalizers.Prepend(" "), normalizers.Replace(Regex(rf"\A (?={prompts})"), "")]


def _first_part(pair: list[str]) -> list[str]:
    """Return a template for a single text: a pair's template up to the second text."""
    return pair[: pair.index("$B")] if "$B" in pair else ["$A"]


def _entry(inputs: Inputs, piece: str) -> dict[str, Any]:
    """Return the ids and tokens of a special token or a prompt."""
    tokenizer: Any = inputs.tokenizer
    if is_token(piece):
        ids = [inputs.special_id(piece)]
    else:
        ids = tokenizer(unescaped(piece), add_special_tokens=False)["input_ids"]
    return {"ids": ids, "tokens": tokenizer.convert_ids_to_tokens(ids)}


def _same(tokenizer: Any, inputs: Inputs, query: str, text: str) -> bool:
    [expected] = inputs.pair_ids([(Query("", query), Document("", text))])
    return len(expected) >= inputs.form.pair_length or tokenizer(query, text)["input_ids"] == expected


def _cannot(inputs: Inputs, reason: str) -> UserError:
    return UserError(
        f"{inputs.tokenizer.name_or_path}: another tool's tokenizer cannot do what the input contract says: {reason}; "
        "export it as merged, and load it here."
    )
