"""Settings of the stage `rerank`."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from shortlist.config import NotInJob, SpeedOnly, at_defaults, refuse_idle
from shortlist.data.collections import Collection, check_collection, open_collection
from shortlist.data.jobs import JobSpec, is_done
from shortlist.data.manifest import identity
from shortlist.engine import Engine, check_engine
from shortlist.errors import UserError
from shortlist.models.files import Precision
from shortlist.models.folder import check_model
from shortlist.rerankers.kinds import RERANKERS, prepare, takes
from shortlist.rerankers.prepared import Prepared
from shortlist.text.segments import PairSegments, unused_settings

READING = (
    "model",
    "vectors",
    "contract",
    "instruction",
    "max_length",
    "segments",
    "window",
    "stride",
    "precision",
    "token_budget",
    "long_queries",
    "model_name",
    "prompt",
    "answers",
    "likelihood",
    "sort",
    "top",
    "passes",
    "orders",
    "repeats",
    "seed",
    "heads",
    "signal",
    "uncalibrated",
    "layer",
    "layers",
    "offset",
)
"""The fields of a Config that are settings of the method."""
MODEL_READS = {"pointwise": "pair", "late": "document"}
"""What the model of a method reads, for those that ask no language model."""
UNASKED = (*MODEL_READS, "attention", "block", "embedding")
"""Methods that have no answers written, so that none are kept or counted."""


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str | None = None
    """Reranker: folder or hub name. For a method that asks a language model: its folder or hub name, or the address of
    an OpenAI-compatible server, such as http://127.0.0.1:8000/v1."""
    method: str = "pointwise"
    """Reranking method. pointwise: the model reads the query with one candidate at a time. late: a late-interaction
    model, by the best match of each of the query's tokens. attention: the attention that a language model's query pays
    to each candidate. block: the same in a model trained on candidates that do not see one another. embedding: vectors,
    of which the query's has read candidates too. The others ask a language model: listwise, pairwise, setwise,
    tournament, exclusion, groupwise, graded, context (all candidates at once); or read how likely the query is behind
    each candidate: likelihood. With the small model that ships, context and likelihood were never better than BM25."""
    vectors: Path | None = None
    """late, embedding: vectors of the documents from `shortlist encode` with the model; the documents that they lack
    are encoded (None: all are)."""
    run: Path
    """Run file with the candidates."""
    collection: str
    """Collection with the texts: folder, `irds:` or `hf:` name."""
    out: NotInJob[Path]
    """Run file to write; the scores are kept in a file beside it that ends in .scores, so that the same command can
    continue after an interruption."""
    split: str = "test"
    """Split of the collection that has the queries."""
    depth: int = 200
    """Candidates per query to read; those below follow in their old order."""
    ties: Literal["trec", "rank"] = "trec"
    """Order of the run's hits: by score and id as in trec_eval, or by the run's rank column."""
    contract: str | None = None
    """Input contract by name, for a model folder without one."""
    instruction: str | None = None
    """Instruction for the model, if its contract has a field for one (None: the contract's instruction)."""
    max_length: int | None = None
    """Most tokens of a pair (None: the model's limit)."""
    segments: PairSegments = "whole"
    """whole: read each document from its beginning to --max-length. Otherwise read it in segments of --window tokens,
    and use the score of the first (firstp), the best (maxp) or the mean of all (avgp); or read --window tokens of
    sentences that hold most of the query's words, beside the title (extract)."""
    window: int | None = None
    """Tokens of a segment, query and prompt included (None: 512). For a language model, the documents shown at once
    (None: as the prompt says); embedding: the first candidates, which the query is read with."""
    stride: int | None = None
    """Tokens from the beginning of a segment's text to the beginning of the next one's (None: 256). For listwise, the
    documents from one window to the next (None: as the prompt says)."""
    model_name: str | None = None
    """A server's name of its model; the key is read from SHORTLIST_API_KEY or OPENAI_API_KEY."""
    prompt: str | None = None
    """Prompt for a language model by name (None: the method's own); `inspect MODEL --prompt NAME` shows it."""
    answers: Literal["text", "logits", "likelihood"] | None = None
    """Have a language model's answers generated, or read them from the logits of the labels at one position, or from
    the log-probabilities of labels of several tokens (None: as the prompt says)."""
    likelihood: Literal["mean", "sum"] = "mean"
    """likelihood: the mean or the sum of the log-probabilities of the query's tokens; both order a query's candidates
    alike, and means compare across queries."""
    sort: Literal["heap", "bubble", "sliding", "all", "insertion"] | None = None
    """Which candidates are compared (None: those of a heapsort); pairwise: heap, bubble, sliding or all; setwise: heap,
    bubble or insertion."""
    top: int | None = None
    """Candidates that a sort places (None: 10); the others follow in their old order."""
    passes: int | None = None
    """Passes over the list (None: one for listwise, ten for pairwise sliding)."""
    orders: Literal[1, 2] | None = None
    """In how many orders listwise and setwise show the same documents (None: one); with two, the second is turned round
    and the mean of both answers counts, so that a model's liking for a place cancels, at twice the calls."""
    repeats: int | None = None
    """Tournaments, or times that groups are graded (None: two tournaments, one grading)."""
    seed: int = 0
    """Seed of the order in which tournaments and groups show candidates."""
    heads: str | None = None
    """attention: file of heads from `shortlist heads`, or heads as LAYER-HEAD, such as 13-18,14-31 (None: all)."""
    signal: Literal["mass", "qk"] = "mass"
    """attention: the share of attention that a candidate's tokens get, or the product of the last query with the key of
    its last token (for select-and-copy heads)."""
    uncalibrated: bool = False
    """attention: do not take away what a query without content gives, and count tokens far below their candidate's
    mean too."""
    layer: int | None = None
    """block: layer whose attention scores candidates, from 0 (None: five eighths of all, 20 of 32)."""
    layers: int | None = None
    """pointwise, for a model with heads behind several layers: the layers to compute, from 1, the last of which scores
    (None: all)."""
    offset: Literal["paper", "code", "near"] = "code"
    """block: position of what follows the candidates: 8192, 16384 or right behind the longest one."""
    precision: Precision = "fp32"
    """Number type that the model computes in; for bf16 and int8, the agreement with fp32 on a sample is printed."""
    token_budget: SpeedOnly[int | None] = None
    """Tokens per forward pass, padding included (None: 2,048 on a CPU, 16,384 on a GPU)."""
    workers: SpeedOnly[int | None] = None
    """Processes that score at the same time (None: one per GPU, or one without GPUs; on Ray, one per node or GPU)."""
    engine: SpeedOnly[Engine] = "local"
    """`local`: this machine; `ray`: a Ray cluster, the running one if there is one."""
    long_queries: Literal["refuse", "cut", "skip"] = "refuse"
    """What to do with a query that leaves no room for a document: refuse the run, cut the query to half of a pair, or
    leave its candidates in their old order (skip)."""
    max_pairs: NotInJob[int | None] = None
    """Read at most this many pairs: the best-ranked candidates of all queries first, or whole lists if the method needs
    them. The other candidates keep their order."""
    budget_seconds: NotInJob[float | None] = None
    """Stop reading after this many seconds, with the best-ranked candidates first; the same command continues there."""
    skip_missing: NotInJob[bool] = False
    """Skip candidates whose query or document the collection lacks, or whose document is empty, instead of stopping;
    they follow the others in their old order."""
    max_calls: NotInJob[int | None] = None
    """Ask a language model at most this many times; the same command continues there."""
    max_malformed: NotInJob[float] = 0.2
    """Stop if a larger share of a language model's answers is malformed."""
    details: NotInJob[Path | None] = None
    """File to list malformed answers in, as JSON lines."""
    dry_run: NotInJob[bool] = False
    """Only print how many calls and tokens a language model would take, and how long, from a sample."""
    header: bool = False
    """Write what the run was made from before its first line, as comments in the form of ir_metadata."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def check(config: Config) -> None:
    """Refuse settings that no run suits.

    Raises:
        UserError: a setting is out of range.
    """
    least_one = {"depth": config.depth, "max-pairs": config.max_pairs, "max-calls": config.max_calls}
    for flag, value in least_one.items():
        if value is not None and value < 1:
            raise UserError(f"--{flag} is {value}; expected at least 1.")
    check_engine(config.engine)
    if not 0 <= config.max_malformed <= 1:
        raise UserError(f"--max-malformed is {config.max_malformed:g}; expected a share from 0 to 1.")
    if config.method in UNASKED:
        why = f"is for methods that ask a language model, not for {config.method}"
        refuse_idle(config, ("max_calls", "max_malformed", "details", "dry_run"), why)
    if config.long_queries == "skip" and config.method in RERANKERS and not takes(config.method, "long_queries"):
        raise UserError(f"--long-queries is for --method pointwise, not for {config.method}; leave it out.")
    if config.max_calls is not None and (config.engine == "ray" or (config.workers or 1) > 1):
        raise UserError("--max-calls: calls are counted in one process; leave out --workers and --engine.")


def check_first(config: Config) -> None:
    """Refuse settings, names and paths before PyTorch is loaded.

    Raises:
        UserError: as for `check`, or the collection, the run or the model is missing, or is of another kind.
    """
    check(config)
    check_collection(config.collection)
    if not config.run.is_file():
        raise UserError(f"--run {config.run}: no such file; expected a run, such as `shortlist search` writes.")
    if config.method in MODEL_READS and config.model:
        check_model(config.model, MODEL_READS[config.method], config.contract)


def method_settings(config: Config) -> dict[str, Any]:
    """Collect the method's settings that differ from their defaults.

    Defaults are left out because a method refuses settings that it does not have.
    """
    defaults = {field.name: field.default for field in fields(Config)}
    settings = {name: value for name in READING if (value := getattr(config, name)) != defaults[name]}
    if config.long_queries == "skip":  # the method never sees such a query
        del settings["long_queries"]
    return settings


def scored_from(prepared: Prepared, collection: Collection) -> dict[str, str]:
    """Return the identities of what scores are made from."""
    return {**prepared.identities(), "collection": collection.identity("corpus", "queries")}


def job_of(config: Config, prepared: Prepared, collection: Collection) -> JobSpec:
    """Describe the job of reranking a run."""
    inputs = scored_from(prepared, collection) | {"run": identity(config.run)}
    unused = unused_settings(config.segments) if config.method == "pointwise" else []
    return JobSpec("rerank", inputs, as_if=at_defaults(config, unused))


def has_run(config: Config) -> bool:
    """Whether the output is finished, without PyTorch; if so, this prints a message."""
    prepared = prepare(config.method, method_settings(config))
    return is_done(config, job_of(config, prepared, open_collection(config.collection)))
