"""One step of each case, and whole trainings, in several processes; the first one writes the results."""

import contextlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from named import language_model_to_train, late_to_train, reranker_to_train, retriever_to_train
from safetensors.torch import save_file
from tiny import DOCUMENTS, QUERIES, YES_NO
from torch import nn
from toys import PerToken, Toy, Words, maxsim_example

from shortlist import train
from shortlist.models.adapter_settings import make_adapter
from shortlist.models.adapters import add_adapter
from shortlist.models.backbone import checkpoint_layers, transformer_layers
from shortlist.models.folder import open_folder
from shortlist.models.save import Trainable
from shortlist.text.contract import InputContract
from shortlist.text.prompts import named_prompt
from shortlist.train import loop
from shortlist.train.asking import Asking, asking_example
from shortlist.train.build import collect_parts
from shortlist.train.examples import Batch
from shortlist.train.gather import World, meet, shard, whole
from shortlist.train.losses import parse_losses
from shortlist.train.mixture import Mixture
from shortlist.train.objectives import make_example
from shortlist.train.start import Start
from shortlist.train.steps import Example, backward

BATCH = Batch(
    queries=QUERIES[:3],
    documents=[[DOCUMENTS[i] for i in group] for group in ([0, 3, 4, 9, 5], [1, 5], [2, 7, 10, 0])],
    positives=[frozenset({"d0"}), frozenset({"d1", "d3"}), frozenset({"d2"})],
    scores=[(3.0, 1.0, 0.0, 2.0, 0.5), (0.0, 2.0), (1.0, 0.0, 1.5, 2.0)],
)
"""Groups of three sizes, an odd number of inputs, a document twice, a positive that is not this query's only one."""


TOYS = {"per-token": PerToken, "words": Words}


class Case(NamedTuple):
    """One way to make a step."""

    kind: str = "retriever"
    backbone: str = "llama"
    lora: bool = False
    cached: bool = False
    token_budget: int = 40
    sharded: bool = False
    checkpointing: bool = False
    losses: str = "infonce"
    nested: bool = False
    """Two dimensions, mixed negatives and a latent pooling."""
    prompt: str = ""
    contract: str = ""

    @property
    def name(self) -> str:
        return "-".join(map(str, self))


CASES = [
    Case(kind, lora=lora, cached=cached, token_budget=token_budget, sharded=sharded)
    for kind in ("retriever", "reranker")
    for lora in (False, True)
    for cached in (False, True)
    for token_budget in (40, 100_000)
    for sharded in (False, True)
]
CASES += [
    Case(kind, "bert", cached=cached, sharded=sharded)
    for kind in ("retriever", "reranker")
    for cached in (False, True)
    for sharded in (False, True)
]
CASES += [Case(kind, losses="infonce=0.5 kl=0.5") for kind in ("retriever", "reranker")]
CASES += [Case("reranker", cached=True, losses="infonce anchor"), Case(sharded=True, losses="infonce anchor")]
CASES += [Case("language-model", cached=sharded, sharded=sharded) for sharded in (False, True)]
CASES += [
    Case(
        "language-model", "speaker", lora=lora, sharded=sharded, cached=lora, losses="lm ranknet anchor", prompt="first"
    )
    for lora, sharded in ((False, False), (True, False), (False, True))
]
CASES += [
    Case("reranker", "speaker", sharded=sharded, losses="yes_no yes_no.weight=contrastive", contract="yes-no")
    for sharded in (False, True)
]
CASES += [Case("per-token", cached=cached, token_budget=budget) for cached in (False, True) for budget in (40, 100_000)]
CASES += [Case("per-token", cached=cached, sharded=True) for cached in (False, True)] + [Case("words", cached=True)]
CASES += [Case("late", "bert", cached=sharded, sharded=sharded, losses="infonce kl") for sharded in (False, True)]
CASES += [Case(cached=cached, checkpointing=True, sharded=True) for cached in (False, True)]
CASES += [Case("retriever", "bert", cached=True, nested=True), Case(sharded=True, nested=True)]


def step(case: Case, models: Path, world: World) -> dict[str, torch.Tensor]:
    """Loss, accuracy and all gradients of one step from the same weights."""
    name = str(models / case.backbone)
    model: Trainable | Toy
    if case.kind == "retriever":
        model = retriever_to_train(name, None, adjust=latent if case.nested else None)
    elif case.kind in TOYS:
        retriever = retriever_to_train(name, None)
        model = TOYS[case.kind](retriever.backbone, retriever.inputs)
        documents = [group[0] for group in BATCH.documents] + BATCH.documents[0][1:]
        token_ids = model.inputs.query_ids(BATCH.queries) + model.inputs.document_ids(documents)
        return outcome_of(case, model, maxsim_example(token_ids, len(BATCH.queries)), world)
    elif case.kind == "language-model":
        model = language_model_to_train(name)
    elif case.kind == "late":
        model = late_to_train(name, dim=8)
    else:
        model = reranker_to_train(name, YES_NO if case.contract else None, seed=0)
    terms = parse_losses(case.losses.split(), temperature=0.05)
    if case.prompt:
        asking = Asking(named_prompt(case.prompt), model.inputs.tokenizer, terms, num_docs=5, longest=1000)
        return outcome_of(case, model, asking_example(asking, BATCH, terms, rng=np.random.default_rng(0)), world)
    options: dict[str, Any] = {"dims": (32, 8), "mixed": 2} if case.nested else {}
    return outcome_of(case, model, make_example(case.kind, model.inputs, BATCH, terms, **options), world)


def latent(contract: InputContract) -> InputContract:
    return replace(contract, reading=replace(contract.reading, pooling="latent"))


def outcome_of(case: Case, model: Trainable | Toy, example: Example, world: World) -> dict[str, torch.Tensor]:
    """Loss, accuracy and all gradients of an example."""
    if case.lora:
        _add_lora(model)
    if case.checkpointing:
        checkpoint_layers(model.backbone)
    if case.sharded and world.size > 1:
        shard(model, transformer_layers(model.backbone), torch.device("cpu"))
    start = Start(model) if example.reads_start else None
    if start:
        with torch.no_grad():  # as if it had trained
            for p in model.parameters():
                p.mul_(1.1)
    options = {"token_budget": case.token_budget, "bf16": False, "seed": 0, "cached": case.cached}
    outcome = backward(model.train(), example, start=start, world=world, **options)
    gradients = {n: whole(p.grad) for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    return gradients | {"loss": outcome.loss, "accuracy": torch.tensor(outcome.accuracy)}


def _add_lora(model: Trainable | Toy) -> None:
    torch.manual_seed(0)
    add_adapter(model.backbone, make_adapter("lora", r=4, dropout=0.0))
    for name, p in model.named_parameters():
        if "lora_B" in name:  # it starts at 0, and then A has no gradient
            nn.init.normal_(p, std=0.1)


RUNS = {
    "full": {"loss": ("infonce", "anchor=5")},
    "full-sharded": {"sharded": True, "kind": "reranker", "backbone": "bert"},
    "prompt-sharded": {"sharded": True, "adapter": "prompt,tokens=3"},
    "lora-sharded": {
        "adapter": "r=4,dropout=0,targets=q_proj+v_proj",
        "sharded": True,
        "kind": "reranker",
        "loss": ("anchor=5", "infonce"),
    },
    "adalora": {"adapter": "adalora,init_r=4,target_r=2,dropout=0", "optimizer": "adafactor"},
    "connected-sharded": {"adapter": "connected,r=4,aside=2", "sharded": True, "kind": "reranker"},
    "layers": {"layers_sampled": "1,every=4", "optimizer": "galore,rank=8,gap=3"},
    "renewed": {"refresh_steps": 2, "refresh_depth": 3},
}


def settings(run: str, models: Path, out: Path) -> train.Config:
    """Six steps over two epochs, a checkpoint after each second, held-out scores."""
    values = {"kind": "retriever", "backbone": "llama", **RUNS[run]}
    values |= {"backbone": str(models / str(values["backbone"])), "collection": str(models / "collection"), "out": out}
    values |= {"batch_size": 3, "steps": 6, "learning_rate": 0.003, "warmup_steps": 2, "checkpoint_steps": 2}
    return train.Config(**values, token_budget=40, heldout_split="test", heldout_steps=3, keep=3)


def train_run(config: train.Config, world: World, *, stop_after: int | None = None) -> None:
    """Train as the stage does, or stop in the middle of the step after so many."""
    mixture = Mixture(config, collect_parts(config))
    backward = loop.backward
    done = 0

    def until_stopped(*args: Any, **options: Any) -> Any:
        nonlocal done
        if done == stop_after:
            raise KeyboardInterrupt
        done += 1
        return backward(*args, **options)

    loop.backward = until_stopped
    try:
        with contextlib.suppress(KeyboardInterrupt):
            train.train(config, open_folder(config.backbone), mixture, world)
    finally:
        loop.backward = backward


def main(models: Path, out: Path) -> None:
    with meet() as world:
        for case in CASES:
            result = step(case, models, world)
            if world.leads:
                save_file({name: value.contiguous() for name, value in result.items()}, out / case.name)
        for name in RUNS:
            train_run(settings(name, models, out / f"whole-{name}"), world)
            train_run(settings(name, models, out / f"broken-{name}"), world, stop_after=5)


def one_of_two(rank: int, port: int, models: Path, out: Path) -> None:
    """Do all of it as one of two processes, which know of each other what torchrun would tell them."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"}
    main(models, out)
    sys.stderr.flush()
    os._exit(0)  # all is written; on a busy machine a library's thread may still run, and abort an ordinary exit
