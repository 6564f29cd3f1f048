"""Reranking by late interaction: the best match of each of the query's tokens, added up."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

from shortlist.data.manifest import identity, read_manifest, same_identity
from shortlist.errors import UserError
from shortlist.late import late
from shortlist.models.files import Precision
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.rerankers.prepared import Prepared
from shortlist.text.contract import PER_TOKEN, InputContract


def late_interaction(
    *,
    model: str | ModelFolder | None = None,
    vectors: Path | None = None,
    contract: str | InputContract | None = None,
    precision: Precision = "fp32",
    token_budget: int | None = None,
    packed: bool | None = None,
    device: Any = None,
) -> Prepared:
    """Prepare a reranker by late interaction.

    Args:
        model: late-interaction model: folder or hub name.
        vectors: token vectors of the documents from `shortlist encode` with this model; documents that are not among
            them are encoded (None: all are).
        contract: input contract or its name, for a folder without one.
        precision: as for `models.run.for_inference`, and so are `packed` and `device`.
        token_budget: most tokens in one forward pass, padding included (None: chosen for the device).

    Raises:
        UserError: there is no such model, or another one made the vectors.
    """
    if model is None:
        raise UserError("--method late needs a --model: a late-interaction model's folder or hub name.")
    folder = open_folder(model, wanted="retriever") if isinstance(model, str) else model
    read_by = folder.contract("document", contract)
    if read_by.reading.pooling != PER_TOKEN:
        raise UserError(
            f"--model {folder.name}: gives one vector for each text, and --method late takes a late-interaction model; "
            "search with this one, and name a reranker's --method, such as pointwise."
        )
    if vectors is not None:
        check_made_by(folder, vectors)
    running = {"device": device, "precision": precision, "packed": packed}
    stored = {} if vectors is None else {"vectors": identity(vectors)}
    return Prepared(
        open=partial(
            late("rerankers.late_reranker", "open_late_reranker"),
            folder,
            read_by,
            vectors=vectors,
            token_budget=token_budget,
            running=running,
        ),
        identities=lambda: {"model": folder.identity, "contract": contract_digest(read_by), **stored},
        settings={} if precision == "fp32" else {"precision": precision},
        costs=partial(getattr, folder, "costs"),
        model=folder,
    )


def check_made_by(folder: ModelFolder, vectors: Path) -> None:
    """Refuse vectors of another model, as far as that is recorded.

    Raises:
        UserError: another model made them.
    """
    manifest = read_manifest(vectors) or {}
    made = manifest.get("made_from", {}).get("model")
    if manifest.get("stage") == "encode" and made is not None and not same_identity(made, folder.identity):
        raise UserError(
            f"{vectors}: its vectors were not made by what --model {folder.name} holds now; encode again, or name the "
            "model that made them."
        )


def contract_digest(contract: InputContract) -> str:
    """Hash an input contract."""
    return hashlib.sha256(json.dumps(contract.to_dict(), sort_keys=True).encode()).hexdigest()
