import numpy as np
import pytest
import torch

from shortlist.math.feedback import (
    bo1,
    bo1_gains,
    distillation_gradient,
    distilled,
    highest,
    rm1,
    rm3,
    rocchio,
    score_chances,
    score_shares,
    vector_average,
)

RNG = np.random.default_rng(0)
COUNTS = RNG.integers(0, 4, size=(30, 12)).astype(np.float64)
"""Occurrences of 12 terms in 30 documents."""


def test_rm3_worked_out_by_hand():
    documents, query = np.array([[2.0, 1, 1, 0], [0, 0, 1, 1]]), np.array([1.0, 1, 0, 0])
    weights = score_shares(np.array([3.0, 1.0]))
    # 3/4 (1/2, 1/4, 1/4, 0) + 1/4 (0, 0, 1/2, 1/2) = (6, 3, 5, 2) / 16; the best two are (6, 5) / 11
    assert rm1(documents, weights).tolist() == [6 / 16, 3 / 16, 5 / 16, 2 / 16]
    found = rm3(query, documents, weights, terms=2, weight=0.5)
    assert found == pytest.approx([0.25 + 3 / 11, 0.25, 2.5 / 11, 0])
    assert rm3(query, documents, weights, terms=2, weight=1.0).tolist() == [0.5, 0.5, 0, 0]
    assert rm3(0 * query, documents, weights, terms=1, weight=0.5).tolist() == [1, 0, 0, 0]
    assert rm3(query, 0 * documents, weights, terms=1, weight=0.3).tolist() == [0.5, 0.5, 0, 0]


def test_bo1_worked_out_by_hand():
    documents, totals = np.array([[1.0, 0, 1], [2, 0, 0]]), np.array([3.0, 9.0, 12.0])
    # P = 1, 3, 4 for 3 documents: 3 log2(2 / 1) + log2(2) = 4; nothing; log2(5 / 4) + log2(5)
    gains = bo1_gains(documents.sum(0), totals, 3)
    assert gains == pytest.approx([4, 0, 2 * np.log2(5) - 2])
    query = np.array([0.0, 2.0, 1.0])
    found = bo1(query, documents, totals, num_docs=3, terms=2, weight=0.5)
    assert found == pytest.approx([0.5, 0.5, 0.25 + gains[2] / 8])


def test_rare_terms_gain_more_than_frequent_ones():
    gains = bo1_gains(np.array([2.0, 2.0, 3.0]), np.array([10.0, 40.0, 40.0]), 100)
    assert gains[0] > gains[2] > gains[1]


@pytest.mark.parametrize(("weight", "terms"), [(0.0, 1), (0.3, 5), (1.0, 4), (0.5, 12), (0.5, 20)])
@pytest.mark.parametrize("docs", [[4], [0, 29, 3], list(range(30))])
def test_queries_of_terms_are_those_of_a_loop_over_30_documents(docs: list[int], weight: float, terms: int):
    query, found = RNG.random(12), COUNTS[docs] + 1e-3
    scores, totals = np.linspace(3, 1, len(docs)), COUNTS.sum(0) + 1
    model = [sum(scores[d] / sum(scores) * found[d, t] / sum(found[d]) for d in range(len(docs))) for t in range(12)]
    gains = []
    for t in range(12):
        tf, p = sum(found[d, t] for d in range(len(docs))), totals[t] / 30
        gains.append(tf * np.log2((1 + p) / p) + np.log2(1 + p))
    for values, norm, made in (
        (model, sum, rm3(query, found, score_shares(scores), terms=terms, weight=weight)),
        (gains, max, bo1(query, found, totals, num_docs=30, terms=terms, weight=weight)),
    ):
        kept = sorted(range(12), key=lambda t: (-values[t], t))[:terms]
        best = [values[t] if t in kept else 0.0 for t in range(12)]
        expected = [weight * query[t] / norm(query) + (1 - weight) * best[t] / norm(best) for t in range(12)]
        np.testing.assert_allclose(made, expected, atol=1e-12)


def test_of_equal_values_the_first_are_kept():
    assert highest(np.array([1.0, 2.0, 2.0, -1.0]), 1).tolist() == [0, 2, 0, 0]
    assert highest(np.array([1.0, 2.0, 2.0, -1.0]), 9).tolist() == [1, 2, 2, 0]


def test_vectors_worked_out_by_hand_keep_their_lengths():
    query, documents = np.array([3.0, 0.0]), np.array([[0.0, 3.0], [0.0, 6.0]])
    assert vector_average(query, documents).tolist() == [1, 3]
    assert rocchio(query, documents, alpha=0.4, beta=0.6) == pytest.approx([1.2, 2.7])


def test_average_and_rocchio_are_those_of_a_loop_over_30_documents():
    query, documents = RNG.normal(size=5), RNG.normal(size=(30, 5))
    for k in (1, 3, 30):
        found = [sum([query[i], *(documents[d, i] for d in range(k))]) / (k + 1) for i in range(5)]
        np.testing.assert_allclose(vector_average(query, documents[:k]), found)
        found = [0.4 * query[i] + 0.6 * sum(documents[d, i] for d in range(k)) / k for i in range(5)]
        np.testing.assert_allclose(rocchio(query, documents[:k], alpha=0.4, beta=0.6), found)


def divergence(queries: torch.Tensor, documents: torch.Tensor, teacher: torch.Tensor, temperature: float):
    logits = torch.einsum("qd,qnd->qn", queries, documents) / temperature
    return torch.nn.functional.kl_div(logits.log_softmax(-1), teacher, reduction="sum")


def test_a_step_of_distillation_worked_out_by_hand():
    queries, documents = np.zeros((1, 2)), np.array([[[1.0, 0.0], [0.0, 2.0]]])
    scores = np.array([[np.log(3), 0.0]])  # chances 3/4 and 1/4, where the query says 1/2 and 1/2
    found = distilled(queries, documents, scores, steps=1, rate=1.0, temperature=0.5)
    assert found == pytest.approx(np.array([[0.5, -1.0]]))  # - (-1/4 (1, 0) + 1/4 (0, 2)) / .5


def test_the_gradient_is_that_of_pytorch_and_leaves_out_what_was_not_read():
    queries, documents = RNG.normal(size=(3, 6)), RNG.normal(size=(3, 30, 6))
    keep = np.arange(30) < np.array([[30], [7], [1]])
    teacher = np.where(keep, score_chances(np.where(keep, RNG.normal(size=(3, 30)), -np.inf)), 0)
    found = distillation_gradient(queries, documents, teacher, keep, temperature=0.7)
    for place, count in enumerate((30, 7, 1)):
        query = torch.tensor(queries[place : place + 1], requires_grad=True)
        some = torch.tensor(documents[place : place + 1, :count])
        divergence(query, some, torch.tensor(teacher[place : place + 1, :count]), 0.7).backward()
        np.testing.assert_allclose(found[place], query.grad[0].numpy(), atol=1e-10)


def test_steps_bring_the_order_nearer_to_the_rerankers():
    queries, documents = RNG.normal(size=(2, 16)), RNG.normal(size=(2, 30, 16))
    scores = RNG.normal(size=(2, 30)) * 3
    teacher = torch.tensor(score_chances(scores))
    losses = []
    for steps in (0, 1, 5, 50):
        moved = distilled(queries, documents, scores, steps=steps, rate=0.05, temperature=1.0)
        losses.append(float(divergence(torch.tensor(moved), torch.tensor(documents), teacher, 1.0)))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 2
    padded = np.concatenate([documents, 9 + documents], 1)
    unread = np.concatenate([scores, np.full((2, 30), np.nan)], 1)
    same = distilled(queries, padded, unread, steps=5, rate=0.05, temperature=1.0)
    np.testing.assert_allclose(same, distilled(queries, documents, scores, steps=5, rate=0.05, temperature=1.0))
