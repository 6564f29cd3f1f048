"""Input contracts of late-interaction models from other tools, read from their files.

These are folders of Stanford's ColBERT, of PyLate, and of sentence-transformers' MultiVectorEncoder.
"""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shortlist.data.files import optional_json, read_json
from shortlist.errors import UserError
from shortlist.models.modules import MODULES, backbone_folder, list_modules, longest_text
from shortlist.text.contract import PER_TOKEN, Form, InputContract, Reading
from shortlist.text.inputs import find_id
from shortlist.text.special_tokens import around_one
from shortlist.text.templates import literal, token_piece
from shortlist.text.tokenizer import load_tokenizer

METADATA = "artifact.metadata"
"""The file with the settings of Stanford's ColBERT, in JSON."""

ENCODER_SETTINGS = "config_sentence_transformers.json"
MASK_MODULE = "MultiVectorMask"
"""sentence-transformers' module that says which tokens give no vector."""
PYLATE, MULTI_VECTOR = "ColBERT", "MultiVectorEncoder"
"""Types of models in ENCODER_SETTINGS."""

JINA_MARKERS = ("[QueryMarker]", "[DocumentMarker]")
"""The markers of jina-colbert-v2, whose metadata name others, and do not say that its queries attend to what fills them
up."""

PUNCTUATION = tuple(string.punctuation)
QUERY_LENGTH, STANFORD_LENGTH, PYLATE_LENGTH = 32, 220, 180
"""Lengths of queries, and of documents in Stanford's and PyLate's code, where a folder says nothing."""


def is_stanford(folder: Path) -> bool:
    """Whether the folder holds a model of Stanford's ColBERT."""
    return "HF_ColBERT" in (optional_json(folder / "config.json").get("architectures") or ())


def late_contract(folder: Path) -> InputContract | None:
    """Read the contract of a late-interaction model of another tool.

    The result is None if the folder holds no such model.

    Raises:
        UserError: the files ask for something that is not supported.
    """
    kind = optional_json(folder / ENCODER_SETTINGS).get("model_type")
    modules = dict(list_modules(folder)) if (folder / MODULES).exists() else {}
    if modules and kind == PYLATE:
        return _of_pylate(folder)
    if MASK_MODULE in modules or (modules and kind == MULTI_VECTOR):
        return _of_multi_vector(folder)
    return _of_stanford(folder) if is_stanford(folder) else None


def _of_stanford(folder: Path) -> InputContract:
    """Read the markers, lengths and skipped tokens of Stanford's ColBERT.

    Its tokenizer skips the first token of each sign of punctuation, which may be a piece of white space.
    """
    settings, tokenizer = optional_json(folder / METADATA), load_tokenizer(folder)
    markers = settings.get("query_token_id") or "[unused0]", settings.get("doc_token_id") or "[unused1]"
    read = settings.get("attend_to_mask_tokens")
    if all(find_id(tokenizer, name) is not None for name in JINA_MARKERS):
        markers, read = JINA_MARKERS, True
    if (similarity := settings.get("similarity") or "cosine") != "cosine":
        raise UserError(f"{folder / METADATA}: compares vectors by {similarity!r}; expected cosine.")
    signs = PUNCTUATION if settings.get("mask_punctuation", True) else ()
    firsts = [tokenizer(sign, add_special_tokens=False)["input_ids"][:1] for sign in signs]
    skipped = [tokenizer.convert_ids_to_tokens(i) for ids in firsts for i in ids if i != tokenizer.unk_token_id]
    return _contract(
        tokenizer,
        markers=markers,
        query_length=settings.get("query_maxlen") or QUERY_LENGTH,
        document_length=settings.get("doc_maxlen") or STANFORD_LENGTH,
        **_expanded("<mask>" if tokenizer.mask_token_id is not None else "", read),
        skipped=_known(tokenizer, skipped),
    )


def _of_pylate(folder: Path) -> InputContract:
    """Read the settings of a folder of PyLate, whose markers are tokens of the vocabulary."""
    _check_modules(folder, ("Transformer", "Dense", "Normalize"))
    settings, tokenizer = read_json(folder / ENCODER_SETTINGS), load_tokenizer(backbone_folder(folder))
    prefixes = [settings.get(f"{kind}_prefix") or "" for kind in ("query", "document")]
    prompts = [(settings.get("prompts") or {}).get(kind) or "" for kind in ("query", "document")]
    words = settings.get("skiplist_words")
    expansion = "" if settings.get("do_query_expansion") is False else _usual_expansion(tokenizer)
    return _contract(
        tokenizer,
        markers=[_marker(tokenizer, prefix) for prefix in prefixes],
        prompts=[text.removeprefix(prefix) for text, prefix in zip(prompts, prefixes, strict=True)],
        query_length=settings.get("query_length") or QUERY_LENGTH,
        document_length=settings.get("document_length") or PYLATE_LENGTH,
        **_expanded(expansion, settings.get("attend_to_expansion_tokens")),
        skipped=_known(tokenizer, PUNCTUATION if words is None else words),
        lower_case=_lowers(backbone_folder(folder), tokenizer),
    )


def _of_multi_vector(folder: Path) -> InputContract:
    """Read the settings of a MultiVectorEncoder, whose markers are prompts."""
    modules = _check_modules(folder, ("Transformer", "Dense", MASK_MODULE, "Normalize"))
    backbone = backbone_folder(folder)
    known, tokenizer = optional_json(backbone / "sentence_bert_config.json"), load_tokenizer(backbone)
    prompts = optional_json(folder / ENCODER_SETTINGS).get("prompts") or {}
    expansion: dict[str, Any] = known.get("query_expansion") or {}
    fixed, length = expansion.get("strategy") == "fixed", expansion.get("length") or 0
    token = token_piece(expansion["token"]) if expansion.get("token") else _usual_expansion(tokenizer)
    longest = known.get("max_seq_length") or longest_text(backbone, tokenizer)
    return _contract(
        tokenizer,
        prompts=(prompts.get("query") or "", prompts.get("document") or prompts.get("passage") or ""),
        query_length=length if fixed else max(known.get("query_length") or longest, length),
        document_length=known.get("document_length") or longest,
        **_expanded(token if expansion else "", expansion.get("attend"), 0 if fixed else length),
        **(_masked(modules[MASK_MODULE], tokenizer) if MASK_MODULE in modules else {}),
        lower_case=_lowers(backbone, tokenizer),
        normalize=[kind for kind in modules if kind != MASK_MODULE][-1] == "Normalize",
    )


def _masked(folder: Path, tokenizer: Any) -> dict[str, Any]:
    """Read which tokens give no vector, in settings of the form.

    Raises:
        UserError: the module asks for what has no place in a form.
    """
    settings = optional_json(folder / "config.json")
    if settings.get("keep_only_token_ids"):
        raise UserError(f"{folder}: keeps only some tokens' vectors, as for images, which is not supported.")
    tasks, words = settings.get("skiplist_tasks"), settings.get("skiplist_words") or ()
    tasks = ["document"] if tasks is None else tasks
    if not tasks or not words:
        return {}
    if "document" not in tasks or set(tasks) > {"document", "query"}:
        raise UserError(f"{folder}: skips tokens in {', '.join(tasks)}; expected document, or document and query.")
    return {"skipped": _known(tokenizer, words), "skipped_in_queries": "query" in tasks}


def _contract(
    tokenizer: Any,
    *,
    markers: Sequence[str] = ("", ""),
    prompts: Sequence[str] = ("", ""),
    normalize: bool = True,
    **form: Any,
) -> InputContract:
    """Make the contract of a late-interaction model.

    A marker stands behind the first special token, or first where there is none.

    Args:
        markers: the names of the tokens that mark queries and documents.
        prompts: the texts before queries and documents.
        form: further settings of the form.
    """
    start, end = around_one(tokenizer)
    query, document = (
        (*start[:1], *([token_piece(marker)] if marker else []), *start[1:], literal(prompt) + text, *end)
        for marker, prompt, text in zip(markers, prompts, ("{query}", "{title} {text}"), strict=True)
    )
    return InputContract(Form(query=query, document=document, **form), Reading(pooling=PER_TOKEN, normalize=normalize))


def _marker(tokenizer: Any, prefix: str) -> str:
    """Find the token of a prefix of PyLate, with or without the space behind it.

    Raises:
        UserError: the vocabulary has no such token.
    """
    known = [name for name in (prefix, prefix.strip()) if find_id(tokenizer, name) is not None]
    if prefix.strip() and not known:
        raise UserError(f"{tokenizer.name_or_path}: the tokenizer has no token {prefix!r}, which marks texts.")
    return known[0] if prefix.strip() else ""


def _expanded(token: str, read: bool | None, length: int = 0) -> dict[str, Any]:
    """Say what fills queries up, in settings of the form."""
    return {"expansion": token, "expansion_length": length, "expansion_read": bool(read)} if token else {}


def _usual_expansion(tokenizer: Any) -> str:
    """Return the token that fills queries up if none is named.

    It is the mask token, or the end token where there is none.
    """
    return "<mask>" if tokenizer.mask_token_id is not None else "<eos>"


def _known(tokenizer: Any, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of tokens that the vocabulary has.

    The others would all stand for the unknown token, and take away words that are merely unknown.
    """
    return tuple(dict.fromkeys(name for name in names if find_id(tokenizer, name) is not None))


def _lowers(backbone: Path, tokenizer: Any) -> bool:
    """Whether texts are lower-cased before a tokenizer that does not do so itself."""
    wanted = optional_json(backbone / "sentence_bert_config.json").get("do_lower_case")
    return bool(wanted) and tokenizer.tokenize("Aa Bb") != tokenizer.tokenize("aa bb")


def _check_modules(folder: Path, expected: Sequence[str]) -> dict[str, Path]:
    """Return the modules of a folder by their kinds.

    Raises:
        UserError: there is another module than expected.
    """
    listed = list_modules(folder)
    for kind, _ in listed:
        if kind not in expected:
            raise UserError(f"{folder / MODULES}: module {kind!r} is not supported; expected {', '.join(expected)}.")
    return dict(listed)
