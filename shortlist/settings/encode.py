"""Settings of the stage `encode`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from shortlist.config import NotInJob, SpeedOnly, at_defaults, flag_of
from shortlist.data.collections import Collection, check_collection, open_collection
from shortlist.data.jobs import JobSpec, is_done, is_finished
from shortlist.engine import Engine, check_engine
from shortlist.errors import UserError
from shortlist.models.files import Precision
from shortlist.models.folder import ModelFolder, check_model, open_folder
from shortlist.models.kinds import kind_in
from shortlist.text.contract import InputContract
from shortlist.text.segments import Segments, refuse_unused, segment_contract, unused_settings

STORE_FILES = ("shard-*", "order-*.bin", "snapshot.json", "codebook.safetensors", "vocabulary.json")
"""Patterns of the files of a store."""
SKIPPED = "skipped.txt"
"""The list of the records that were left out, in a store's folder."""


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str
    """Model folder or hub name."""
    collection: str
    """Folder, `irds:` or `hf:` name."""
    out: NotInJob[Path]
    """Folder for the vectors; the same job is continued where it left off, another job is refused."""
    contract: str | None = None
    """Input contract by name, for a model folder without one."""
    max_length: int | None = None
    """Most tokens of a document (None: the model's limit)."""
    prompt: str | None = None
    """Name of a prompt of the model's contract, in place of that of its documents."""
    dims: int | None = None
    """Numbers to keep of each vector, the first ones, for a model trained with `train --dims` (None: all)."""
    segments: Segments = "whole"
    """whole: embed each document from its beginning to --max-length. Otherwise embed segments of --window tokens: only
    the first (firstp), the mean vector of all (avgp), or one vector for each, the best of which counts in search
    (maxp)."""
    window: int = 512
    """Tokens of a segment, prompt and title included."""
    stride: int = 256
    """Tokens from the beginning of a segment's text to the beginning of the next one's."""
    precision: Precision = "fp32"
    """Number type that the model computes in; for bf16 and int8, the agreement with fp32 on a sample is printed."""
    dtype: Literal["float32", "float16", "bfloat16", "int8", "uint8", "residual1", "residual2", "residual4"] = "float32"
    """Number type of the vectors on disk; int8 has a scale for each vector. A late model's may be residual codes of 1,
    2 or 4 bits for each dimension; a sparse model's term weights are float32, float16, or uint8 with a scale for each
    document."""
    pool_tokens: float | None = None
    """Average a late model's vectors of so many similar tokens of a document into one (None: keep each)."""
    keep_tokens: int | None = None
    """Most vectors of a document to keep of a late model: those that are important and unlike one another (None:
    all)."""
    keep_terms: int | None = None
    """Most terms of a document to keep of a sparse model, the heaviest (None: all)."""
    token_budget: SpeedOnly[int | None] = None
    """Tokens per forward pass, padding included (None: 2,048 on a CPU, 16,384 on a GPU)."""
    shard_size: int = 20_000
    """Documents per shard, which are sorted by length together; an interruption loses at most one shard's work. A shard
    of a late model has fewer where these might have more than 524,288 tokens."""
    workers: SpeedOnly[int | None] = None
    """Processes that embed shards at the same time (None: one per GPU, or one without GPUs; on Ray, one per node or
    GPU)."""
    engine: SpeedOnly[Engine] = "local"
    """`local`: this machine; `ray`: a Ray cluster, the running one if there is one."""
    skip_bad: bool = False
    """Leave out records that cannot be used, count them and list them in skipped.txt, instead of stopping."""
    update: NotInJob[bool] = False
    """Update the vectors for a changed corpus: only new and changed documents are embedded."""
    compact: NotInJob[bool] = False
    """Remove the vectors of documents that are no longer in the corpus from disk, after updates."""
    dry_run: NotInJob[bool] = False
    """Measure for up to a minute and print what encoding would take, instead of doing it."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def check(config: Config) -> None:
    """Refuse settings that no corpus suits.

    Raises:
        UserError: a setting is out of range.
    """
    check_engine(config.engine)
    if config.shard_size < 1:
        raise UserError(f"--shard-size is {config.shard_size}; expected at least 1.")
    if config.pool_tokens is not None and not config.pool_tokens >= 1:
        raise UserError(f"--pool-tokens is {config.pool_tokens}; expected at least 1, the tokens for each vector.")
    if config.keep_tokens is not None and config.keep_tokens < 1:
        raise UserError(f"--keep-tokens is {config.keep_tokens}; expected at least 1, the vectors of each document.")
    if config.keep_terms is not None and config.keep_terms < 1:
        raise UserError(f"--keep-terms is {config.keep_terms}; expected at least 1, the terms of each document.")


def check_first(config: Config) -> None:
    """Refuse settings, names and paths before PyTorch is loaded.

    Raises:
        UserError: as for `check`, or the collection or the model is missing, or is of another kind.
    """
    check(config)
    check_collection(config.collection)
    check_model(config.model, "document", config.contract)


def contract_of(config: Config, model: ModelFolder) -> InputContract:
    """Return the input contract for the documents.

    Raises:
        UserError: there is none, or a setting that its kind of model has no use for.
    """
    contract = model.contract("document", config.contract).with_prompt("document", config.prompt)
    _refuse_unused(config, model.name, kind_in(model, contract, "document").used_as)
    given = [name for name in ("window", "stride") if getattr(config, name) != getattr(Config, name)]
    refuse_unused(config.segments, given)
    lengths = {"window": config.window, "stride": config.stride, "max_length": config.max_length}
    return model.check_lengths(segment_contract(contract, config.segments, **lengths).with_dims(config.dims))


class Unused(NamedTuple):
    """Settings that a kind of model has no use for."""

    gives: str
    """What it gives, in words."""
    settings: tuple[str, ...]
    """Fields of the Config that must be as they are by default."""
    dtypes: tuple[str, ...]
    """Number types that it is not stored in."""
    segments: tuple[str, ...]
    """Ways with segments that it does not know."""


WITHOUT: dict[str, Unused] = {
    "Retriever": Unused(
        "one vector for each text",
        ("pool_tokens", "keep_tokens", "keep_terms"),
        ("uint8", "residual1", "residual2", "residual4"),
        (),
    ),
    "LateRetriever": Unused("a vector for each token", ("keep_terms",), ("uint8",), ("maxp", "avgp")),
    "SparseRetriever": Unused(
        "weights for terms",
        ("pool_tokens", "keep_tokens", "dims"),
        ("bfloat16", "int8", "residual1", "residual2", "residual4"),
        ("maxp", "avgp"),
    ),
}
"""What is without use for a kind of model, by the class that it is used through."""
OF_KIND = {"uint8": "sparse", "bfloat16": "dense and late", "int8": "dense and late", "keep_terms": "sparse"}
"""The kinds of models that a setting or number type is for, where that is not `late`."""


def _refuse_unused(config: Config, name: str, used_as: str) -> None:
    """Refuse settings without use for a kind of model."""
    unused = WITHOUT[used_as]
    given = [setting for setting in unused.settings if getattr(config, setting) is not None]
    given += [config.dtype] if config.dtype in unused.dtypes else []
    for setting in given:
        flag = f"--dtype {setting}" if setting == config.dtype else flag_of(setting)
        whose = OF_KIND.get(setting, "dense and late" if setting == "dims" else "late")
        raise UserError(f"{flag} is for {whose} models, and {name} gives {unused.gives}; leave it out.")
    if config.segments in unused.segments:
        raise UserError(
            f"--segments {config.segments} is for models with one vector for each text, and {name} gives "
            f"{unused.gives}; leave it out, or say --segments firstp."
        )


def job_of(config: Config, model: ModelFolder, collection: Collection) -> JobSpec:
    """Describe the job of filling a store."""
    return JobSpec(
        "encode",
        {
            "model": model.identity,
            "contract": contract_of(config, model).of_documents(),
            "collection": collection.identity("corpus"),
        },
        as_if=at_defaults(config, unused_settings(config.segments)),
        folder=True,
        update=("collection",) if config.update else (),
        parts="shard-*.json",
        writes=STORE_FILES,
        aside=[SKIPPED],
        reads=[model.whole.path],
    )


def are_current(config: Config) -> bool:
    """Whether the described vectors are there and made from what the collection holds now."""
    return is_finished(config, job_of(config, open_folder(config.model), open_collection(config.collection)))


def has_run(config: Config) -> bool:
    """Whether the output is finished, without PyTorch; if so, this prints a message."""
    if config.dry_run or config.compact:
        return False
    return is_done(config, job_of(config, open_folder(config.model), open_collection(config.collection)))
