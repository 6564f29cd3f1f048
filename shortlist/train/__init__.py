"""Stage `train`: fine-tune a retriever or a reranker, in one process or in many that torchrun starts."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import nn

from shortlist.data.collections import Collection, open_collection
from shortlist.data.groups import GroupSource, groups_from_qrels, open_groups
from shortlist.data.manifest import Job, start_job
from shortlist.errors import UserError
from shortlist.math.losses import LOSSES
from shortlist.math.sampling import shortfall
from shortlist.models.backbone import add_lora, checkpoint_layers, parse_lora
from shortlist.models.checkpoint import model_identity, reranker_to_train, retriever_to_train, save_model
from shortlist.models.embed import default_token_budget
from shortlist.models.reranker import Reranker
from shortlist.models.retriever import Retriever
from shortlist.models.training_linear import speed_up_training
from shortlist.progress import say
from shortlist.text.contract import InputContract, named_contract
from shortlist.train.examples import batches, check_groups, num_steps
from shortlist.train.forecast import forecast
from shortlist.train.gather import ALONE, World, in_turn, join, on_any, own_device, shard
from shortlist.train.heldout import Evaluation, draw_heldout, reranker_evaluation, retriever_evaluation
from shortlist.train.log import MEASURE, TrainingLog, draw_loss, read_log
from shortlist.train.loop import Record, fit, new_optimizer
from shortlist.train.resume import (
    State,
    drop_checkpoints,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    whole_weights,
)
from shortlist.train.steps import Example, compute_outputs, reranker_example, retriever_example

TEMPERATURES = {"retriever": 0.01, "reranker": 1.0}

CANDIDATES = 20
"""Of BM25's, for each held-out query of a reranker."""


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
    groups: str | None = None
    """Groups from `shortlist mine`, Tevatron's training JSONL, or an `hf:` name. Without them, the judged pairs of
    --split, and in-batch negatives only."""
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
    four_bit: bool = False
    """Keep the weights below the LoRA in 4 bits (QLoRA)."""
    bidirectional: bool = False
    """Let every token of a decoder see the whole input, not only what is before it."""
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
    """Of matrix products; what trains and the loss are fp32 in both."""
    attention: str | None = None
    """How attention is computed, in transformers' words: sdpa, flash_attention_2, ... (None: its default)."""
    token_budget: int | None = None
    """Tokens per forward pass, padding included (None: 2,048 on a CPU, 65,536 on a GPU); halved if memory runs out."""
    grad_cache: bool = False
    """Run the model twice per step and hold one micro-batch in memory at a time: any --batch-size fits."""
    gradient_checkpointing: bool = False
    """Hold one layer's activations in memory at a time, and run layers twice: any length fits."""
    sharded: bool = False
    """Under torchrun: split weights, gradients and optimizer among the processes (FSDP), for models too large for one
    device. Otherwise every process holds all of the model."""
    checkpoint_steps: int = 100
    """Steps between checkpoints."""
    keep: int = 1
    """Checkpoints that stay, besides the best; with 1, none stays once the model is saved."""
    heldout_split: str | None = None
    """Split to measure MRR@10 on while training; the model saved is then the best one, not the last."""
    heldout_steps: int = 100
    """Steps between such measurements; the last step is always measured."""
    heldout_queries: int = 100
    """At most so many queries of that split."""
    heldout_docs: int = 2000
    """Documents they are searched in, theirs included; a reranker orders BM25's best 20 of them for each query."""
    tensorboard: bool = False
    """Write TensorBoard's files too."""
    seed: int = 0
    """Of the order of groups, the choice of negatives, dropout and a new head."""
    dry_run: bool = False
    """Say what training would take, in steps, tokens and memory, without loading weights or writing anything."""
    overwrite: bool = False
    """Replace an output of another job instead of refusing."""


def run(config: Config) -> None:
    """Train and save the model with its contract and manifest; under torchrun, in all its processes together."""
    _check(config)
    start = time.perf_counter()
    with join() as world:
        collection = open_collection(config.collection)
        source = _groups(config, collection)
        empty, _ = _adapted(config, empty=True, attention=config.attention)  # refuses what does not fit together
        if config.heldout_split:
            collection.qrels(config.heldout_split)
        if config.dry_run:
            _foresee(config, empty, collection, source, world)
            return
        job = _claim(config, collection, source) if world.leads else None
        if on_any(job is not None and job.done, world):  # where the others wait for the first one's claim
            return
        train(config, collection, source, world)
        if job:
            draw_loss(config.out)
            counts = {"num_groups": len(source.groups), "short_groups": shortfall(source.groups, config.negatives or 0)}
            seconds = round(time.perf_counter() - start, 1)
            job.finish(**counts, processes=world.size, seconds=seconds, **_results(config.out))
            if config.keep == 1:
                drop_checkpoints(config.out)


def train(config: Config, collection: Collection, source: GroupSource, world: World = ALONE) -> None:
    """Train from the newest checkpoint in `config.out`, if there is one, and save the model there."""
    device, bf16 = own_device(world), config.precision == "bf16"
    model, adapter = in_turn(partial(_model, config, device, world), world if config.sharded else ALONE)
    optimizer = new_optimizer(model, learning_rate=config.learning_rate)
    state = load_checkpoint(config.out, model, optimizer, adapter=adapter is not None)
    if state:
        say(f"train: continuing after step {state.step}.")
    state = state or State(token_budget=config.token_budget or default_token_budget(device), cached=config.grad_cache)
    steps, evaluation = _num_steps(config, source), _evaluation(config, collection, model)
    files: dict[str, Any] = {"adapter": adapter, "base": config.backbone}

    def after(state: State, record: Record) -> State:
        write(record)
        if evaluation and (state.step % config.heldout_steps == 0 or state.step == steps):
            model.eval()
            outputs = compute_outputs(
                model, evaluation.token_ids, token_budget=state.token_budget, bf16=bf16, world=world
            )
            score = evaluation.mrr(outputs)
            model.train()
            write({"step": state.step, MEASURE: round(score, 6)})
            say(f"step {state.step}: held-out MRR@10 {score:.4f}")
            if score > state.best_score:
                state = state._replace(best_step=state.step, best_score=score)
        if state.step == state.best_step or (state.step % config.checkpoint_steps == 0 and state.step < steps):
            save_checkpoint(config.out, model, optimizer, state, keep=config.keep, world=world, **files)
        return state

    with _log(config, state, world) as write:
        state = fit(
            model,
            _examples(config, collection, source, model, range(state.step, steps)),
            optimizer,
            state,
            steps=steps,
            learning_rate=config.learning_rate,
            warmup_steps=config.warmup_steps,
            bf16=bf16,
            seed=config.seed,
            after=after,
            world=world,
        )
    if evaluation and state.best_step != state.step:
        load_weights(config.out, model, state.best_step, adapter=adapter is not None)
    weights = whole_weights(model, adapter=adapter is not None, world=world)
    if world.leads:
        save_model(model, config.out, weights=weights, **files)


def _check(config: Config) -> None:
    """Refuse settings that mean nothing, before anything is read."""
    at_least = dict.fromkeys(("batch_size", "epochs", "steps", "checkpoint_steps", "token_budget", "keep"), 1)
    at_least |= dict.fromkeys(("heldout_steps", "heldout_queries", "heldout_docs", "query_length", "max_length"), 1)
    at_least |= dict.fromkeys(("negatives", "warmup_steps", "seed"), 0)
    for name, least in at_least.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}; expected at least {least}.")
    for name in ("temperature", "learning_rate"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} is {value}; expected more than 0.")
    if config.lora:
        parse_lora(config.lora)
    if config.contract:
        named_contract(config.contract)
    if config.four_bit and not config.lora:
        raise UserError("--four-bit: weights in 4 bits cannot learn; add --lora paper.")
    if config.four_bit and config.sharded:
        raise UserError("--four-bit: 4-bit weights cannot be sharded; leave out one of the two.")


def _groups(config: Config, collection: Collection) -> GroupSource:
    """The groups with their queries; says how many are short of negatives."""
    if config.groups:
        source = open_groups(config.groups)
    else:
        qrels = collection.qrels(config.split)
        source = GroupSource(groups_from_qrels(qrels), {}, collection.identity(f"qrels/{config.split}"))
    if any(group.query_id not in source.queries for group in source.groups):
        queries = {query.query_id: query for query in collection.queries(config.split)}
        source = source._replace(queries=queries | source.queries)
    check_groups(source.groups, source.queries, where=config.groups or f"{config.collection} {config.split}")
    if short := shortfall(source.groups, config.negatives or 0):
        say(f"train: {short:,} of {len(source.groups):,} groups have fewer than {config.negatives} negatives.")
    return source


def _claim(config: Config, collection: Collection, source: GroupSource) -> Job:
    return start_job(
        config,
        stage="train",
        inputs={
            "backbone": model_identity(config.backbone),
            "collection": collection.identity("corpus", "queries"),
            "groups": source.identity,
        },
        ignore=(
            *("attention", "checkpoint_steps", "dry_run", "grad_cache", "gradient_checkpointing", "keep", "sharded"),
            *("tensorboard", "token_budget"),
        ),
        folder=True,
    )


def _foresee(
    config: Config, model: Retriever | Reranker, collection: Collection, source: GroupSource, world: World
) -> None:
    """Print what training would take; the model needs no weights."""
    device = own_device(world)
    expected = forecast(
        model,
        source.groups,
        source.queries,
        collection,
        batch_size=config.batch_size,
        negatives=config.negatives,
        steps=_num_steps(config, source),
        seed=config.seed,
        token_budget=config.token_budget or default_token_budget(device),
        processes=world.size,
        sharded=config.sharded,
        cached=config.grad_cache,
        device=device,
        bf16=config.precision == "bf16",
        dtype=_dtype(config, device),
        four_bit=config.four_bit,
    )
    if world.leads:
        print("\n".join(expected.lines()))


def _model(config: Config, device: torch.device, world: World) -> tuple[Retriever | Reranker, Any]:
    """The model on its device, ready to train, and PEFT's wrapper if it has a LoRA."""
    loading = {"dtype": _dtype(config, device), "attention": config.attention, "four_bit": config.four_bit}
    model, adapter = _adapted(config, **loading)
    if config.sharded and world.size > 1:
        shard(model, _layers(model.backbone), device)
    elif config.sharded:
        say("train: --sharded has nobody to share with, as torchrun did not start several processes; going on.")
    model.to(device)
    if device.type == "cpu":
        speed_up_training(model)
    return model, adapter


def _dtype(config: Config, device: torch.device) -> torch.dtype:
    """Of the weights: those that do not train need no more precision than they are used with."""
    frozen = config.lora is not None and config.precision == "bf16" and device.type == "cuda"
    return torch.bfloat16 if frozen else torch.float32


def _adapted(config: Config, **loading: Any) -> tuple[Retriever | Reranker, Any]:
    """The model with what is to train in it, and PEFT's wrapper if that is a LoRA."""
    model = _loaded(config, **loading)
    torch.manual_seed(config.seed)  # of the adapter's weights
    adapter = add_lora(model.backbone, parse_lora(config.lora)) if config.lora else None
    if config.gradient_checkpointing:
        checkpoint_layers(model.backbone)
    return model, adapter


def _loaded(config: Config, **loading: Any) -> Retriever | Reranker:
    contract = named_contract(config.contract) if config.contract else None

    def adjusted(contract: InputContract) -> InputContract:
        contract = contract.with_lengths(query=config.query_length, document=config.max_length)
        return replace(contract, bidirectional=contract.bidirectional or config.bidirectional)

    if config.kind == "retriever":
        return retriever_to_train(config.backbone, contract, adjust=adjusted, **loading)
    return reranker_to_train(config.backbone, contract, seed=config.seed, adjust=adjusted, **loading)


def _layers(backbone: nn.Module) -> nn.ModuleList:
    """A transformer's layers: the first list of modules in it."""
    return next(module for module in backbone.modules() if isinstance(module, nn.ModuleList))


def _num_steps(config: Config, source: GroupSource) -> int:
    return config.steps or num_steps(len(source.groups), config.batch_size, config.epochs)


def _examples(
    config: Config, collection: Collection, source: GroupSource, model: Retriever | Reranker, steps: range
) -> Iterator[Example]:
    """The examples of these steps."""
    temperature = TEMPERATURES[config.kind] if config.temperature is None else config.temperature
    for batch in batches(
        source.groups,
        source.queries,
        collection,
        batch_size=config.batch_size,
        negatives=config.negatives,
        seed=config.seed,
        first_step=steps.start,
        steps=steps.stop,
    ):
        if isinstance(model, Retriever):
            yield retriever_example(model, batch, loss=LOSSES["infonce"], temperature=temperature)
        else:
            yield reranker_example(model, batch, loss=LOSSES["infonce"], temperature=temperature)


def _evaluation(config: Config, collection: Collection, model: Retriever | Reranker) -> Evaluation | None:
    if config.heldout_split is None:
        return None
    sizes = {"num_queries": config.heldout_queries, "num_docs": config.heldout_docs}
    heldout = draw_heldout(collection, config.heldout_split, **sizes, seed=config.seed)
    if isinstance(model, Retriever):
        return retriever_evaluation(model, heldout)
    return reranker_evaluation(model, heldout, candidates=CANDIDATES)


@contextmanager
def _log(config: Config, state: State, world: World) -> Iterator[Callable[[Record], None]]:
    """What writes the run's records: nothing but in the leading process."""
    if not world.leads:
        yield lambda record: None
        return
    with TrainingLog(config.out, first_step=state.step, tensorboard=config.tensorboard) as log:
        yield log.write


def _results(out: Path) -> Record:
    """What the log says in the end: the last step's measurements, and the best held-out one with its step."""
    records = read_log(out)
    training = [record for record in records if MEASURE not in record]
    measured = [record for record in records if MEASURE in record]
    best: Record = max(measured, key=lambda record: record[MEASURE], default={})
    return {**training[-1], **({"best_step": best["step"], MEASURE: best[MEASURE]} if best else {})}
