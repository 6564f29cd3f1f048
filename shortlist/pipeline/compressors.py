"""Ways to shorten documents for later steps, as functions of their settings."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, Protocol, TypedDict, Unpack, runtime_checkable

from shortlist.errors import UserError
from shortlist.late import late
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.records import Document
from shortlist.rerankers import Candidates
from shortlist.rerankers.language import ASKED, LanguageModelSettings, how_to_open, model_identity
from shortlist.rerankers.prepared import Prepared
from shortlist.text.extracts import DECAY
from shortlist.text.prompts import Prompt, named_prompt

EXTRACT_WORDS = 64
"""Most words of an extract, if nobody says another number."""
TOKENS_A_WORD = 3
"""Tokens that a model may write for each word it is asked for."""


@runtime_checkable
class Compressor(Protocol):
    """Shortens the documents of queries."""

    def shorten(self, lists: Sequence[Candidates]) -> list[list[Document]]:
        """Return the documents of each list in their order, with shorter texts."""
        ...

    def costs(self) -> dict[str, int]:
        """Return the calls and tokens so far, by the names of `data.manifest.stages`.

        A step that asks no language model has none.
        """
        ...


def by_extract(
    *, words: int | None = None, tokens: int | None = None, model: str | ModelFolder | None = None, decay: float = DECAY
) -> Prepared:
    """Prepare extracts: the sentences with most of the query's words, in their order.

    Args:
        words: most words of a text (None: 64, unless tokens are said).
        tokens: most tokens of a text, in place of words.
        model: folder or hub name of the model whose tokens these are.
        decay: factor for the weight of a query's word each time that a chosen sentence holds it.

    Raises:
        UserError: both budgets are named, one is below 1, or a model is named where it is not needed.
    """
    if words is not None and tokens is not None:
        raise UserError("`compress: extract` with words and tokens; give one of them.")
    if (tokens is None) != (model is None):
        raise UserError("`compress: extract` takes tokens together with the model whose tokens they are.")
    room = tokens or words or (EXTRACT_WORDS if words is None and tokens is None else 0)
    if room < 1 or not 0 <= decay <= 1:
        what = "words" if tokens is None else "tokens"
        raise UserError(f"`compress: extract` with {what} {room} and decay {decay:g}; expected 1 or more, and 0 to 1.")
    folder = open_folder(model) if isinstance(model, str) else model
    return Prepared(
        open=partial(late("pipeline.shortening", "open_extracts"), room=room, decay=decay, folder=folder),
        model=folder,
        identities=lambda: {} if folder is None else {"model": folder.identity},
        settings={"room": room, "decay": decay},
    )


def summary(*, words: int | None = None, **model: Unpack[LanguageModelSettings]) -> Prepared:
    """Prepare summaries that a language model writes of each document for the query.

    Args:
        words: most words to ask for (None: as the prompt says). A text that has no more is left as it is.
        model: the language model and its prompt, which asks for a text.

    Raises:
        UserError: there is no such model or prompt, or they do not fit together.
    """
    prompt = writing_prompt(model, "summary")
    if words is not None:
        if words < 1:
            raise UserError(f"`compress: summary` with words {words}; expected 1 or more.")
        prompt = replace(prompt, most=words, most_tokens=TOKENS_A_WORD * words)
    how = how_to_open(model)
    return Prepared(
        open=partial(late("pipeline.shortening", "open_summaries"), prompt=prompt, how=how),
        model=how.get("folder"),
        identities=partial(model_identity, how),
        settings={"prompt": prompt.digest(), "max_length": model.get("max_length")},
        asks=True,
    )


FactSettings = TypedDict("FactSettings", {"lambda": float}, total=False)
"""The weight of relevance, whose name is a word of Python."""


def facts(
    *,
    model: str | ModelFolder | None = None,
    by: Literal["vectors", "pairs"] = "vectors",
    split: Literal["sentences", "lines"] = "sentences",
    keep: int = 5,
    writer: str | None = None,
    writer_name: str | None = None,
    prompt: str | None = None,
    packed: bool | None = None,
    **more: Unpack[FactSettings],
) -> Prepared:
    """Prepare the choice of each document's best facts (KG-Rank, https://arxiv.org/abs/2403.05881).

    Args:
        model: folder or hub name of a retriever, or of a reranker of pairs.
        by: whether facts are compared with the query by vectors, or read beside it.
        split: what is a fact: a sentence, or a line, such as a triple.
        keep: most facts of a document, which stay in their order.
        writer: a language model that drafts an answer, put behind the query (None: the query alone).
        writer_name: a server's name of it.
        prompt: the writer's prompt (None: draft-answer).
        packed: as for `models.run.for_inference`.
        more: `lambda`, the weight of relevance beside that of variety, 0 to 1, by vectors; 1 without it.

    Raises:
        UserError: a model is missing, or settings do not go together.
    """
    share = more.get("lambda", 1.0)
    if model is None:
        raise UserError("`compress: facts` needs a model: a retriever's, or with `by: pairs` a reranker's.")
    if keep < 1 or not 0 <= share <= 1:
        raise UserError(f"`compress: facts` with keep {keep} and lambda {share:g}; expected 1 or more, and 0 to 1.")
    if by == "pairs" and share != 1:
        raise UserError("`compress: facts` by pairs has no vectors to compare facts by; leave lambda out.")
    if writer is None and (prompt or writer_name):
        raise UserError("`compress: facts` with a prompt or writer_name and no writer; name the language model.")
    wanted = "retriever" if by == "vectors" else "reranker"
    folder = open_folder(model, wanted=wanted) if isinstance(model, str) else model
    settings: LanguageModelSettings = {"model": writer, "model_name": writer_name, "prompt": prompt, "packed": packed}
    asked = None if writer is None else writing_prompt(settings, "draft-answer")
    how = {} if writer is None else how_to_open({name: value for name, value in settings.items() if value is not None})  # type: ignore[arg-type]
    return Prepared(
        open=partial(
            late("pipeline.shortening", "open_facts"),
            folder=folder,
            by=by,
            split=split,
            keep=keep,
            share=share,
            prompt=asked,
            how=how,
            packed=packed,
        ),
        model=folder,
        identities=lambda: {"model": folder.identity} | ({"writer": model_identity(how)["model"]} if how else {}),
        settings={"by": by, "split": split, "keep": keep, "lambda": share, "prompt": asked and asked.digest()},
        asks=writer is not None,
    )


def writing_prompt(model: LanguageModelSettings, own: str) -> Prompt:
    """Find the prompt by which a language model writes a text.

    Raises:
        UserError: there is no such prompt, it asks for something else, or no model is named.
    """
    prompt = named_prompt(model.get("prompt") or own)
    if prompt.asks != "text":
        raise UserError(f"prompt: {prompt.name!r} asks for {ASKED[prompt.asks]}; a step that shortens needs a text.")
    if model.get("answers"):
        raise UserError("answers: a text is always generated; leave it out.")
    if model.get("model") is None:
        raise UserError("`compress: summary` needs a model: a language model's folder or hub name, or a server.")
    return prompt


COMPRESSORS: dict[str, Callable[..., Prepared]] = {"extract": by_extract, "summary": summary, "facts": facts}
"""Ways to shorten by name; the keyword arguments of a function are its settings."""
