"""Settings of a training run, and the checks that need neither files nor PyTorch."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

from shortlist.config import NotInJob, SpeedOnly, flag_of, settings_of, to_flags
from shortlist.cores import may_have_gpu, num_cores
from shortlist.data.collections import Collection, FolderCollection, check_collection, open_collection
from shortlist.data.groups import GroupSource, groups_from_qrels, groups_from_run, open_groups, without_query
from shortlist.data.jobs import JobSpec, is_done, recorded
from shortlist.data.lines import ignore
from shortlist.data.manifest import identity, read_manifest
from shortlist.data.runs import open_run
from shortlist.data.stored import StoredGroups
from shortlist.errors import UserError
from shortlist.models.adapter_settings import parse_adapter
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.models.kinds import named_kind
from shortlist.records import Group, Query
from shortlist.settings.sources import OVERRIDES, SourceSettings, decided, parse_sources
from shortlist.text.contract import named_contract
from shortlist.together import run_together

MOST_PROCESSES = 4
"""Most processes that train together unless told otherwise, as each holds the whole model."""
SHARED_BYTES = (4 << 20, 512 << 20)
"""Smallest and largest weights, on the disk, of models that several processes train. Smaller ones are trained by the
time that processes take to start; larger ones take too much memory several times, and keep all threads busy."""
SHARED_STEPS = 5
"""Fewest --steps that are worth several processes."""

RETRIEVERS = ("dims", "dims_weights", "mix_negatives", "views", "views_weight")
"""Settings of retrievers alone."""
LANGUAGE_MODELS = ("attention_stop", "corruption")
"""Settings of language models alone."""

RANKERS = (
    *("loss", "temperature", "negatives", "query_length", "bidirectional", "pooling", "guide"),
    *("heldout_split", "heldout_collection"),
)
"""Settings that say nothing about a language model."""

CHECKPOINTS = "checkpoints"
"""The folder of a training's checkpoints, in its --out."""
LOG = "log.jsonl"
DRAWING = "loss.svg"
EVENTS = "tensorboard"
"""The folder of TensorBoard's files."""


@dataclass(frozen=True, kw_only=True)
class Config:
    kind: tyro.conf.Positional[str]
    """What to train: retriever, reranker or language-model. A language model, trained on the texts of judged pairs, is
    a backbone for the other two."""
    backbone: str
    """Model to start from: folder or hub name. A retriever may become a reranker; a reranker keeps its head."""
    collection: str | None = None
    """Collection with the texts: folder, `irds:` or `hf:` name."""
    out: NotInJob[Path]
    """Folder for the model; the same job is continued where it left off, another job is refused."""
    groups: str | Path | None = None
    """Groups from `shortlist mine`, Tevatron's training JSONL, or an `hf:` name. Without it, the judged pairs of
    --split are used: a retriever learns from in-batch negatives, a reranker from those of --negatives-from."""
    negatives_from: Literal["random", "bm25"] | None = None
    """Give negatives to groups that have none: bm25 draws them from its 200 best hits for the query, random from the
    whole corpus (None: bm25 for a reranker without --groups, otherwise such groups stay as they are)."""
    refresh_steps: int | None = None
    """Search for new negatives with the model itself every so many steps (None: never)."""
    refresh_depth: int = 200
    """Best documents of each query to draw these negatives from."""
    refresh_docs: int | None = None
    """Most documents to search for them, sampled anew each time (None: the whole collection)."""
    split: str = "train"
    """Split of the collection that has the groups' queries."""
    positives_from: int | None = None
    """Lowest grade of a positive; documents of lower grades are negatives (None: as the groups say, or 1)."""
    sources: str | None = None
    """YAML file of several sources, NAME: and its settings, in place of --collection and --groups. Each step takes its
    queries from one of them."""
    mix_temperature: float = 1.0
    """How evenly --sources are drawn: in proportion to (groups x weight)^(1/T). 1: by size; large: all alike."""
    skip_missing: NotInJob[bool] = False
    """Leave out queries and documents of the groups, or of the judgements, that the collection lacks, and count them,
    instead of stopping."""
    contract: str | None = None
    """Input contract by name (None: the backbone's, or the paper's for its architecture if it has none)."""
    query_length: int | None = None
    """Most tokens of a query (None: the contract's limit)."""
    max_length: int | None = None
    """Most tokens of a document or, for a reranker, of a pair (None: the contract's limit)."""
    adapter: str | None = None
    """Train an adapter instead of all weights: a kind and its options, such as dora,r=16,alpha=32. Kinds: lora, dora,
    rslora, adalora, ia3, prompt, prefix, connected; paper and paper+k are the paper's LoRA."""
    four_bit: bool = False
    """Keep the weights below the adapter in 4 bits (QLoRA)."""
    bidirectional: bool = False
    """Let every token of a decoder see the whole input, not only the tokens before it."""
    pooling: str | None = None
    """How the states of an input become one: last, cls, mean, weighted (mean, later tokens counting more) or, for a
    retriever, latent (attention to learned vectors, then the mean) (None: as the contract says)."""
    dims: tuple[int, ...] = ()
    """Dimensions that a retriever's vectors may later be cut to (Matryoshka): the losses of all are added up. Name the
    model's own dimension too, such as 384 128 64."""
    dims_weights: tuple[float, ...] = ()
    """Weight of each of --dims (default: 1 each)."""
    mix_negatives: int = 0
    """Synthetic negatives per query: mixtures of the vectors of two negatives of its group, others in each step."""
    views: Literal["crop", "drop", "mask"] | None = None
    """Train a retriever on documents alone: one view of a document is the query, another its positive. Views are random
    spans (crop), texts without half of their words (drop), or with `_` in the place of half of them (mask)."""
    views_weight: float | None = None
    """Train on --groups or judged pairs as usual, and in each step on views of as many documents of the corpus too,
    whose loss has this weight (None: on views alone)."""
    attention_stop: bool = False
    """Language model: put an end token between query and document, and let tokens after it see nothing before it, so
    that it learns to hold a whole text; only tokens after it are predicted."""
    corruption: float = 0.0
    """Language model: replace words of what comes first in a text by `_`, each with this probability; only what comes
    after it is predicted."""
    negatives: int | None = None
    """Negatives per query and step, another slice each epoch (None: all of the group)."""
    batch_size: int = 128
    """Queries per step."""
    epochs: int = 1
    """Number of passes over the groups, those of all sources together."""
    steps: int | None = None
    """Stop after this many steps, whatever --epochs says."""
    learning_rate: float = 1e-4
    """Highest learning rate, reached after the warm-up; then it decays linearly to 0."""
    warmup_steps: int = 100
    """Steps over which the learning rate grows."""
    optimizer: str = "adamw"
    """What turns gradients into steps: a name and its options, such as galore,rank=64. Names: adamw, adamw-8bit,
    paged-adamw-8bit, adafactor, galore, gradnorm."""
    layers_sampled: str | None = None
    """Train only this many layers at a time, drawn by their share of outlying weights, such as 2,every=20."""
    loss: tuple[str, ...] = ("infonce",)
    """Loss to minimise: NAME, or several NAME=WEIGHT that are added up, and NAME.PARAMETER=VALUE. infonce picks the
    positive; kl follows the teacher's scores in --groups (`mine --teacher`), where good and bad documents should differ
    by about kl.teacher_temperature (1); the guide lists all others."""
    temperature: float | None = None
    """Divides the scores in every loss that has a temperature (None: by 0.01 for a retriever, 1 for a reranker)."""
    guide: str | None = None
    """Retriever (folder or hub name) that scores the documents of each step: negatives that it finds as relevant to the
    query as the positive do not count."""
    guide_margin: str = "0"
    """How far below the positive a negative must be for the guide, to count: an absolute similarity such as 0.05, or a
    share of the positive's such as 5%."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of matrix products; trained weights and the loss are fp32 in both."""
    attention: SpeedOnly[str | None] = None
    """Attention implementation, as transformers names it: sdpa, flash_attention_2, ... (None: its default)."""
    token_budget: SpeedOnly[int | None] = None
    """Tokens per forward pass, padding included (None: 1,024 on a CPU, 65,536 on a GPU); halved if memory runs out."""
    grad_cache: SpeedOnly[bool] = False
    """Run the model twice per step and hold one micro-batch in memory at a time: any --batch-size fits."""
    gradient_checkpointing: SpeedOnly[bool] = False
    """Hold one layer's activations in memory at a time, and run each layer twice: any length fits."""
    processes: SpeedOnly[int | None] = None
    """Processes of this machine that train together and share its cores, or its GPUs (None: on a CPU one for each core,
    at most 4, or this one for tiny and for large models; with GPUs this one)."""
    sharded: SpeedOnly[bool] = False
    """With several processes, split weights, gradients and optimizer among them (FSDP), for models too large for one
    device. Otherwise every process holds the whole model."""
    checkpoint_steps: NotInJob[int] = 100
    """Steps between checkpoints."""
    keep: NotInJob[int] = 1
    """Checkpoints to keep, besides the best; with 1, all are removed once the model is saved."""
    heldout_split: str | None = None
    """Split to measure MRR@10 on while training; the best model is then saved instead of the last."""
    heldout_collection: str | None = None
    """Collection of that split (None: --collection, or the first of --sources)."""
    heldout_steps: int = 100
    """Steps between held-out measurements; the last step is always measured."""
    heldout_queries: int = 100
    """Most queries of the held-out split."""
    heldout_docs: int = 2000
    """Documents to search for held-out queries, their relevant ones included; a reranker orders BM25's best 20 of them
    for each query."""
    tensorboard: NotInJob[bool] = False
    """Also write TensorBoard's files."""
    seed: int = 0
    """Seed for the order of groups, the choice of negatives, dropout and a new head."""
    dry_run: NotInJob[bool] = False
    """Print the steps, tokens and memory that training would take, without loading weights or writing anything."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def check(config: Config) -> None:
    """Refuse invalid settings.

    Raises:
        UserError: a setting is out of range, names something unknown, or contradicts another.
    """
    at_least = dict.fromkeys(("batch_size", "epochs", "steps", "checkpoint_steps", "token_budget", "keep"), 1)
    at_least["processes"] = 1
    at_least |= dict.fromkeys(("heldout_steps", "heldout_queries", "heldout_docs", "query_length", "max_length"), 1)
    at_least |= dict.fromkeys(("negatives", "mix_negatives", "warmup_steps", "seed"), 0) | {"positives_from": 1}
    at_least |= dict.fromkeys(("refresh_steps", "refresh_depth", "refresh_docs"), 1)
    for name, least in at_least.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"{flag_of(name)} is {value}; expected at least {least}.")
    _check_dims(config.dims, config.dims_weights)
    for name in ("temperature", "learning_rate", "mix_temperature"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UserError(f"{flag_of(name)} is {value}; expected more than 0.")
    if named_kind(config.kind).role == "language-model":
        for name in RANKERS:
            if getattr(config, name) != getattr(Config, name):
                raise UserError(f"{flag_of(name)}: says nothing about a language model; leave it out.")
    if named_kind(config.kind).role != "retriever":
        for name in RETRIEVERS:
            if getattr(config, name) != getattr(Config, name):
                raise UserError(f"{flag_of(name)}: is for a retriever, and says nothing about a {config.kind}.")
    if named_kind(config.kind).role != "language-model":
        for name in LANGUAGE_MODELS:
            if getattr(config, name) != getattr(Config, name):
                raise UserError(f"{flag_of(name)}: is for a language model, and says nothing about a {config.kind}.")
    if not 0 <= config.corruption < 1:
        raise UserError(f"--corruption is {config.corruption}; expected at least 0 and below 1.")
    _check_views(config)
    if config.negatives is not None and config.negatives < 2 and config.mix_negatives:
        raise UserError(f"--mix-negatives mixes two of --negatives, which is {config.negatives}; expected at least 2.")
    _check_where_groups_are(config)
    _check_refresh(config)
    parse_margin(config.guide_margin)
    if config.guide_margin != Config.guide_margin and not config.guide:
        raise UserError("--guide-margin: says how near to the positive the guide's finds are; add --guide MODEL.")
    if config.adapter:
        adapter = parse_adapter(config.adapter)
        if config.gradient_checkpointing and adapter.kind in ("prefix", "connected"):
            raise UserError(
                f"--gradient-checkpointing: runs layers again, which --adapter {adapter.kind} cannot; use --grad-cache."
            )
        if config.sharded and adapter.kind == "adalora":
            raise UserError("--sharded: --adapter adalora compares whole matrices; leave out one of the two.")
    if config.layers_sampled:
        for name in ("adapter", "sharded"):
            if getattr(config, name):
                raise UserError(f"--layers-sampled: trains whole layers, one after another; leave out {flag_of(name)}.")
    if config.contract:
        named_contract(config.contract)
    if config.four_bit and not config.adapter:
        raise UserError("--four-bit: weights in 4 bits cannot learn; add --adapter paper.")
    if config.four_bit and config.sharded:
        raise UserError("--four-bit: 4-bit weights cannot be sharded; leave out one of the two.")


def parse_margin(text: str) -> tuple[float, bool]:
    """Parse `--guide-margin`: the margin, and whether it is a share of the positive's similarity.

    Raises:
        UserError: it is neither a number nor a percentage.
    """
    number, relative = text.removesuffix("%"), text.endswith("%")
    try:
        margin = float(number)
    except ValueError:
        margin = math.nan
    if not math.isfinite(margin):
        raise UserError(f"--guide-margin is {text!r}; expected a similarity such as 0.05, or a share such as 5%.")
    return (margin / 100 if relative else margin), relative


def _check_views(config: Config) -> None:
    """Refuse settings that do not go together with views.

    Raises:
        UserError: a weight without views or not above 0, or groups beside views alone.
    """
    if config.views_weight is not None and config.views is None:
        raise UserError("--views-weight: there are no views; add --views.")
    if config.views_weight is not None and not 0 < config.views_weight < math.inf:
        raise UserError(f"--views-weight is {config.views_weight}; expected more than 0.")
    if config.views is not None and config.sources:
        raise UserError("--views: reads the documents of one collection; leave out --sources.")
    if views_alone(config):
        for name in (
            "groups",
            "negatives_from",
            "negatives",
            "mix_negatives",
            "skip_missing",
            "split",
            "positives_from",
        ):
            if getattr(config, name) != getattr(Config, name):
                raise UserError(
                    f"{flag_of(name)}: --views alone reads documents only; add --views-weight, or leave it out."
                )


def views_alone(config: Config) -> bool:
    """Whether a training reads documents only."""
    return config.views is not None and config.views_weight is None


def _check_dims(dims: Sequence[int], weights: Sequence[float]) -> None:
    """Refuse dimensions of vectors, and their weights, that do not go together.

    Raises:
        UserError: a dimension below 1 or twice, another number of weights, or a weight that is not above 0.
    """
    if bad := [dim for place, dim in enumerate(dims) if dim < 1 or dim in dims[:place]]:
        raise UserError(f"--dims has {bad[0]}; expected different dimensions, each at least 1.")
    if weights and len(weights) != len(dims):
        raise UserError(f"--dims-weights has {len(weights)} numbers for {len(dims)} --dims; expected as many.")
    if bad := [weight for weight in weights if not 0 < weight < math.inf]:
        raise UserError(f"--dims-weights has {bad[0]}; expected more than 0.")


def _check_where_groups_are(config: Config) -> None:
    if config.sources:
        for name in ("collection", "groups"):
            if getattr(config, name) is not None:
                raise UserError(f"{flag_of(name)}: each of --sources names its own; leave out one of the two.")
    elif config.collection is None:
        raise UserError("--collection: names no collection; expected one, or several in a file of --sources.")
    elif config.mix_temperature != Config.mix_temperature:
        raise UserError("--mix-temperature: says how --sources are drawn; add them, or leave it out.")
    if config.heldout_collection is not None and config.heldout_split is None:
        raise UserError("--heldout-collection: no split of it is measured; add --heldout-split.")


def _check_refresh(config: Config) -> None:
    if config.refresh_steps is None:
        for name in ("refresh_depth", "refresh_docs"):
            if getattr(config, name) != getattr(Config, name):
                raise UserError(f"{flag_of(name)}: says where new negatives are from; add --refresh-steps.")
    elif named_kind(config.kind).role != "retriever":
        raise UserError(f"--refresh-steps: a {config.kind} has no vectors to search with; leave it out.")
    elif config.negatives == 0:
        raise UserError("--refresh-steps: finds negatives, and --negatives is 0; leave out one of the two.")


class SourcePart(NamedTuple):
    """A source of a training, as it was asked for.

    Without --sources there is one, without a name.
    """

    name: str
    config: Config
    """The settings of the training, with those of this source in their places."""
    settings: SourceSettings

    @property
    def where(self) -> str:
        """The name of the source in errors."""
        if self.settings.run:
            where = str(self.settings.run)
        else:
            where = str(self.config.groups or f"{self.config.collection} {self.config.split}")
        return f"source {self.name!r} ({where})" if self.name else where


class OpenPart(NamedTuple):
    """A source of a training with its collection and its groups."""

    name: str
    config: Config
    settings: SourceSettings
    collection: Collection
    source: GroupSource


def source_parts(config: Config) -> list[SourcePart]:
    """Return the sources of a training, with the settings of each.

    Raises:
        UserError: the file of --sources cannot be read, or says something that does not fit.
    """
    if not config.sources:
        return [SourcePart("", config, SourceSettings(collection=str(config.collection)))]
    parts = []
    for name, settings in parse_sources(config.sources).items():
        given = {field: getattr(settings, field) for field in OVERRIDES}
        given = {field: value for field, value in given.items() if value not in (None, ())}
        place = {"collection": settings.collection, "groups": settings.groups, "sources": None, "mix_temperature": 1.0}
        parts.append(SourcePart(name, replace(config, **place, **given), settings))
    return parts


def open_collections(parts: Sequence[SourcePart]) -> list[Collection]:
    """Open the collection of each source; sources of the same collection share it."""
    opened = {name: open_collection(name) for name in dict.fromkeys(part.settings.collection for part in parts)}
    return [opened[part.settings.collection] for part in parts]


def open_parts(config: Config) -> list[OpenPart]:
    """Open the sources of a training, with their queries."""
    parts = source_parts(config)
    return [open_part(*pair) for pair in zip(parts, open_collections(parts), strict=True)]


def settled(config: Config, parts: Sequence[OpenPart]) -> Config:
    """Return the settings of the training, as they are once its groups have been opened."""
    return config if config.sources else parts[0].config


def check_first(config: Config) -> None:
    """Refuse settings, names and paths before PyTorch is loaded.

    Raises:
        UserError: as for `check`, or the collection, the groups or the backbone are missing.
    """
    check(config)
    for part in source_parts(config):
        check_collection(part.settings.collection)
        groups = str(part.config.groups or "")
        if groups and not groups.startswith("hf:") and not Path(groups).exists():
            what = f"source {part.name!r}: groups" if part.name else "--groups"
            raise UserError(f"{what} {groups}: no such file; expected groups, such as `shortlist mine` writes.")
    open_folder(config.backbone, wanted=named_kind(config.kind).role, weights=False)
    open_guide(config, weights=False)


def open_guide(config: Config, *, weights: bool = True) -> ModelFolder | None:
    """Open the guide's folder; None without a guide.

    Raises:
        UserError: there is no such model, or it is no retriever.
    """
    return open_folder(config.guide, wanted="retriever", weights=weights) if config.guide else None


def open_part(part: SourcePart, collection: Collection) -> OpenPart:
    """Open the groups of a source with their queries, or make them.

    They are made of judgements or of a run. A reranker's groups that are made of judgements will get negatives, as the
    settings then say.
    """
    config, run = part.config, part.settings.run
    if views_alone(config):
        return OpenPart(part.name, config, part.settings, collection, documents_source(collection))
    if config.groups:
        source = open_groups(str(config.groups), least=config.positives_from)
    elif run:
        source = GroupSource(groups_from_run(open_run(run), part.settings.depth), {}, identity(run))
    else:
        qrels, least = collection.qrels(config.split), config.positives_from or 1
        source = GroupSource(groups_from_qrels(qrels, least), {}, collection.identity(f"qrels/{config.split}"))
        if named_kind(config.kind).role == "reranker" and config.negatives_from is None:
            config = replace(config, negatives_from="bm25")
    if len(without_query(source.groups, source.queries)):
        source = _with_queries(source, config, collection, unjudged=run is not None)
    return OpenPart(part.name, config, part.settings, collection, source)


def _with_queries(source: GroupSource, config: Config, collection: Collection, *, unjudged: bool) -> GroupSource:
    """Add the texts of the queries, and judgements beside the groups, from the collection.

    Beside groups that are on disk they stay there too.

    Args:
        unjudged: whether the queries need not be judged.
    """
    on_bad, stored = ignore if config.skip_missing else None, isinstance(source.groups, StoredGroups)
    if (unjudged or stored) and isinstance(collection, FolderCollection):
        queries = collection.stored_queries(config.split, on_bad)
    else:
        queries = {query.query_id: query for query in collection.queries(config.split, on_bad)}
    both = {**queries, **source.queries} if source.queries else queries
    return source._replace(queries=both, judged=_judged(config, collection, source.groups))


def documents_source(collection: Collection) -> GroupSource:
    """Make a group of each document, as its own positive; views will replace the texts.

    The query's text is the id, so that no two queries seem to be the same.
    """
    doc_ids = [document.doc_id for document in collection.corpus() if document.text.strip()]
    groups = [Group(doc_id, (doc_id,), ()) for doc_id in doc_ids]
    return GroupSource(groups, {doc_id: Query(doc_id, doc_id) for doc_id in doc_ids}, collection.identity("corpus"))


def _judged(config: Config, collection: Collection, groups: Sequence[Group]) -> Mapping[str, frozenset[str]]:
    """Find the judged documents of the groups' queries that are relevant, but in no group.

    Where they stay on disk, those in a group are among them.
    """
    if not config.groups:
        return {}
    try:
        if isinstance(groups, StoredGroups) and isinstance(collection, FolderCollection):
            return collection.stored_relevant(config.split, config.positives_from or 1)
        qrels = collection.qrels(config.split)
    except UserError:  # a split without judgements has queries all the same
        return {}
    named, least = dict[str, set[str]](), config.positives_from or 1
    for group in groups:
        named.setdefault(group.query_id, set()).update(group.positives)
    relevant = {
        query_id: frozenset(doc_id for doc_id, grade in qrels.get(query_id, {}).items() if grade >= least) - doc_ids
        for query_id, doc_ids in named.items()
    }
    return {query_id: doc_ids for query_id, doc_ids in relevant.items() if doc_ids}


def with_names(config: Config, backbone: ModelFolder) -> Config:
    """Complete the names of models, so that one model has one name in the job."""
    guide = open_guide(config, weights=False)
    return replace(config, backbone=backbone.name, guide=guide.name if guide else None)


def job_of(config: Config, backbone: ModelFolder, parts: Sequence[OpenPart]) -> JobSpec:
    """Describe the job of training.

    With --sources, it is known by the settings of each source and the identity of all that it reads.
    """
    guide, found = open_guide(config, weights=False), [_identities(part) for part in parts]
    sources = [[part.name, decided(part.settings) | own] for part, own in zip(parts, found, strict=True)]
    named = [place for part in parts for place in (part.config.collection, part.config.groups, part.settings.run)]
    places = named if config.sources else []
    inputs = {
        "backbone": backbone.identity,
        **({"sources": sources} if config.sources else found[0]),
        **_heldout_identity(config),
        **({"guide": guide.identity} if guide else {}),
    }
    written = f"{CHECKPOINTS}/step-*"
    aside = [LOG, DRAWING, f"{EVENTS}/events*", written]
    reads = [backbone.whole.path, *([guide.whole.path] if guide else [])]
    reads += [Path(place) for place in places if place and Path(place).exists()]
    return JobSpec("train", inputs, folder=True, parts=written, aside=aside, reads=reads)


def _identities(part: OpenPart) -> dict[str, str]:
    """Return the identities of what a source reads."""
    judgements = {"judgements": part.collection.identity(f"qrels/{part.config.split}")} if part.source.judged else {}
    return {
        "collection": part.collection.identity("corpus", *(() if views_alone(part.config) else ("queries",))),
        "groups": part.source.identity,
        **judgements,
    }


def _heldout_identity(config: Config) -> dict[str, str]:
    if config.heldout_collection is None:
        return {}
    parts = ("corpus", "queries", f"qrels/{config.heldout_split}")
    return {"heldout_collection": open_collection(config.heldout_collection).identity(*parts)}


def has_run(config: Config) -> bool:
    """Whether the output is finished, without PyTorch; if so, this prints a message.

    Of the processes that torchrun starts, the first alone may say so, once all have met.
    """
    left = config.keep == 1 and any((config.out / CHECKPOINTS).glob("step-*"))
    if config.dry_run or left or "RANK" in os.environ:
        return False
    parts = open_parts(config)
    config = settled(config, parts)
    backbone = open_folder(config.backbone, wanted=named_kind(config.kind).role, weights=False)
    config = with_names(config, backbone)
    return is_done(config, job_of(config, backbone, parts))


def starts(config: Config) -> bool:
    """Start several processes that train, and wait for them; False if one will do.

    Raises:
        UserError: a process fails.
    """
    if config.dry_run or "RANK" in os.environ or (processes := num_processes(config)) == 1:
        return False
    settings = settings_of(config) | {"processes": processes}
    flags = to_flags(Config, {name: value for name, value in settings.items() if value is not None}, where="train")
    run_together(["train", *flags], processes, on_gpus=may_have_gpu())
    return True


def num_processes(config: Config) -> int:
    """Choose how many processes of this machine train together, by its cores and the settings.

    A training goes on with as many as it was begun with, so that its weights come out the same.
    """
    if config.processes is not None:
        return config.processes
    if "RANK" in os.environ or may_have_gpu() or config.sharded or config.four_bit:
        return 1
    if recorded(config, stage="train") == "begun":
        return (read_manifest(config.out) or {}).get("decided", {}).get("processes", 1)
    if config.steps is not None and config.steps < SHARED_STEPS:
        return 1
    folder = open_folder(config.backbone, wanted=named_kind(config.kind).role, weights=not config.dry_run)
    smallest, largest = SHARED_BYTES
    fits = smallest <= sum(path.stat().st_size for path in folder.weight_files) <= largest
    return min(num_cores(), MOST_PROCESSES) if fits else 1
