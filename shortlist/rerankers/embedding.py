"""Reranking by vectors of a query that has read the documents with it."""

from functools import partial
from pathlib import Path
from typing import Any

from shortlist.data.manifest import identity
from shortlist.errors import UserError
from shortlist.late import late
from shortlist.models.files import PROJECTOR, Precision
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.rerankers.attention import readable_prompt
from shortlist.rerankers.language import is_server
from shortlist.rerankers.late import check_made_by, contract_digest
from shortlist.rerankers.prepared import Prepared
from shortlist.text.contract import InputContract
from shortlist.text.prompts import Prompt

UNMARKED, MARKED = "e2rank", "jina-reranker-v3"
"""The prompts of models without and with a projector."""


def by_embedding(
    *,
    model: str | ModelFolder | None = None,
    prompt: str | None = None,
    window: int | None = None,
    vectors: Path | None = None,
    contract: str | InputContract | None = None,
    max_length: int | None = None,
    precision: Precision = "fp32",
    token_budget: int | None = None,
    packed: bool | None = None,
    device: Any = None,
) -> Prepared:
    """Prepare a reranker by vectors of a query that has read documents.

    A retriever reads the query with the first documents, and its vector is compared with those of all documents
    (E2Rank, https://arxiv.org/abs/2510.22733). A model with a projector reads all documents with the query, and its
    states behind each are compared with that behind the query (jina-reranker-v3, https://arxiv.org/abs/2509.25085).

    Args:
        model: folder or hub name of a retriever or of a model with a projector.
        prompt: name of a prompt that asks for states (None: e2rank, or jina-reranker-v3 for a projector).
        window: documents in a prompt: of a retriever, the first ones of the list, or none with 0, so that it compares
            vectors as in search; otherwise all of them, so many at a time (None: as the prompt says).
        vectors: vectors of the documents from `shortlist encode` with this retriever; documents that are not among them
            are encoded (None: all are).
        contract: input contract of a retriever or its name, for a folder without one.
        max_length: most tokens of a prompt (None: the model's limit, or 4,096 if it has none).
        precision: as for `models.run.for_inference`, and so are `packed` and `device`.
        token_budget: most tokens in one forward pass, padding included (None: chosen for the device).

    Raises:
        UserError: there is no such model or prompt, they do not fit together, or another model made the vectors.
    """
    if model is None:
        raise UserError("--method embedding needs a --model: a retriever's folder or hub name.")
    if is_server(model):
        raise UserError(f"--model {model}: a server tells no hidden states; name a model's folder or hub name.")
    folder = open_folder(model, wanted="retriever") if isinstance(model, str) else model
    projects = folder.has_tensor(PROJECTOR[0])
    asked = readable_prompt(prompt or (MARKED if projects else UNMARKED), "states")
    shown = _shown(asked, window, least=int(projects))
    if not shown and prompt:
        raise UserError("--window 0: puts no document into a prompt; leave out --prompt.")
    how = {"prompt": asked, "window": shown, "max_length": max_length, "token_budget": token_budget}
    running = {"device": device, "precision": precision, "packed": packed}
    settings = {"prompt": asked.digest(), "window": shown, "max_length": max_length, "precision": precision}
    whole = {"settings": settings, "model": folder, "whole_lists": True, "costs": partial(getattr, folder, "costs")}
    if bool(asked.marks) != projects:
        found, wanted = ("a", "none") if projects else ("no", "one")
        raise UserError(
            f"--model {folder.name}: has {found} projector ({PROJECTOR[0]}), and the prompt {asked.name!r} needs "
            f"{wanted}; take --prompt {MARKED if projects else UNMARKED}, or another model."
        )
    if projects:
        _refuse_of_retrievers(vectors, contract)
        return Prepared(
            open=partial(late("rerankers.marked_reranker", "open_marked"), folder, running=running, **how),
            identities=lambda: {"model": folder.identity},
            **whole,
        )
    read_by = folder.contract("document", contract)
    if shown and read_by.reading.pooling != "last":
        raise UserError(
            f"--model {folder.name}: pools by {read_by.reading.pooling}, and a listwise prompt's vector is its last "
            "token's state; name a retriever that pools by last, such as RepLLaMA or E2Rank."
        )
    if vectors is not None:
        check_made_by(folder, vectors)
    stored = {} if vectors is None else {"vectors": identity(vectors)}
    return Prepared(
        open=partial(
            late("rerankers.embedding_reranker", "open_embedding"),
            folder,
            read_by,
            vectors=vectors,
            running=running,
            **how,
        ),
        identities=lambda: {"model": folder.identity, "contract": contract_digest(read_by), **stored},
        **whole,
    )


def _shown(prompt: Prompt, window: int | None, *, least: int) -> int:
    """Return the number of documents in a prompt.

    Raises:
        UserError: it is below the least, or above what the prompt may show.
    """
    shown, most = prompt.shown_at_once() if window is None else window, prompt.most_documents()
    if shown < least or (most is not None and shown > most):
        raise UserError(f"--window is {shown}; expected " + (f"{least} to {most}." if most else f"at least {least}."))
    return shown


def _refuse_of_retrievers(vectors: Path | None, contract: str | InputContract | None) -> None:
    """Refuse the settings of a retriever beside a model with a projector.

    Raises:
        UserError: one is given.
    """
    for name, value in {"vectors": vectors, "contract": contract}.items():
        if value is not None:
            raise UserError(
                f"--{name}: is for a retriever, and this model's vectors depend on the query and on the other "
                "documents; leave it out."
            )
