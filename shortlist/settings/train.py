"""Settings of a training run, and the checks that need neither files nor PyTorch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from shortlist.config import NotInJob, SpeedOnly, flag_of, settings_of, to_flags
from shortlist.cores import may_have_gpu, num_cores
from shortlist.data.collections import Collection, check_collection, open_collection
from shortlist.data.groups import GroupSource, groups_from_qrels, open_groups
from shortlist.data.lines import ignore
from shortlist.data.manifest import is_done, read_manifest, recorded
from shortlist.errors import UserError
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.models.kinds import named_kind
from shortlist.models.lora import parse_lora
from shortlist.records import Group
from shortlist.text.contract import named_contract
from shortlist.together import run_together

MOST_PROCESSES = 4
"""Most processes that train together unless told otherwise, as each holds the whole model."""
SHARED_BYTES = (4 << 20, 512 << 20)
"""Smallest and largest weights, on the disk, of models that several processes train. Smaller ones are trained by the
time that processes take to start; larger ones take too much memory several times, and keep all threads busy."""
SHARED_STEPS = 5
"""Fewest --steps that are worth several processes."""

CHECKPOINTS = "checkpoints"
"""The folder of a training's checkpoints, in its --out."""


@dataclass(frozen=True, kw_only=True)
class Config:
    kind: tyro.conf.Positional[str]
    """What to train: retriever, reranker or language-model. A language model, trained on the texts of judged pairs, is
    a backbone for the other two."""
    backbone: str
    """Model to start from: folder or hub name. A retriever may become a reranker; a reranker keeps its head."""
    collection: str
    """Collection with the texts: folder, `irds:` or `hf:` name."""
    out: NotInJob[Path]
    """Folder for the model; the same job is continued where it left off, another job is refused."""
    groups: str | Path | None = None
    """Groups from `shortlist mine`, Tevatron's training JSONL, or an `hf:` name. Without it, the judged pairs of
    --split are used: a retriever learns from in-batch negatives, a reranker from those of --negatives-from."""
    negatives_from: Literal["random", "bm25"] | None = None
    """Give negatives to groups that have none: bm25 draws them from its 200 best hits for the query, random from the
    whole corpus (None: bm25 for a reranker without --groups, otherwise such groups stay as they are)."""
    split: str = "train"
    """Split of the collection that has the groups' queries."""
    skip_missing: NotInJob[bool] = False
    """Leave out queries and documents of the groups, or of the judgements, that the collection lacks, and count them,
    instead of stopping."""
    contract: str | None = None
    """Input contract by name (None: the backbone's, or the paper's for its architecture if it has none)."""
    query_length: int | None = None
    """Most tokens of a query (None: the contract's limit)."""
    max_length: int | None = None
    """Most tokens of a document or, for a reranker, of a pair (None: the contract's limit)."""
    lora: str | None = None
    """Train a LoRA instead of all weights: paper, paper+k, or r=16,alpha=32,dropout=0.05,targets=q_proj+v_proj."""
    four_bit: bool = False
    """Keep the weights below the LoRA in 4 bits (QLoRA)."""
    bidirectional: bool = False
    """Let every token of a decoder see the whole input, not only the tokens before it."""
    negatives: int | None = None
    """Negatives per query and step, another slice each epoch (None: all of the group)."""
    batch_size: int = 128
    """Queries per step."""
    epochs: int = 1
    """Number of passes over the groups."""
    steps: int | None = None
    """Stop after this many steps, whatever --epochs says."""
    learning_rate: float = 1e-4
    """Highest learning rate, reached after the warm-up; then it decays linearly to 0."""
    warmup_steps: int = 100
    """Steps over which the learning rate grows."""
    loss: tuple[str, ...] = ("infonce",)
    """Loss to minimise: NAME, or several NAME=WEIGHT that are added up, and NAME.PARAMETER=VALUE. infonce picks the
    positive; kl follows the teacher's scores in --groups (`mine --teacher`), where good and bad documents should differ
    by about kl.teacher_temperature (1)."""
    temperature: float | None = None
    """Divides the scores in every loss that has a temperature (None: by 0.01 for a retriever, 1 for a reranker)."""
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
    at_least |= dict.fromkeys(("processes",), 1)
    at_least |= dict.fromkeys(("heldout_steps", "heldout_queries", "heldout_docs", "query_length", "max_length"), 1)
    at_least |= dict.fromkeys(("negatives", "warmup_steps", "seed"), 0)
    for name, least in at_least.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"{flag_of(name)} is {value}; expected at least {least}.")
    for name in ("temperature", "learning_rate"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UserError(f"{flag_of(name)} is {value}; expected more than 0.")
    if named_kind(config.kind).role == "language-model":
        for name in ("loss", "temperature", "negatives", "query_length", "bidirectional", "heldout_split"):
            if getattr(config, name) != getattr(Config, name):
                raise UserError(f"{flag_of(name)}: says nothing about a language model; leave it out.")
    if config.lora:
        parse_lora(config.lora)
    if config.contract:
        named_contract(config.contract)
    if config.four_bit and not config.lora:
        raise UserError("--four-bit: weights in 4 bits cannot learn; add --lora paper.")
    if config.four_bit and config.sharded:
        raise UserError("--four-bit: 4-bit weights cannot be sharded; leave out one of the two.")


def check_first(config: Config) -> None:
    """Refuse settings, names and paths before PyTorch is loaded.

    Raises:
        UserError: as for `check`, or the collection, the groups or the backbone are missing.
    """
    check(config)
    check_collection(config.collection)
    groups = str(config.groups or "")
    if groups and not groups.startswith("hf:") and not Path(groups).exists():
        raise UserError(f"--groups {groups}: no such file; expected groups, such as `shortlist mine` writes.")
    open_folder(config.backbone, wanted=named_kind(config.kind).role, weights=False)


def open_source(config: Config, collection: Collection) -> tuple[Config, GroupSource]:
    """Open the groups with their queries, or make them of judgements.

    A reranker's groups that are made here will get negatives, as the returned config says.
    """
    if config.groups:
        source = open_groups(str(config.groups))
    else:
        qrels = collection.qrels(config.split)
        source = GroupSource(groups_from_qrels(qrels), {}, collection.identity(f"qrels/{config.split}"))
        if named_kind(config.kind).role == "reranker" and config.negatives_from is None:
            config = replace(config, negatives_from="bm25")
    if any(group.query_id not in source.queries for group in source.groups):
        on_bad = ignore if config.skip_missing else None
        queries = {query.query_id: query for query in collection.queries(config.split, on_bad)}
        source = source._replace(queries=queries | source.queries, judged=_judged(config, collection, source.groups))
    return config, source


def _judged(config: Config, collection: Collection, groups: Sequence[Group]) -> dict[str, frozenset[str]]:
    """Find the judged documents of the groups' queries that are relevant, but in no group."""
    if not config.groups:
        return {}
    try:
        qrels = collection.qrels(config.split)
    except UserError:  # a split without judgements has queries all the same
        return {}
    named: dict[str, set[str]] = {}
    for group in groups:
        named.setdefault(group.query_id, set()).update(group.positives)
    relevant = {
        query_id: frozenset(doc_id for doc_id, grade in qrels.get(query_id, {}).items() if grade > 0) - doc_ids
        for query_id, doc_ids in named.items()
    }
    return {query_id: doc_ids for query_id, doc_ids in relevant.items() if doc_ids}


def job_of(config: Config, backbone: ModelFolder, collection: Collection, source: GroupSource) -> dict[str, Any]:
    """Describe the job of training, for `start_job`."""
    return {
        "stage": "train",
        "inputs": {
            "backbone": backbone.identity,
            "collection": collection.identity("corpus", "queries"),
            "groups": source.identity,
            **({"judgements": collection.identity(f"qrels/{config.split}")} if source.judged else {}),
        },
        "folder": True,
        "parts": f"{CHECKPOINTS}/step-*",
        "reads": [backbone.whole.path],
    }


def has_run(config: Config) -> bool:
    """Whether the output is finished, without PyTorch; if so, this prints a message.

    Of the processes that torchrun starts, the first alone may say so, once all have met.
    """
    left = config.keep == 1 and (config.out / CHECKPOINTS).exists()
    if config.dry_run or left or "RANK" in os.environ:
        return False
    collection = open_collection(config.collection)
    config, source = open_source(config, collection)
    backbone = open_folder(config.backbone, wanted=named_kind(config.kind).role, weights=False)
    config = replace(config, backbone=backbone.name)
    return is_done(config, **job_of(config, backbone, collection, source))


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
