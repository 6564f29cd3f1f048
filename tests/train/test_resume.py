import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import Tiny

from shortlist import train
from shortlist.models.backbone import LORAS, add_lora
from shortlist.models.checkpoint import reranker_to_train
from shortlist.train import loop
from shortlist.train.loop import new_optimizer
from shortlist.train.resume import CHECKPOINT, drop_checkpoint, load_checkpoint, save_checkpoint


def settings(tiny: Tiny, out: Path, **change) -> train.Config:
    """Six steps: two epochs of 8 groups, 3 a step, the last of each epoch short."""
    values = {"kind": "retriever", "backbone": str(tiny.bert), "collection": str(tiny.collection), "out": out}
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
    return [(record["step"], record["loss"]) for record in records]


@pytest.mark.parametrize(
    ("change", "after"),
    [
        ({}, 1),  # before the first checkpoint
        ({}, 3),  # a step is done again, the last of an epoch
        ({}, 4),
        ({}, 5),
        ({"lora": "r=4,targets=query+value"}, 1),
        ({"lora": "r=4,targets=query+value"}, 3),
        ({"kind": "reranker", "lora": "r=4,targets=query"}, 4),
        ({"grad_cache": True, "precision": "bf16", "token_budget": 30}, 3),
    ],
)
def test_an_interrupted_training_ends_bit_for_bit_where_an_uninterrupted_one_does(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict, after: int
):
    whole, broken = settings(tiny, tmp_path / "whole", **change), settings(tiny, tmp_path / "broken", **change)
    train.run(whole)
    torch.manual_seed(99)  # nothing may depend on what the process drew before
    interrupted(monkeypatch, broken, after)
    assert (broken.out / CHECKPOINT).exists() == (after >= 2)
    assert not list(broken.out.glob("*.safetensors"))
    train.run(broken)
    assert weights(broken.out) == weights(whole.out)
    assert steps(broken.out) == steps(whole.out)
    assert [step for step, _ in steps(broken.out)] == [1, 2, 3, 4, 5, 6]
    assert not (broken.out / CHECKPOINT).exists()


def test_another_interval_of_checkpoints_is_the_same_job(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    interrupted(monkeypatch, settings(tiny, tmp_path / "model"), after=4)
    train.run(settings(tiny, tmp_path / "model", checkpoint_steps=3, token_budget=64))
    assert [step for step, _ in steps(tmp_path / "model")] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_holds_what_trains_and_the_optimizer_and_nothing_else(tiny: Tiny, tmp_path: Path):
    model = reranker_to_train(str(tiny.llama), None, seed=0)
    add_lora(model.backbone, LORAS["paper"])
    optimizer = new_optimizer(model, learning_rate=0.1)
    save_checkpoint(tmp_path, model, optimizer, step=7)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert state.keys() == {"step", "model", "optimizer"}
    assert all("lora_" in name or name == "score" for name in state["model"])
    assert "score" in state["model"]


def test_loading_gives_back_step_weights_and_optimizer(tiny: Tiny, tmp_path: Path):
    def made() -> tuple:
        model = reranker_to_train(str(tiny.llama), None, seed=0)
        return model, new_optimizer(model, learning_rate=0.1)

    model, optimizer = made()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    save_checkpoint(tmp_path, model, optimizer, step=7)
    other, other_optimizer = made()
    assert load_checkpoint(tmp_path, other, other_optimizer) == 7
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    assert str(other_optimizer.state_dict()) == str(optimizer.state_dict())


def test_without_a_checkpoint_training_starts_at_step_0(tiny: Tiny, tmp_path: Path):
    model = reranker_to_train(str(tiny.llama), None, seed=0)
    assert load_checkpoint(tmp_path, model, new_optimizer(model, learning_rate=0.1)) == 0
    drop_checkpoint(tmp_path)  # nor is there anything to drop


def test_a_crash_while_writing_leaves_the_checkpoint_before(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = reranker_to_train(str(tiny.llama), None, seed=0)
    optimizer = new_optimizer(model, learning_rate=0.1)
    save_checkpoint(tmp_path, model, optimizer, step=1)

    def half(state: object, file) -> None:
        file.write(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, model, optimizer, step=2)
    assert load_checkpoint(tmp_path, model, optimizer) == 1
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
