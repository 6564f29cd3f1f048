from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shortlist.errors import UserError
from shortlist.train.optimizers import (
    ADAMW,
    OPTIMIZERS,
    OptimizerSettings,
    new_optimizer,
    parse_optimizer,
    restore_state,
    state_of,
)

needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs shortlist[qlora]")
OF_A_CPU = [
    pytest.param(name, marks=needs_bitsandbytes if "8bit" in name else ())
    for name in OPTIMIZERS
    if not name.startswith("paged")
]
SMALL = {"adamw-8bit": ",min_8bit_size=64", "galore": ",rank=4,gap=3", "gradnorm": ",rank=4,gap=3"}


class Weights(nn.Module):
    """A tall and a wide matrix, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        shapes = {"tall": (40, 12), "wide": (9, 33), "vector": (70,)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator)))


def gradients(model: nn.Module, step: int) -> None:
    """Give every parameter a gradient that depends on the step alone."""
    generator = torch.Generator().manual_seed(100 + step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def trained(settings: OptimizerSettings, steps: range, model: nn.Module, optimizer: Any = None) -> Any:
    optimizer = optimizer or new_optimizer(model, learning_rate=0.1, settings=settings)
    for step in steps:
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        gradients(model, step)
        optimizer.step()
    return optimizer


def one_step(text: str, weight: list[list[float]], gradient: list[list[float]]) -> Tensor:
    model = nn.Module()
    model.w = nn.Parameter(torch.tensor(weight))
    model.w.grad = torch.tensor(gradient)
    new_optimizer(model, learning_rate=0.1, settings=parse_optimizer(text)).step()
    return model.w.detach()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("adamw", [[3 - 0.1, 4 - 0.1], [2.0, 0 + 0.1]]),  # the first step is a sign
        ("adamw,weight_decay=0.5", [[2.85 - 0.1, 3.8 - 0.1], [1.9, 0.1]]),
        pytest.param("adamw-8bit", [[2.9, 3.9], [2.0, 0.1]], marks=needs_bitsandbytes),
        # the squares are [[4, 1], [0, 1]]: means of rows 2.5 and 0.5, of columns 2 and 1, of all 1.5, so that variances
        # are [[10/3, 5/3], [2/3, 1/3]] and the gradient becomes [[1.095, 0.775], [0, -1.732]], of length 2.190 / 2 =
        # 1.095 a number, by which it is divided; the weights' is (29 / 4) ** 0.5 = 2.693
        ("adafactor", [[3 - 0.26926, 4 - 0.19040], [2.0, 0.42574]]),
        # the first direction of the gradient's columns is (0.8507, 0.5257); there it is (2.227, -0.526): signs
        ("galore,rank=1,scale=1", [[3 - 0.08507, 4 - 0.05257], [2 + 0.08507, 0.05257]]),
        ("galore,rank=2", [[2.9, 3.9], [2.0, 0.1]]),  # no fewer directions than there are: AdamW
        # lengths 5 and 2 shrink by the sign of (2 * 3 + 1 * 4) / 5 and of 0: to 4.9 and 2. What is left of the gradient
        # is (2, 1) - 2 * (0.6, 0.8) = (0.8, -0.6) and (0, -1), whose first direction is (-0.4472, 0.8944); there it is
        # (-0.894, -0.894): signs. Rows become (2.955, 4.089) and (1.955, 0.089), and then as long as they should be
        ("gradnorm,rank=1,scale=1", [[2.87005, 3.97150], [1.99791, 0.09139]]),
    ],
)
def test_a_first_step_worked_out_by_hand(text: str, expected: list[list[float]]):
    new = one_step(text, [[3.0, 4.0], [2.0, 0.0]], [[2.0, 1.0], [0.0, -1.0]])
    torch.testing.assert_close(new, torch.tensor(expected), atol=2e-5, rtol=0)


def test_adamw_is_torchs_to_the_bit():
    ours, theirs = Weights(), Weights()
    trained(ADAMW, range(5), ours)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.0, fused=True)
    trained(ADAMW, range(5), theirs, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_galore_of_full_rank_is_adamw():
    ours, theirs = Weights(), Weights()
    trained(parse_optimizer("galore,rank=12,weight_decay=0.1"), range(5), ours)
    trained(parse_optimizer("adamw,weight_decay=0.1"), range(5), theirs)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_galores_step_stays_within_the_directions_of_the_gradient():
    model: Any = Weights()
    before = model.tall.detach().clone()
    trained(parse_optimizer("galore,rank=3"), range(4), model)
    assert torch.linalg.matrix_rank(model.tall.detach() - before, atol=1e-4) == 3


def test_gradnorm_without_turns_changes_lengths_alone():
    model: Any = nn.Module()
    model.w = nn.Parameter(torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]))
    model.w.grad = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])  # along the rows
    before = model.w.detach().clone()
    new_optimizer(model, learning_rate=0.5, settings=parse_optimizer("gradnorm,rank=1,scale=1")).step()
    lengths = model.w.detach().norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([4.5, 2.5, 0.5]))
    torch.testing.assert_close(model.w.detach()[:2] / lengths[:2, None], before[:2] / before[:2].norm(dim=1)[:, None])


@pytest.mark.parametrize("name", OF_A_CPU)
def test_a_saved_state_goes_on_to_the_bit(name: str):
    settings = parse_optimizer(name + SMALL.get(name, ""))
    whole = Weights()
    trained(settings, range(7), whole)
    first = Weights()
    optimizer = trained(settings, range(4), first)
    saved = {p: state_of(optimizer, p) for p in first.parameters()}
    assert all(value.is_contiguous() for values in saved.values() for value in values.values())
    again = new_optimizer(first, learning_rate=0.1, settings=settings)
    for p, values in saved.items():
        restore_state(again, p, values)
    trained(settings, range(4, 7), first, again)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), first.parameters(), strict=True))


@pytest.mark.parametrize("name", OF_A_CPU)
def test_the_bytes_foreseen_are_those_that_are_held(name: str):
    settings = parse_optimizer(name + SMALL.get(name, ""))
    model = Weights()
    optimizer = trained(settings, range(1), model)
    for p in model.parameters():
        held = sum(value.nbytes for value in state_of(optimizer, p).values() if value.ndim)
        assert settings.state_bytes(p) == held


@needs_bitsandbytes
def test_moments_of_eight_bits_are_near_those_of_adamw():
    ours, theirs = Weights(), Weights()
    optimizer = trained(parse_optimizer("adamw-8bit,min_8bit_size=1"), range(3), ours)
    trained(ADAMW, range(3), theirs)
    assert optimizer.state[ours.tall]["state1"].dtype == torch.uint8
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert 0 < (a - b).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adamv", "--optimizer adamv: unknown optimizer 'adamv': perhaps 'adamw'"),
        ("galore,rnak=3", "unknown option of galore 'rnak': perhaps 'rank'"),
        ("galore,rank=0", "rank is 0; expected at least 1"),
        ("adamw,beta1=1", "beta1 is 1.0; expected at least 0 and below 1"),
        ("adafactor,beta2_decay=1", "beta2_decay is 1.0; expected at most 0"),
        ("gradnorm,scale=nan", "scale is 'nan'; expected a number"),
    ],
)
def test_an_optimizer_that_makes_no_sense_is_refused(text: str, message: str):
    with pytest.raises(UserError, match=message) as refusal:
        parse_optimizer(text)
    assert "\n" not in str(refusal.value)


def test_only_adamw_works_on_parts_of_matrices():
    assert parse_optimizer("adamw", sharded=True) == ADAMW
    for name in OPTIMIZERS:
        if name != "adamw":
            with pytest.raises(UserError, match=f"--sharded: --optimizer {name} needs whole matrices"):
                parse_optimizer(name, sharded=True)


def test_pages_need_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="there is none; use adamw-8bit"):
        new_optimizer(Weights(), learning_rate=0.1, settings=parse_optimizer("paged-adamw-8bit"))
