"""Stage `index`: build an index over a corpus or its vectors, to make search fast."""

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from shortlist.config import NotInJob, at_defaults, refuse_idle
from shortlist.data.collections import open_collection
from shortlist.data.jobs import JobSpec, is_finished, start_job
from shortlist.data.manifest import identity, read_manifest
from shortlist.data.outputs import changing, reopen
from shortlist.errors import UserError, check_installed, not_given
from shortlist.index.building import build_index, check_parameters_are_known, renew_index
from shortlist.index.kinds import INDEXES, IndexKind, find_kind
from shortlist.index.languages import language_name
from shortlist.progress import duration, say
from shortlist.rerankers.limits import LimitReachedError

_NEIGHBOURS = "neighbours"


@dataclass(frozen=True, kw_only=True)
class Config:
    out: NotInJob[Path]
    """Folder to write; for pgvector and lance it only records where the index is."""
    kind: str = "bm25"
    """bm25: an index of words. cur: a reranker's scores of --queries for all documents. Over vectors: narrow (exact,
    with fewer bytes); hnsw, ivf-flat and ivf-pq (approximate, with FAISS); tree (approximate, and for models that walk
    it); pgvector (in PostgreSQL) and lance (in LanceDB). Over token vectors: narrow, late and late-centroids
    (approximate). Over term weights: sparse (exact) and seismic (approximate)."""
    collection: str | None = None
    """Folder, `irds:` or `hf:` name of the corpus that BM25, cur and --writer read; for other kinds, --check
    takes its queries."""
    vectors: Path | None = None
    """Vectors from `shortlist encode`, which every kind except BM25 and cur reads."""
    queries: Path | None = None
    """cur: file of the anchor queries, such as training queries: JSON lines of _id and text, or id, tab, text. Each is
    scored for all documents, once."""
    writer: str | None = None
    """tree: language model that describes the nodes from the documents of --collection: its folder or hub name, or the
    address of an OpenAI-compatible server. Without one, a node has the titles of its most typical documents."""
    writer_name: str | None = None
    """The server's name of the language model."""
    writer_prompt: str = "tree-node"
    """Name of the prompt that asks for a description."""
    max_calls: NotInJob[int | None] = None
    """Most prompts to send to the language model now; the same command goes on."""
    language: str = "english"
    """How BM25 splits text into words: a language or its code (english or en), `code` for source code, `whitespace` for
    text already split. Chinese, Japanese and Korean are split into pairs of characters (and Chinese characters)."""
    k1: float = 0.9
    """BM25's saturation of term frequency; the higher, the more repeated words count (0: not at all)."""
    b: float = 0.4
    """BM25's normalisation of length, 0 (none) to 1 (full)."""
    expand: str | None = None
    """bm25: append to each document words that it lacks: `neighbours`, the strongest phrases of similar documents, or
    queries that a language model wrote for it, by the folder of `shortlist queries`."""
    phrases: int = 20
    """Most phrases, or queries, that --expand appends to a document."""
    expand_weights: Path | None = None
    """Weights of terms in the documents, from `shortlist encode` with a sparse model, by which --expand neighbours
    chooses phrases (None: rare words say most)."""
    dtype: Literal["int8", "bfloat16"] = "int8"
    """Number type that a narrow index scans."""
    set: tuple[str, ...] = ()
    """Parameters that replace the automatic ones, as name=value. hnsw: links, construction, bits; ivf: lists,
    code_bytes; both: effort, refine, sample; late: repetitions, bits, width; late-centroids: centroids, probes; both:
    effort, refine; seismic: postings, clusters, energy, effort, heap, refine; tree: branch, effort, seed; pgvector: m,
    ef_construction; for lance see the guide."""
    exact: bool = False
    """pgvector, lance: build no approximate index; every search compares all vectors."""
    dsn: str | None = None
    """pgvector: the database, postgresql://user@host/name; better put its password in PGPASSWORD or ~/.pgpass."""
    uri: str | None = None
    """lance: a folder or s3://bucket/path; credentials come from the environment."""
    table: str = "vectors"
    """pgvector, lance: the table's name."""
    check: NotInJob[bool] = False
    """Compare the index with exact search: recall, speed, memory, disk."""
    model: str | None = None
    """cur: the reranker whose scores it holds, which gives one score to a pair. Otherwise the retriever that made the
    vectors: --check embeds the queries of --collection with it."""
    split: NotInJob[str] = "test"
    """Which queries of the collection --check uses."""
    dry_run: NotInJob[bool] = False
    """Build over a part of the input and print what the whole would take, instead of building the index."""
    overwrite: NotInJob[bool] = False
    """Replace the output of another job instead of refusing."""


def run(config: Config) -> None:
    """Build an index, and check it if asked."""
    config = replace(config, language=language_name(config.language))
    kind, parameters = find_kind(config.kind), parse_parameters(config.set)
    check_parameters_are_known(config.kind, kind, parameters)
    settings = {name: getattr(config, name) for name in kind.settings} | parameters
    title = kind.title or config.kind
    if config.check and kind.reads == "corpus":
        why = "is exact" if kind.exact else "is not over vectors"
        raise UserError(f"--check compares an approximate index with exact search; {title} {why}.")
    source = _source(config, kind, title)
    opened = _opened(config, kind)
    settings |= opened
    if config.expand is not None or config.phrases != Config.phrases or config.expand_weights is not None:
        from shortlist.index.expansion import check_expansion

        how = {"over_words": config.kind == "bm25", "dry_run": config.dry_run}
        check_expansion(config.expand, config.phrases, weights=config.expand_weights, **how)
    _refuse_idle(config, kind, title)
    check_installed(f"--kind {config.kind}", kind.needs)
    if config.dry_run:
        from shortlist.index.forecast import forecast_index

        print(forecast_index(kind, source, settings))
        return
    kept = _to_be_kept(config)
    if why := _outdated(config.out, kind):
        say(f"index: {config.out}: {why}; building it again.")
        reopen(config.out, updating=False)
    job = start_job(kept, _job_of(kept, kind, source, opened))
    if not job.done:
        start = time.perf_counter()
        if job.updating:
            job.keep_names()
        renews = job.updating and config.expand is None  # new documents are new neighbours of the old ones
        results = renew_index(kind, source, job.out, settings) if renews else None
        if results is None:
            with nullcontext(job.out) if kind.writes else job.result() as folder:
                how = {"how": config.expand, "count": config.phrases, "weights": config.expand_weights}
                try:
                    results = build_index(kind, source, folder, settings, expand=how if config.expand else None)
                except LimitReachedError as reached:
                    job.pause()
                    say(f"index: {reached}; the same command goes on.")
                    return
        _say_what_was_read(kind, source, results)
        job.finish(**results, seconds=round(time.perf_counter() - start, 3))
    elif "changing" in job.manifest:  # an update was interrupted, and what it was for is as before
        with changing(job.out, stage="index", writes=kind.renewed):
            renew_index(kind, source, job.out, settings)
    if config.check:
        from shortlist.index.check import check_index

        print(check_index(config.out, Path(source), config.model, config.collection, config.split))


def _refuse_idle(config: Config, kind: IndexKind, title: str) -> None:
    """Refuse settings that change nothing in an index of this kind."""
    if kind.scoring is None:
        refuse_idle(config, ("queries",), f"is for --kind cur, and {title} has none")
    if kind.writing is None:
        names = ("writer", "writer_name", "writer_prompt", "max_calls")
        refuse_idle(config, names, f"is for --kind tree, and {title} has none")
    for name in {name for other in INDEXES.values() for name in other.settings} - set(kind.settings):
        kinds = " and ".join(other for other in INDEXES if name in INDEXES[other].settings)
        refuse_idle(config, (name,), f"is for --kind {kinds}, and {title} has none")
    if kind.reads == "corpus":
        refuse_idle(config, ("vectors",), f"is for indexes over vectors, and {title} is none")
    elif not config.check and config.writer is None:
        uses = "--check and --writer" if kind.writing else "--check"
        refuse_idle(config, ("collection",), f"is for {uses}, as {title} reads --vectors")
    if not config.check:
        names = ("split",) if kind.scoring else ("model", "split")
        refuse_idle(config, names, "is for --check")


def is_current(config: Config) -> bool:
    """Whether the described index is there and made from what its source holds now."""
    config = replace(config, language=language_name(config.language))
    kind = find_kind(config.kind)
    source = _source(config, kind, kind.title or config.kind)
    job = _job_of(config, kind, source, _opened(config, kind))
    return is_finished(config, job) and _outdated(config.out, kind) is None


def _opened(config: Config, kind: IndexKind) -> dict[str, Any]:
    """Open what scores documents, and what writes texts, for kinds that have such."""
    opened: dict[str, Any] = {}
    if kind.scoring is not None:
        opened["scoring"] = kind.scoring(model=config.model, queries=config.queries)
    if kind.writing is not None:
        names = ("collection", "writer", "writer_name", "writer_prompt", "max_calls")
        opened["writing"] = kind.writing(**{name: getattr(config, name) for name in names})
    return {name: value for name, value in opened.items() if value is not None}


def _job_of(kept: Config, kind: IndexKind, source: str | Path, opened: Mapping[str, Any]) -> JobSpec:
    """Describe the job of building an index."""
    idle = () if kind.reads == "corpus" or "writing" in opened else ("collection",)
    as_if = at_defaults(kept, idle if "scoring" in opened else (*idle, "model"))
    update = ("collection",) if kind.renew else ("vectors",) if kind.updates else ()
    writes = (*kind.writes, *kind.renewed)
    inputs = _inputs(kind, source) | {name: value for one in opened.values() for name, value in one.identities.items()}
    if kept.expand not in (None, _NEIGHBOURS):
        inputs["expand"] = identity(Path(str(kept.expand)))
    if kept.expand_weights is not None:
        inputs["expand_weights"] = identity(kept.expand_weights)
    return JobSpec("index", inputs, as_if=as_if, folder=True, update=update, writes=writes)


def _outdated(out: Path, kind: IndexKind) -> str | None:
    """Say why an index there can no longer be used."""
    if kind.outdated is None or (read_manifest(out) or {}).get("stage") != "index":
        return None
    return kind.outdated(out)


def _say_what_was_read(kind: IndexKind, source: str | Path, results: Mapping[str, Any]) -> None:
    """Say what an index holds, or how many documents of its vectors were cut."""
    if kind.reads == "corpus" and "num_docs" in results:
        words = f", {results['num_words']:,} words" if "num_words" in results else ""
        words = f", of which {results['read']:,} are new or changed" if "read" in results else words
        say(f"index: {results['num_docs']:,} documents{words}.")
    if "appended_words" in results:
        each, seconds = results["appended_words"] / results["num_docs"], results["expansion_seconds"]
        say(
            f"index: appended {each:.1f} words to a document, {results['appended_words'] / results['num_words']:.0%} "
            f"of all, in {duration(seconds)}, {1000 * seconds / results['num_docs']:.1f} ms a document."
        )
    encoded = (read_manifest(Path(source)) or {}).get("results", {}) if kind.reads == "vectors" else {}
    if encoded.get("cut"):
        say(f"index: of {encoded['embedded']:,} documents {encoded['cut']:,} were cut when they were encoded.")


def _source(config: Config, kind: IndexKind, title: str) -> str | Path:
    """Find the source of the index: a collection's name or the folder of the vectors.

    Raises:
        UserError: the flag that names it is missing.
    """
    if kind.reads == "corpus":
        source, flag, why = config.collection, "--collection", f"{title} reads the documents' words"
    else:
        source, flag, why = config.vectors, "--vectors", f"{title} indexes the output of `shortlist encode`"
    if source is None:
        raise not_given(flag, why)
    return source


def _inputs(kind: IndexKind, source: str | Path) -> dict[str, str]:
    """Return the identity of the corpus or vectors that the index is built from."""
    if kind.reads == "corpus":
        return {"collection": open_collection(str(source)).identity("corpus")}
    return {"vectors": identity(source)}


def _to_be_kept(config: Config) -> Config:
    """Return the Config without the database password, as the manifest may keep it."""
    if config.dsn is None:
        return config
    from shortlist.index.databases.postgres import without_password

    return replace(config, dsn=without_password(config.dsn))


def parse_parameters(items: Sequence[str]) -> dict[str, int]:
    """Parse the values of `--set`.

    Raises:
        UserError: an item is not of the form name=value, or its value is not a whole number.
    """
    parameters: dict[str, int] = {}
    for item in items:
        name, _, value = item.partition("=")
        if not value.isdecimal():
            raise UserError(f"--set {item}: expected name=value with a whole number, such as links=48.")
        parameters[name] = int(value)
    return parameters
