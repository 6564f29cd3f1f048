"""Proof that a tokenizer fits an input contract, made before the model is used."""

import re
from typing import Any

from shortlist.errors import UserError
from shortlist.records import Document, Query
from shortlist.text.contract import TEMPLATES, Form, is_token
from shortlist.text.inputs import Inputs
from shortlist.text.marks import unmarked
from shortlist.text.templates import prompt, unescaped

WORDS = "long words "
PROOF_WORDS = 10_000
"""Most words of the text that is cut in the proof. The end of a longer input would be made in the same way."""

TOKEN = re.compile(r"<\|[^|<>]+\|>|<extra_id_\d+>")
"""Pattern of special tokens in a prompt."""


def prove(inputs: Inputs) -> None:
    """Refuse inputs that would give plausible but wrong numbers.

    A cut input must have its special tokens at both ends as the contract says, above all the last one. Prompts must be
    tokenised alike whatever text follows. Special tokens in prompts must be single tokens. The padding token must not
    be the end token.

    Raises:
        UserError: one of these conditions does not hold.
    """
    name = inputs.tokenizer.name_or_path
    if inputs.pad_id == inputs.tokenizer.eos_token_id:
        raise UserError(f"{name}: the tokenizer pads with its end token; give it another pad_token.")
    for kind in TEMPLATES:
        if template := getattr(inputs.form, kind):
            _prove_ends(inputs, kind, template)
            _prove_prompts(inputs, kind, template)


def proved_inputs(form: Form, tokenizer: Any) -> Inputs:
    """Make inputs and prove that the tokenizer fits their form.

    Raises:
        UserError: as for `Inputs` and `prove`.
    """
    inputs = Inputs(form, tokenizer)
    prove(inputs)
    return inputs


def _prove_ends(inputs: Inputs, kind: str, template: tuple[str, ...]) -> None:
    """Refuse inputs that lose the template's first or last special token when cut."""
    text = WORDS * min(getattr(inputs.form, f"{kind}_length"), PROOF_WORDS)
    query, document = Query("", text), Document("", text)
    examples = {"query": lambda: inputs.query_ids([query]), "document": lambda: inputs.document_ids([document])}
    examples["pair"] = lambda: inputs.pair_ids([(query._replace(text=""), document)])
    ids = unmarked(examples[kind]()[0])
    for place, word in ((0, "first"), (-1, "last")):
        piece = template[place]
        if is_token(piece) and ids[place] != inputs.special_id(piece):
            raise UserError(
                f"{inputs.tokenizer.name_or_path}: the {word} token of a {kind} is {ids[place]}, not {piece} "
                f"({inputs.special_id(piece)}), as the input contract has it; choose another --contract."
            )


def _prove_prompts(inputs: Inputs, kind: str, template: tuple[str, ...]) -> None:
    """Refuse prompts that change with the following text or have unknown special tokens.

    Only a prompt's last token may depend on the text that follows.
    """
    tokenizer = inputs.tokenizer
    for piece in template:
        if is_token(piece):
            continue
        for token in TOKEN.findall(unescaped(piece)):
            if len(_ids(tokenizer, token)) != 1:
                raise UserError(
                    f"{tokenizer.name_or_path}: the tokenizer has no token {token!r}, which the {kind} of the input "
                    "contract holds; choose another --contract."
                )
        start = prompt(piece)
        alone, before_text = _ids(tokenizer, start), _ids(tokenizer, start + WORDS)
        if before_text[: len(alone[:-1])] != alone[:-1]:
            raise UserError(
                f"{tokenizer.name_or_path}: the tokenizer takes the prompt {start!r} apart in another way before a "
                "text than by itself, so a model cannot know it; choose another --contract."
            )


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer([text], add_special_tokens=False, verbose=False)["input_ids"][0]
