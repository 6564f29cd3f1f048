import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from named import load_reranker, reranker_to_train
from tiny import DOCUMENTS, QUERIES, Tiny, write_llama

from shortlist import train
from shortlist.errors import UserError
from shortlist.models.adapter_settings import ADAPTERS, parse_adapter
from shortlist.models.adapters import add_adapter
from shortlist.models.pointwise import PointwiseModel
from shortlist.models.run import score_pairs
from shortlist.train import loop, resume
from shortlist.train.optimizers import OPTIMIZERS, new_optimizer
from shortlist.train.resume import (
    State,
    checkpoints,
    drop_checkpoints,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)


def settings(tiny: Tiny, out: Path, **change) -> train.Config:
    """Six steps: two epochs of 8 groups, 3 a step, the last of each epoch short."""
    backbone = tiny.speaker if "prompt" in change else tiny.bert
    values = {"kind": "retriever", "backbone": str(backbone), "collection": str(tiny.collection), "out": out}
    values |= {"batch_size": 3, "steps": 6, "learning_rate": 0.003, "warmup_steps": 2, "checkpoint_steps": 2}
    return train.Config(**(values | change))


def interrupted(monkeypatch: pytest.MonkeyPatch, config: train.Config, after: int) -> None:
    """Run until so many steps are done, and then Ctrl-C in the middle of the next."""
    backward, count = loop.backward, SimpleNamespace(steps=0)

    def until_interrupted(*args, **options):
        if count.steps == after:
            raise KeyboardInterrupt
        count.steps += 1
        return backward(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "backward", until_interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.run(config)


def weights(folder: Path) -> bytes:
    (path,) = folder.glob("*.safetensors")
    return path.read_bytes()


def steps(folder: Path) -> list[tuple[int, float]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(record["step"], record.get("loss", record.get("mrr@10"))) for record in records]


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "after"),
    [
        ({}, 1),  # before the first checkpoint
        ({}, 3),  # a step is done again, the last of an epoch
        ({}, 4),
        ({}, 5),
        ({"adapter": "r=4,targets=query+value"}, 1),
        ({"adapter": "r=4,targets=query+value"}, 3),
        ({"kind": "reranker", "adapter": "r=4,targets=query"}, 4),
        ({"grad_cache": True, "precision": "bf16", "token_budget": 30}, 3),
        ({"gradient_checkpointing": True}, 3),
        ({"kind": "language-model", "prompt": "first", "loss": ("lm", "ranknet=10")}, 3),
        ({"kind": "language-model", "prompt": "setwise", "adapter": "r=4,targets=q_proj", "grad_cache": True}, 4),
        ({"kind": "reranker", "reward": "ndcg,samples=4", "policy": "dpo", "loss": ("anchor=0.1",)}, 3),
    ],
)
def test_an_interrupted_training_ends_bit_for_bit_where_an_uninterrupted_one_does(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict, after: int
):
    whole, broken = settings(tiny, tmp_path / "whole", **change), settings(tiny, tmp_path / "broken", **change)
    train.run(whole)
    torch.manual_seed(99)  # nothing may depend on what the process drew before
    interrupted(monkeypatch, broken, after)
    assert names(broken.out) == ([f"step-{after // 2 * 2:06d}"] if after >= 2 else [])
    assert not list(broken.out.glob("*.safetensors"))
    train.run(broken)
    assert weights(broken.out) == weights(whole.out)
    assert steps(broken.out) == steps(whole.out)
    assert [step for step, _ in steps(broken.out)] == [1, 2, 3, 4, 5, 6]
    assert not names(broken.out)


CHANGES = [
    {"adapter": "dora,r=4", "optimizer": "adamw-8bit,min_8bit_size=64"},
    {"adapter": "rslora,r=4", "optimizer": "adafactor"},
    {"adapter": "adalora,init_r=4,target_r=2", "optimizer": "galore,rank=2,gap=3"},
    {"adapter": "ia3", "optimizer": "adamw,weight_decay=0.1"},
    {"adapter": "prompt,tokens=3", "optimizer": "gradnorm,rank=2,gap=3"},
    {"adapter": "prefix,tokens=3"},
    {"adapter": "connected,r=4,aside=2"},
    {"adapter": "lora,r=4,bias=all"},
    {"kind": "late", "scoring": "xtr,k=4", "adapter": "lora,r=4"},
    {"kind": "reranker", "reward": "ndcg,samples=4", "policy": "grpo,updates=2"},  # stopped between two updates
    {"layers_sampled": "1,every=2", "optimizer": "gradnorm,rank=4,gap=3"},
]


def test_every_adapter_and_every_optimizer_of_a_cpu_is_resumed():
    said = {value.split(",")[0] for change in CHANGES for value in change.values()}
    assert said >= {*ADAPTERS, *OPTIMIZERS} - {"paged-adamw-8bit"}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: " ".join(change.values()))
def test_whatever_trains_is_resumed_to_the_bit(
    tiny: Tiny, two_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict
):
    change = {"backbone": str(two_layers), "steps": 5, "max_length": 24, "query_length": 8, **change}
    whole, broken = settings(tiny, tmp_path / "whole", **change), settings(tiny, tmp_path / "broken", **change)
    train.run(whole)
    torch.manual_seed(99)
    interrupted(monkeypatch, broken, 3)
    train.run(broken)
    assert weights(broken.out) == weights(whole.out)
    assert steps(broken.out) == steps(whole.out)


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA of two layers."""
    return write_llama(tmp_path_factory.mktemp("two"), num_hidden_layers=2)


@pytest.mark.slow
def test_another_interval_of_checkpoints_is_the_same_job(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    interrupted(monkeypatch, settings(tiny, tmp_path / "model"), after=4)
    train.run(settings(tiny, tmp_path / "model", checkpoint_steps=3, token_budget=64))
    assert [step for step, _ in steps(tmp_path / "model")] == [1, 2, 3, 4, 5, 6]


@pytest.fixture
def model(tiny: Tiny) -> PointwiseModel:
    return reranker_to_train(str(tiny.llama), None, seed=0)


def stepped(model: PointwiseModel, gradient: float = 1.0, *, learning_rate: float = 0.1) -> torch.optim.Optimizer:
    """Its optimizer after a step."""
    optimizer = new_optimizer(model, learning_rate=learning_rate)
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.full_like(p, gradient)
    optimizer.step()
    return optimizer


def test_a_checkpoint_is_a_model_that_loads(model: PointwiseModel, tmp_path: Path):
    save_checkpoint(tmp_path, model, stepped(model), State(step=7), keep=1)
    loaded = load_reranker(str(checkpoints(tmp_path)[0]))
    pairs = [(QUERIES[0], document) for document in DOCUMENTS]
    assert score_pairs(loaded, pairs) == pytest.approx(score_pairs(model.eval(), pairs), abs=1e-6)


def test_a_checkpoint_of_an_adapter_holds_what_trains_and_nothing_else(
    model: PointwiseModel, tiny: Tiny, tmp_path: Path
):
    torch.manual_seed(0)
    adapter = add_adapter(model.backbone, parse_adapter("paper"))
    options = {"adapter": adapter, "base": str(tiny.llama)}
    optimizer = stepped(model, learning_rate=0.01)  # a longer step makes a model that shows every rounding
    save_checkpoint(tmp_path, model, optimizer, State(step=7), keep=1, **options)
    (folder,) = checkpoints(tmp_path)
    assert {path.name for path in folder.glob("*.safetensors")} == {
        "adapter_model.safetensors",
        "optimizer.safetensors",
    }
    pairs = [(QUERIES[0], document) for document in DOCUMENTS]
    expected = score_pairs(model.eval(), pairs)
    assert score_pairs(load_reranker(str(folder)), pairs) == pytest.approx(expected, abs=1e-5)


def test_loading_gives_back_state_weights_and_optimizer(model: PointwiseModel, tiny: Tiny, tmp_path: Path):
    state = State(step=7, token_budget=99, cached=True, best_step=5, best_score=0.25)
    optimizer = stepped(model)
    save_checkpoint(tmp_path, model, optimizer, state, keep=1)
    other = reranker_to_train(str(tiny.llama), None, seed=1)
    other_optimizer = new_optimizer(other, learning_rate=0.1)
    assert load_checkpoint(tmp_path, other, other_optimizer) == state
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        for kind, value in optimizer.state[one].items():
            assert torch.equal(other_optimizer.state[two][kind], value)


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(model: PointwiseModel, tmp_path: Path):
    assert load_checkpoint(tmp_path, model, new_optimizer(model, learning_rate=0.1)) is None
    drop_checkpoints(tmp_path)  # nor is there anything to drop


def test_the_last_ones_and_the_best_one_are_kept(model: PointwiseModel, tmp_path: Path):
    optimizer = stepped(model)
    for step in (2, 4, 6, 8, 10):
        best = {"best_step": 4, "best_score": 0.5} if step >= 4 else {}
        save_checkpoint(tmp_path, model, optimizer, State(step=step, **best), keep=2)
    assert names(tmp_path) == ["step-000004", "step-000008", "step-000010"]


def test_checkpoints_are_in_order_of_their_steps_past_a_million(model: PointwiseModel, tmp_path: Path):
    optimizer = stepped(model)
    for step in (999_999, 1_000_000):
        save_checkpoint(tmp_path, model, optimizer, State(step=step), keep=2)
    state = load_checkpoint(tmp_path, model, optimizer)
    assert state is not None
    assert state.step == 1_000_000


def test_the_weights_of_an_earlier_step_come_back(model: PointwiseModel, tmp_path: Path):
    before = model.head.detach().clone()
    save_checkpoint(tmp_path, model, new_optimizer(model, learning_rate=0.1), State(step=1), keep=2)
    save_checkpoint(tmp_path, model, stepped(model), State(step=2), keep=2)
    assert not torch.equal(model.head, before)
    load_weights(tmp_path, model, 1)
    assert torch.equal(model.head, before)


def test_a_crash_while_writing_leaves_the_checkpoint_before(
    model: PointwiseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    optimizer = stepped(model)
    save_checkpoint(tmp_path, model, optimizer, State(step=1), keep=1)

    def full_disk(state: object, path: Path) -> None:
        path.write_bytes(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resume, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, model, optimizer, State(step=2), keep=1)
    state = load_checkpoint(tmp_path, model, optimizer)
    assert state is not None
    assert state.step == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


@pytest.mark.slow
def test_the_best_model_is_saved_though_it_was_not_the_last(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scores = iter([0.7, 0.1, 0.3])
    measuring = train.Measuring("mrr@10", "MRR@10", lambda model, **computing: next(scores))
    monkeypatch.setattr(train, "_evaluation", lambda *args: measuring)
    change = {"heldout_split": "test", "heldout_steps": 2, "checkpoint_steps": 1, "keep": 2}
    out = tmp_path / "model"
    train.run(settings(tiny, out, **change))
    assert names(out) == ["step-000002", "step-000004", "step-000005"]
    best = out / "checkpoints" / "step-000002" / "model.safetensors"
    assert weights(out) == best.read_bytes()
    results = json.loads((out / "manifest.json").read_text())["results"]
    assert (results["best_step"], results["mrr@10"], results["step"]) == (2, 0.7, 6)


def test_a_checkpoint_without_its_weights_is_refused(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = settings(tiny, tmp_path / "out")
    interrupted(monkeypatch, config, after=3)
    (newest,) = checkpoints(config.out)
    (newest / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: is missing; delete this checkpoint"):
        train.run(config)
    record = json.loads((newest / "training.json").read_text())
    old = {name: value for name, value in record.items() if name not in ("files", "sha256")}
    (newest / "training.json").write_text(json.dumps(old))  # as before checkpoints listed their files
    with pytest.raises(UserError, match="step-000002: holds no weights; delete this checkpoint"):
        train.run(config)
