"""What the tests themselves rely on: types are checked at every call of the package."""

from dataclasses import dataclass

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation
from checking import CheckedLoader, checked
from jaxtyping import Float, TypeCheckError
from torch import Tensor

import shortlist.records
from shortlist.math.pooling import cls
from shortlist.records import as_queries


def test_every_module_of_the_package_is_checked():
    assert isinstance(shortlist.records.__spec__.loader, CheckedLoader)
    with pytest.raises(TypeCheckError, match="lengths"):
        cls(torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.long))
    with pytest.raises(BeartypeCallHintParamViolation):
        as_queries(3)


def test_shapes_agree_and_other_types_are_what_they_say():
    @checked
    def product(a: Float[Tensor, "n m"], b: Float[Tensor, "m k"]) -> list[int]:
        return [*(a @ b).shape]

    @checked
    def count(texts: list[str]) -> int:
        return len(texts) if texts else "none"  # type: ignore[return-value]

    @checked
    @dataclass
    class Held:
        size: int

    assert product(torch.ones(2, 3), torch.ones(3, 4)) == [2, 4]
    with pytest.raises(TypeCheckError):
        product(torch.ones(2, 3), torch.ones(2, 4))
    assert count(["a"]) == 1
    with pytest.raises(BeartypeCallHintParamViolation):
        count("a")
    with pytest.raises(BeartypeCallHintReturnViolation):
        count([])
    with pytest.raises(BeartypeCallHintParamViolation):
        Held("3")
