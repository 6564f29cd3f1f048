"""Reranking by attention, read in one pass over all candidates."""

from functools import partial
from typing import Any, Literal

from shortlist.data.heads import read_heads
from shortlist.errors import UserError
from shortlist.late import late
from shortlist.models.files import Precision
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.rerankers.language import ASKED, is_server
from shortlist.rerankers.prepared import Prepared
from shortlist.text.prompts import Asks, Prompt, named_prompt

Reads = Literal["mass", "qk"]
"""What is read of attention: shares of attention, or the product of the last query with a document's last key."""


def by_attention(
    *,
    model: str | ModelFolder | None = None,
    prompt: str | None = None,
    heads: str | None = None,
    signal: Reads = "mass",
    uncalibrated: bool = False,
    max_length: int | None = None,
    precision: Precision = "fp32",
    token_budget: int | None = None,
    packed: bool | None = None,
    device: Any = None,
) -> Prepared:
    """Prepare a reranker by attention (https://arxiv.org/abs/2410.02642).

    All documents stand in one prompt, the best last, and nothing is generated. A document's score is the attention that
    its tokens get from those behind the documents, less what they get if the query is `N/A`.

    Args:
        model: folder or hub name of a causal language model.
        prompt: name of a prompt whose attention is read (None: icr).
        heads: file of chosen heads from `shortlist heads`, or their names such as 13-18,14-31 (None: all heads).
        signal: mass, or qk for select-and-copy heads.
        uncalibrated: whether neither what the query `N/A` gives is taken away, nor tokens far below their document's
            mean are left out.
        max_length: most tokens of a prompt (None: the model's limit, or 4,096 if it has none).
        precision: as for `models.run.for_inference`, and so are `packed` and `device`.
        token_budget: most tokens in one forward pass behind the documents (None: chosen for the device).

    Raises:
        UserError: there is no such model, prompt or file of heads, or they do not fit together.
    """
    folder, asked = open_readable(model, "attention"), readable_prompt(prompt or "icr", "attention")
    chosen = None if heads is None else read_heads(heads, folder.identity)
    named = {} if chosen is None else {"heads": ",".join(map(str, chosen))}
    shared = {"prompt": asked.digest(), "signal": signal, "uncalibrated": uncalibrated, "max_length": max_length}
    return Prepared(
        open=partial(
            late("rerankers.attention_reranker", "open_attention"),
            folder=folder,
            prompt=asked,
            heads=chosen,
            signal=signal,
            calibrated=not uncalibrated,
            max_length=max_length,
            running={"device": device, "precision": precision, "packed": packed, "token_budget": token_budget},
        ),
        model=folder,
        identities=lambda: {"model": folder.identity},
        settings={**shared, **named, "precision": precision},
        whole_lists=True,
        costs=partial(getattr, folder, "costs"),
    )


def open_readable(model: str | ModelFolder | None, method: str) -> ModelFolder:
    """Look up a model whose attention is to be read.

    Raises:
        UserError: none is named, it is a server's, or there is none of this name.
    """
    if model is None:
        raise UserError(f"--method {method} needs a --model: a causal language model's folder or hub name.")
    if is_server(model):
        raise UserError(f"--model {model}: a server tells nothing of attention; name a model's folder or hub name.")
    return open_folder(model, wanted="language-model") if isinstance(model, str) else model


def readable_prompt(name: str, asks: Asks) -> Prompt:
    """Find a prompt that asks for this.

    Raises:
        UserError: there is no such prompt, or it asks for something else.
    """
    prompt = named_prompt(name)
    if prompt.asks != asks:
        raise UserError(f"--prompt: {prompt.name!r} asks for {ASKED[prompt.asks]}; this method needs {ASKED[asks]}.")
    return prompt
