import pytest
import torch

from shortlist.math import attention
from shortlist.math.attention import attention_mass, filtered_sums, last_logits, span_ends, span_sums
from shortlist.math.head_scores import best_is_relevant, mass_of_relevant, ndcg_of_heads, share_of_positive


def test_the_mass_is_the_mean_of_the_rows_softmax(monkeypatch: pytest.MonkeyPatch):
    draw = torch.Generator().manual_seed(0)
    query, key = torch.randn(3, 2, 4, generator=draw), torch.randn(3, 5, 4, generator=draw)
    seen = torch.tensor([[True] * 4 + [False], [True] * 5])
    logits = torch.einsum("hrs,hts->hrt", query, key) * 0.5
    expected = logits.masked_fill(~seen, -torch.inf).softmax(-1).mean(1)
    torch.testing.assert_close(attention_mass(query, key, scale=0.5, seen=seen), expected)
    monkeypatch.setattr(attention, "LOGITS_AT_ONCE", 11)  # one head at a time
    torch.testing.assert_close(attention_mass(query, key, scale=0.5, seen=seen), expected)
    torch.testing.assert_close(last_logits(query, key, scale=0.5), logits[:, -1])


def test_spans_are_summed_and_an_empty_one_has_0():
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    spans = [slice(0, 2), slice(2, 2), slice(3, 4)]
    assert span_sums(values, spans).tolist() == [[3.0, 0.0, 4.0]]
    assert filtered_sums(values, spans).tolist() == [[3.0, 0.0, 4.0]]
    assert span_ends(values, [spans[0], spans[2]]).tolist() == [[2.0, 4.0]]
    assert span_sums(values, []).shape == (1, 0)


def test_a_token_far_below_its_documents_mean_does_not_count():
    low = torch.tensor([1.0] * 9 + [-5.0] + [7.0])  # mean 0.4, deviation 1.897: what is below -3.39 goes
    assert filtered_sums(low, [slice(0, 10), slice(10, 11)]).tolist() == [9.0, 7.0]
    assert filtered_sums(torch.tensor([0.3, 0.3, 0.3]), [slice(0, 3)]).tolist() == pytest.approx([0.9])


def test_ndcg_of_a_head_worked_out_by_hand():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.9, 0.1, 0.5]])
    found = ndcg_of_heads(scores, torch.tensor([2.0, 0.0, 1.0]), torch.tensor([2.0, 1.0, 0.0]))
    best = 2 + 1 / 1.5849625
    assert found.tolist() == pytest.approx([(1 / 1.5849625 + 2 / 2) / best, (2 + 1 / 1.5849625) / best])


def test_other_scores_of_heads_worked_out_by_hand():
    scores = torch.tensor([[0.2, 0.1, 0.4], [0.3, 0.5, 0.1]])
    grades = torch.tensor([1.0, 0.0, 2.0])
    assert mass_of_relevant(scores, grades, grades).tolist() == pytest.approx([0.6, 0.4])
    assert best_is_relevant(scores, grades, grades).tolist() == [1.0, 0.0]
    first = 1 / (1 + torch.tensor(-1.0).exp())  # 0.2 beside 0.1, divided by 0.1
    second = 1 / (1 + torch.tensor(-3.0).exp())
    found = share_of_positive(scores[:1], grades > 0, temperature=0.1)
    assert found.tolist() == pytest.approx([float(first + second) / 2])
