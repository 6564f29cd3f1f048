"""Stage `train`: fine-tune a retriever or a reranker."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from shortlist.data.collections import open_collection
from shortlist.data.groups import groups_from_qrels, read_groups
from shortlist.data.manifest import Job, identity, start_job
from shortlist.errors import UserError
from shortlist.math.losses import LOSSES
from shortlist.models.backbone import add_lora, parse_lora
from shortlist.models.checkpoint import model_identity, reranker_to_train, retriever_to_train, save_model
from shortlist.models.embed import default_token_budget, pick_device
from shortlist.models.reranker import Reranker
from shortlist.models.retriever import Retriever
from shortlist.progress import say
from shortlist.records import Group
from shortlist.text.contract import InputContract, named_contract
from shortlist.train.examples import batches, check_groups, num_steps
from shortlist.train.loop import fit, new_optimizer
from shortlist.train.resume import drop_checkpoint, load_checkpoint, save_checkpoint
from shortlist.train.steps import Example, reranker_example, retriever_example

TEMPERATURES = {"retriever": 0.01, "reranker": 1.0}


@dataclass(frozen=True, kw_only=True)
class Config:
    kind: tyro.conf.Positional[Literal["retriever", "reranker"]]
    """What to train."""
    backbone: str
    """Model to start from: folder or hub name. A retriever may become a reranker; a reranker keeps its head."""
    collection: str
    """Where the texts are: folder, `irds:` or `hf:` name."""
    out: Path
    """Folder for the model; continued where it left off if it holds the same job, refused if another."""
    groups: Path | None = None
    """Groups from `shortlist mine`. Without them, the judged pairs of --split, and in-batch negatives only."""
    split: str = "train"
    """Which queries of the collection the groups are about."""
    contract: str | None = None
    """Input contract by name (None: the backbone's own, else the paper's for its architecture)."""
    query_length: int | None = None
    """Most tokens of a query (None: the contract's)."""
    max_length: int | None = None
    """Most tokens of a document or, for a reranker, of a pair (None: the contract's)."""
    lora: str | None = None
    """Train a LoRA instead of all weights: paper, paper+k, or r=16,alpha=32,dropout=0.05,targets=q_proj+v_proj."""
    negatives: int | None = None
    """Negatives per query and step, another slice each epoch (None: all of the group's)."""
    batch_size: int = 128
    """Queries per step."""
    epochs: int = 1
    """Times through the groups."""
    steps: int | None = None
    """Stop after this many steps, whatever --epochs says."""
    learning_rate: float = 1e-4
    """At its highest, after the warm-up; then it decays linearly to 0."""
    warmup_steps: int = 100
    """Steps over which the learning rate grows."""
    temperature: float | None = None
    """Divides the scores in the loss (None: 0.01 for a retriever, 1 for a reranker)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of matrix products; weights and loss are fp32 in both."""
    token_budget: int | None = None
    """Tokens per forward pass, padding included (None: 2,048 on a CPU, 65,536 on a GPU)."""
    grad_cache: bool = False
    """Run the model twice per step and hold one micro-batch in memory at a time: any --batch-size fits."""
    checkpoint_steps: int = 100
    """Steps between checkpoints."""
    seed: int = 0
    """Of the order of groups, the choice of negatives, dropout and a new head."""
    overwrite: bool = False
    """Replace an output of another job instead of refusing."""


def train(config: Config, model: Retriever | Reranker, groups: list[Group], job: Job) -> dict[str, int | float]:
    """Train the model's parameters that require gradients, from the job's checkpoint if it has one."""
    collection = open_collection(config.collection)
    queries = {query.query_id: query for query in collection.queries(config.split)}
    check_groups(groups, queries, where=str(config.groups or f"{config.collection} {config.split}"))
    device = pick_device()
    model.to(device)
    optimizer = new_optimizer(model, learning_rate=config.learning_rate)
    first_step = load_checkpoint(job.out, model, optimizer)
    if first_step:
        say(f"train: continuing after step {first_step}.")
    steps = config.steps or num_steps(len(groups), config.batch_size, config.epochs)
    temperature = TEMPERATURES[config.kind] if config.temperature is None else config.temperature

    def examples() -> Iterator[Example]:
        for batch in batches(
            groups,
            queries,
            collection,
            batch_size=config.batch_size,
            negatives=config.negatives,
            seed=config.seed,
            first_step=first_step,
            steps=steps,
        ):
            if isinstance(model, Retriever):
                yield retriever_example(model, batch, loss=LOSSES["infonce"], temperature=temperature)
            else:
                yield reranker_example(model, batch, loss=LOSSES["infonce"], temperature=temperature)

    def checkpoint(step: int) -> None:
        if step % config.checkpoint_steps == 0 and step < steps:
            save_checkpoint(job.out, model, optimizer, step=step)

    return fit(
        model,
        examples(),
        optimizer,
        first_step=first_step,
        steps=steps,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        step_options={
            "token_budget": config.token_budget or default_token_budget(device),
            "bf16": config.precision == "bf16",
            "cached": config.grad_cache,
        },
        seed=config.seed,
        log=job.out / "log.jsonl",
        checkpoint=checkpoint,
    )


def run(config: Config) -> None:
    """Train and save the model with its contract and manifest."""
    _check(config)
    start = time.perf_counter()
    contract = named_contract(config.contract) if config.contract else None
    lora = parse_lora(config.lora) if config.lora else None
    collection = open_collection(config.collection)
    groups = read_groups(config.groups) if config.groups else groups_from_qrels(collection.qrels(config.split))
    job = start_job(
        config,
        stage="train",
        inputs={
            "backbone": model_identity(config.backbone),
            "collection": collection.identity("corpus", "queries"),
            "groups": identity(config.groups) if config.groups else collection.identity(f"qrels/{config.split}"),
        },
        ignore=("checkpoint_steps", "grad_cache", "token_budget"),
        folder=True,
    )
    if job.done:
        return
    model = _model(config, contract)
    torch.manual_seed(config.seed)  # of the adapter's weights
    adapter = add_lora(model.backbone, lora) if lora else None
    last = train(config, model, groups, job)
    save_model(model.cpu(), job.out, adapter=adapter, base=config.backbone)
    job.finish(num_groups=len(groups), seconds=round(time.perf_counter() - start, 1), **last)
    drop_checkpoint(job.out)


def _check(config: Config) -> None:
    for name in ("batch_size", "epochs", "steps", "checkpoint_steps", "token_budget"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; expected at least 1.")
    for name in ("negatives", "warmup_steps", "seed"):
        value = getattr(config, name)
        if value is not None and value < 0:
            raise UserError(f"--{name.replace('_', '-')} is {value}; expected at least 0.")
    if config.temperature is not None and config.temperature <= 0:
        raise UserError(f"--temperature is {config.temperature}; expected more than 0.")


def _model(config: Config, contract: InputContract | None) -> Retriever | Reranker:
    if config.kind == "retriever":
        model: Retriever | Reranker = retriever_to_train(config.backbone, contract)
    else:
        model = reranker_to_train(config.backbone, contract, seed=config.seed)
    model.inputs.contract = model.inputs.contract.with_lengths(query=config.query_length, document=config.max_length)
    return model
