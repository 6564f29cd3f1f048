"""Building an index of any kind from a corpus or from vectors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shortlist.data.collections import open_collection
from shortlist.data.keyed import KeyedCorpus
from shortlist.data.manifest import read_manifest
from shortlist.errors import UserError, unknown
from shortlist.index.kinds import IndexKind
from shortlist.index.opening import holds_segments, holds_tokens, kept_dims
from shortlist.progress import progress, track


def build_index(kind: IndexKind, source: str | Path, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Build an index and return the results for its manifest.

    Args:
        source: the collection's name, or the folder of the vectors, whichever the kind reads.
        settings: values for the names in the kind's `settings` and `parameters`.

    Raises:
        UserError: the kind refuses the source or the settings.
    """
    over = _over_corpus if kind.reads == "corpus" else _over_vectors
    return over(kind, source, folder, settings)


def _over_corpus(kind: IndexKind, source: str | Path, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    collection = open_collection(str(source))
    corpus, given = KeyedCorpus(collection), dict(settings)
    if kind.renew is not None:
        given["keys"] = lambda: bytes(corpus.keys)
    documents = track(corpus, "indexing", collection.num_docs(), "documents")
    return dict(kind.build(documents, folder, **given))


def renew_index(
    kind: IndexKind, source: str | Path, folder: Path, settings: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Apply only the changes of a corpus to an index, where its kind can.

    The arguments are those of `build_index`; the result is None where the index must be built again.

    Raises:
        UserError: the corpus holds a line that cannot be used.
    """
    if kind.renew is None:
        return None
    results = kind.renew(KeyedCorpus(open_collection(str(source))), folder, **settings)
    return None if results is None else dict(results)


def _over_vectors(kind: IndexKind, source: str | Path, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    vectors = fitting_store(kind, Path(source))
    made = read_manifest(vectors.folder) or {}
    with progress("indexing", vectors.num_docs, "documents") as advance:
        results = kind.build(vectors, folder, advance=advance, **settings)
    model = made.get("made_from", {}).get("model")
    tokens = {"num_tokens": vectors.num_tokens} if holds_tokens(vectors.folder) else {}
    segments = {"segments": True} if holds_segments(vectors.folder) else {}
    kept = {"dims": dims} if (dims := kept_dims(vectors.folder)) is not None else {}
    return {"num_docs": vectors.num_docs, "dim": vectors.dim, "model": model, **tokens, **segments, **kept, **results}


def fitting_store(kind: IndexKind, folder: Path) -> Any:
    """Open the vectors that an index is built from, token vectors too.

    Raises:
        UserError: there are none, or none of a kind that such an index is built from.
    """
    from shortlist.data.stores.tokens import TokenReader
    from shortlist.data.stores.vectors import VectorReader  # loads torch, which only an index over vectors needs

    tokens = holds_tokens(folder)
    if tokens and "tokens" not in kind.over:
        raise UserError(
            f"{folder}: holds token vectors, many for each document, and this kind of index one for each; choose "
            "--kind late, or --kind narrow."
        )
    if not tokens and "vectors" not in kind.over:
        raise UserError(
            f"{folder}: holds one vector for each document, and this kind of index is built over token vectors; encode "
            "with a late-interaction model, or choose another --kind."
        )
    return TokenReader(folder) if tokens else VectorReader(folder)


def check_parameters_are_known(name: str, kind: IndexKind, parameters: Mapping[str, int]) -> None:
    """Raise UserError for a parameter that the kind of index called `name` does not have."""
    article = "an" if name[0] in "aehio" else "a"
    for parameter in parameters:
        if parameter not in kind.parameters:
            raise unknown(f"parameter of {article} {name} index", parameter, kind.parameters)
