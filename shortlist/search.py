"""Stage `search`: a first stage (BM25, vectors, or both fused) finds each query's long list."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, final

from shortlist.config import NotInJob, SpeedOnly, from_settings, load_yaml
from shortlist.data.beir import shares_ids
from shortlist.data.collections import Collection, open_collection
from shortlist.data.files import folder_bytes
from shortlist.data.manifest import identity, start_job
from shortlist.data.runs import write_run
from shortlist.engine import Engine
from shortlist.errors import UserError
from shortlist.index.opening import check_vectors, needs_model, open_first_stage
from shortlist.index.protocols import FirstStage, Opening
from shortlist.math.exclusion import count_own, without_own
from shortlist.math.fusion import FUSIONS, interpolate, reorder, rrf
from shortlist.progress import peak_bytes, progress, say
from shortlist.records import Hit, Query, Run

if TYPE_CHECKING:
    from shortlist.models.folder import ModelFolder

DEMO_FOLDER = Path("shortlist-demo")
HITS_AT_ONCE = 8_000_000
"""Most hits in memory, where each takes 170 bytes; the queries of a training split find a hundred million."""
SNIPPET = 300
"""Characters of a document that are printed."""
HYBRID_DEPTH = 100
"""Ranks of each part that are fused, however few are asked for: a document that both rank 20th can win."""


@dataclass(frozen=True, kw_only=True)
class Config:
    collection: str | None = None
    """Where the queries are: folder, `irds:` or `hf:` name."""
    index: tuple[Path, ...] = ()
    """Indexes from `shortlist index`: one over words, one over vectors, or both, which are then fused."""
    model: str | None = None
    """Retriever that made the vectors: folder or hub name."""
    vectors: Path | None = None
    """Vectors from `shortlist encode`, to be searched exactly; with an index over them, where they are now."""
    out: NotInJob[Path | None] = None
    """Run file to write; needed unless --query is given."""
    split: str = "test"
    """Which queries of the collection."""
    k: int = 1000
    """Documents per query."""
    exclude_self: bool | None = None
    """Leave out the document of the query's own id (None: where queries are documents too, as in ArguAna, Quora)."""
    query: NotInJob[str | None] = None
    """Search for this text and print the 10 best (or --k if fewer) instead of writing a run."""
    contract: str | None = None
    """Input contract by name, for a model folder that does not say its own."""
    query_length: int | None = None
    """Most tokens of a query (None: the model's)."""
    memory_gib: SpeedOnly[float | None] = None
    """Most memory for vectors at a time, GiB (None: half of what is free); they may be many times as large."""
    effort: int | None = None
    """What approximate search spends on a query: hnsw, candidates; ivf, lists (None: what the index was built with)."""
    refine: int | None = None
    """Candidates that are scored exactly, in multiples of --k (None: what the index was built with)."""
    fusion: Literal["rrf", "weighted", "zscore"] = "rrf"
    """How two first stages become one run, as in `shortlist fuse`."""
    weights: tuple[float, ...] | None = None
    """How much each counts, --index in the order given, then --vectors."""
    engine: SpeedOnly[Engine] = "local"
    """`ray`: scan vectors exactly on a Ray cluster, whose nodes all find them at the same place."""
    reranker: NotInJob[str | None] = None
    """With --query: a reranker, folder or hub name, that puts the first --depth documents in order."""
    depth: NotInJob[int] = 50
    """With --reranker: how many documents it reads."""
    reranker_share: NotInJob[float] = 1.0
    """With --reranker: how much its scores count, 0 to 1, the first stage's being the rest."""
    demo: NotInJob[str | None] = None
    """Search the demo's collection for this text, with what `shortlist demo` has trained."""
    demo_folder: NotInJob[Path] = DEMO_FOLDER
    """Where `shortlist demo` has worked."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


@final
class Hybrid:
    """Several first stages, fused.

    Args:
        fuse: a function in math.fusion.FUSIONS.
        weights: how much each part counts (None: all alike).
    """

    def __init__(
        self, parts: Sequence[FirstStage], fuse: Callable[..., Run] = rrf, weights: Sequence[float] | None = None
    ) -> None:
        self.parts, self.fuse, self.weights = parts, fuse, weights

    def search(self, queries: list[Query], k: int) -> Run:
        """Each query's k best documents of all parts together."""
        fused = self.fuse([part.search(queries, max(k, HYBRID_DEPTH)) for part in self.parts], weights=self.weights)
        return {query.query_id: fused.get(query.query_id, [])[:k] for query in queries}


def open_model(config: Config) -> "ModelFolder | None":
    """The folder of the retriever that a Config names, if it does."""
    from shortlist.models.folder import open_folder

    return open_folder(config.model) if config.model else None


def open_index(config: Config, model: "ModelFolder | None" = None) -> FirstStage:
    """The first stage that a Config describes.

    Args:
        model: the folder of its retriever (None: looked up here).

    Raises:
        UserError: it describes none, or vectors of another model.
    """
    parts = open_parts(config, model)
    if len(parts) == 1:
        return parts[0]
    if config.weights is not None and len(config.weights) != len(parts):
        raise UserError(f"--weights has {len(config.weights)} numbers for {len(parts)} first stages; expected as many.")
    return Hybrid(parts, FUSIONS[config.fusion], config.weights)


def open_parts(config: Config, model: "ModelFolder | None" = None, *, packed: bool | None = None) -> list[FirstStage]:
    """The first stages that a Config describes, each by itself.

    Args:
        model: the folder of its retriever (None: looked up here).
        packed: of the retriever's linears, as for `models.run.for_inference`.

    Raises:
        UserError: it describes none, or vectors of another model.
    """
    over_vectors = [path for path in config.index if needs_model(path)]
    if config.vectors and not over_vectors:
        over_vectors = [config.vectors]
    retriever: Any = _open_retriever(config, model, over_vectors, packed) if over_vectors or config.model else None
    how = Opening(vectors=config.vectors, effort=config.effort, refine=config.refine, memory_gib=config.memory_gib)
    parts = [
        open_first_stage(None if path == config.vectors else path, how, model=retriever, engine=config.engine)
        for path in dict.fromkeys([*config.index, *over_vectors])
    ]
    if not parts:
        raise UserError("nothing to search with: give --index, or --model and --vectors, or all three.")
    return parts


def _open_retriever(
    config: Config, model: "ModelFolder | None", over_vectors: Sequence[Path], packed: bool | None
) -> Any:
    """The model that made the vectors, ready to embed queries."""
    from shortlist.models.retriever import Retriever

    model = model or open_model(config)
    if not (over_vectors and model):
        given, wanted = "--model", "--vectors or an --index over vectors"
        if over_vectors:
            given, wanted = "--vectors" if over_vectors[0] == config.vectors else f"--index {over_vectors[0]}", given
        raise UserError(f"{given} without {wanted}: searching vectors takes the model that made them.")
    for path in over_vectors:
        check_vectors(path, model, config.contract)
    contract = model.contract("document", config.contract).with_lengths(query=config.query_length)
    return Retriever.load(model, contract=contract, packed=packed)


class Part(NamedTuple):
    """What came of some of the queries."""

    run: Run
    seconds: float


def search(index: FirstStage, queries: list[Query], k: int, *, exclude_self: bool = False) -> Iterator[Part]:
    """Each query's hits, without the document of its own id if so asked, for HITS_AT_ONCE after HITS_AT_ONCE."""
    at_once = max(1, HITS_AT_ONCE // k)
    with progress("searching", len(queries), "queries") as advance:
        for first in range(0, len(queries), at_once):
            start, some = time.perf_counter(), queries[first : first + at_once]
            found = without_own(index.search(some, k + 1), k) if exclude_self else index.search(some, k)
            yield Part(found, time.perf_counter() - start)
            advance(len(some))


def run(config: Config) -> None:
    """Write the run of a split's queries, or print what one query finds."""
    if config.demo is not None:
        config = _demo_config(config)
    if config.collection is None:
        raise UserError("--collection is missing: it says where the queries and documents are.")
    if config.k < 1:
        raise UserError(f"--k is {config.k}; expected at least 1.")
    collection = open_collection(config.collection)
    if config.query is not None:
        print_hits(collection, open_index(config), config.query, k=min(config.k, 10), second=open_second(config))
        return
    if config.reranker:
        raise UserError("--reranker without --query: a run is written first, and reordered by `shortlist rerank`.")
    if config.out is None:
        raise UserError("--out is missing: name the run file to write, or ask one question with --query.")
    model = open_model(config)
    index, queries = open_index(config, model), collection.queries(config.split)
    if config.exclude_self is None:
        config = replace(config, exclude_self=shares_ids(config.collection))
    as_if = replace(config, exclude_self=config.exclude_self or None)
    job = start_job(config, stage="search", inputs=_inputs(config, model, queries), as_if=as_if)
    if job.done:
        return
    index.search(queries[:1], 1)  # what is compiled or read on first use is not a query's time
    own, seconds = 0, 0.0

    def found() -> Iterator[tuple[str, list[Hit]]]:
        nonlocal own, seconds
        for part in search(index, queries, config.k, exclude_self=bool(config.exclude_self)):
            own, seconds = own + count_own(part.run), seconds + part.seconds
            yield from part.run.items()

    write_run(job.out, found(), tag="shortlist")
    if own:
        say(f"search: {own} of {len(queries)} queries found the document of their own id (--exclude-self True: not).")
    milliseconds = 1000 * seconds / max(1, len(queries))
    job.finish(
        num_queries=len(queries), ms_per_query=round(milliseconds, 3), stages=[_cost(config, model, milliseconds)]
    )


def _cost(config: Config, model: "ModelFolder | None", milliseconds: float) -> dict[str, Any]:
    """What the search took, as `stages` gives it."""
    folders = {path for path in (*config.index, config.vectors) if path}
    cost = {"stage": "search", "ms": round(milliseconds, 3), "index_bytes": sum(map(folder_bytes, folders))}
    if model:
        cost |= {"model": model.identity, "num_parameters": model.num_parameters}
    return cost | {"peak_bytes": peak_bytes()}


def _inputs(config: Config, model: "ModelFolder | None", queries: list[Query]) -> dict[str, str | list[str]]:
    inputs: dict[str, str | list[str]] = {"index": [identity(path) for path in config.index]}
    inputs |= {"vectors": identity(config.vectors)} if config.vectors else {}
    inputs["collection"] = f"sha256:{sha256(repr(queries).encode()).hexdigest()}"  # not the qrels: there may be none
    if model:
        inputs["model"] = model.identity
    return inputs


class Second(NamedTuple):
    """A second stage: it puts the first `depth` documents in order."""

    reranker: Any
    depth: int
    share: float
    """Of its scores, 0 to 1, the first stage's being the rest."""


def open_second(config: Config) -> Second | None:
    """The second stage that a Config describes, if it does.

    Raises:
        UserError: the reranker cannot be loaded, or a setting of it is out of range.
    """
    if config.reranker is None:
        return None
    if config.depth < 1 or not 0 <= config.reranker_share <= 1:
        raise UserError(
            f"--depth is {config.depth}, --reranker-share {config.reranker_share}; expected 1 or more, and 0 to 1."
        )
    from shortlist.rerankers.pointwise import Reranker

    return Second(Reranker.load(config.reranker), config.depth, config.reranker_share)


def print_hits(collection: Collection, index: FirstStage, text: str, *, k: int, second: Second | None = None) -> None:
    """Search for a text and print its best documents: rank, score, id, the beginning of the text."""
    query = Query("query", text)
    hits = index.search([query], max(k, second.depth) if second else k)["query"]
    documents = collection.documents([hit.doc_id for hit in hits])
    if second and hits:
        scores = second.reranker.score(query, [documents[hit.doc_id] for hit in hits[: second.depth]])
        hits = reorder(hits, interpolate(hits, scores.tolist(), second.share))
    hits = hits[:k]
    for rank, hit in enumerate(hits, start=1):
        document = documents[hit.doc_id]
        words = f"{document.title}\n{document.text}".strip()
        snippet = words if len(words) <= SNIPPET else words[:SNIPPET].rstrip() + " ..."
        print(f"{rank:2}. {hit.doc_id}  ({hit.score:.4f})", *snippet.splitlines()[:6], sep="\n      ")
    if not hits:
        print("nothing found", file=sys.stderr)


def _demo_config(config: Config) -> Config:
    path = config.demo_folder / "search.yaml"
    if not path.exists():
        raise UserError(f"{config.demo_folder}: holds no finished demo; run `shortlist demo` first (`make demo`).")
    return replace(from_settings(Config, load_yaml(path), where=str(path)), query=config.demo, k=config.k)
