import pytest
import torch

from shortlist.math.agreement import agreement


def test_the_same_vectors_agree():
    vectors = torch.nn.functional.normalize(torch.randn(30, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    assert agreement(vectors, vectors) == pytest.approx((1.0, 1.0, 1.0))
    assert agreement(-vectors, vectors).least_cosine == pytest.approx(-1.0)
