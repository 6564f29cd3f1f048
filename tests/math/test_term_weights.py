"""Weights of terms: their products, their pooling from logits, and what keeps them sparse."""

import numpy as np
import pytest
import torch

from shortlist.math import term_pooling
from shortlist.math.sparsity import denser_than, expected_products, flops, idf_flops, l1, mean_terms, ramp, steered
from shortlist.math.term_pooling import log_weights, strongest_logits, summed_weights
from shortlist.math.terms import TermWeights, dot


def weights(*texts: dict[int, float]) -> TermWeights:
    terms = np.array([term for text in texts for term in sorted(text)], dtype=np.int32)
    values = np.array([text[term] for text in texts for term in sorted(text)], dtype=np.float32)
    return TermWeights(terms, values, np.array([len(text) for text in texts], dtype=np.int64))


def test_a_score_adds_up_the_terms_of_both():
    scores = dot(weights({1: 2.0, 5: 1.0}, {}), weights({5: 3.0, 7: 1.0}, {1: 0.5, 5: 1.0}, {}))
    np.testing.assert_array_equal(scores, [[3.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    assert len(weights()) == 0
    assert list(weights()) == []


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, ...]:
    """States, which of them count, output embedding and bias, in double precision; several blocks of each."""
    monkeypatch.setattr(term_pooling, "TERMS_AT_ONCE", 7)
    monkeypatch.setattr(term_pooling, "TOKENS_AT_ONCE", 8)
    torch.manual_seed(0)
    wanted = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()
    return torch.randn(4, 4, 5), wanted, torch.randn(20, 5), torch.randn(20)


def plain(states, wanted, embedding, bias, *, scale: float, logs: int, summed: bool) -> torch.Tensor:
    every = log_weights((states @ embedding.T + bias) * scale, logs) * wanted[..., None]
    return every.sum(1) if summed else every.amax(1)


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("logs", [1, 2])
def test_pooled_weights_and_their_gradients_are_those_of_a_plain_pass(parts, summed: bool, logs: int):
    states, wanted, embedding, bias = parts
    inputs = [one.clone().requires_grad_() for one in (states, embedding, bias)]
    again = [one.clone().requires_grad_() for one in (states, embedding, bias)]
    expected = plain(inputs[0], wanted, inputs[1], inputs[2], scale=0.7, logs=logs, summed=summed)
    if summed:
        found = summed_weights(again[0], wanted, again[1], again[2], scale=0.7, logs=logs)
    else:
        found = log_weights(strongest_logits(again[0], wanted, again[1], again[2], scale=0.7), logs)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    given = torch.randn_like(expected)
    expected.backward(given)
    found.backward(given)
    for one, other in zip(inputs, again, strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-5, rtol=1e-5)


def test_regularisers_have_the_values_of_their_formulas():
    table = torch.tensor([[1.0, 0.0, 3.0], [1.0, 2.0, 0.0]])
    assert flops(table).item() == 1 + 1 + 2.25
    assert l1(table).item() == 3.5
    assert idf_flops(table, torch.tensor([1.0, 3.0, 2.0])).item() == pytest.approx(4 + 4 / 9 + 2.25)
    assert idf_flops(table, torch.tensor([1.0, 3.0, 0.0])).item() == pytest.approx(4 + 4 / 9 + 2.25 * 4)
    assert mean_terms(table) == 2
    assert expected_products(table[:1], table) == pytest.approx(1 + 0.5)
    assert denser_than(torch.tensor([[1.0, 0.0], [1.0, 2.0]]), 1).tolist() == [[0, 0], [1, 2]]


def test_a_weight_grows_and_is_steered():
    assert [ramp(step, 4) for step in (0, 1, 3, 9)] == [1 / 16, 1 / 4, 1, 1]
    assert ramp(0, 0) == 1
    assert steered(1.0, 200.0, 100.0) > 1 > steered(1.0, 50.0, 100.0)
    assert steered(1e4, 200.0, 100.0) == 1e4
