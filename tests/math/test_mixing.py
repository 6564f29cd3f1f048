import pytest
import torch

from shortlist.math.mixing import Mixtures, draw_mixtures, mixed_scores, with_negatives_of_each
from shortlist.math.ranking import Ranking

HARD = torch.tensor([[False, True, True, True], [False, False, False, True]])


def test_a_mixture_is_scored_as_worked_out_by_hand():
    queries, documents = torch.tensor([[1.0, 2.0]]), torch.tensor([[9.0, 9.0], [3.0, 0.0], [0.0, 1.0]])
    mixtures = Mixtures(torch.tensor([[[1, 2]]]), torch.tensor([[0.25]]), torch.tensor([[True]]))
    # 1/4 (3, 0) + 3/4 (0, 1) = (3/4, 3/4), whose product with (1, 2) is 9/4; of length 1 it is (1, 1) / sqrt(2)
    assert mixed_scores(queries, documents, mixtures, unit=False).item() == pytest.approx(9 / 4)
    assert mixed_scores(queries, documents, mixtures, unit=True).item() == pytest.approx(3 / 2**0.5)


def test_only_two_different_hard_negatives_of_the_query_are_mixed():
    torch.manual_seed(0)
    columns, shares, keep = draw_mixtures(HARD, 50)
    assert keep[0].all()
    assert not keep[1].any()  # a single negative has no partner
    assert {tuple(sorted(pair)) for pair in columns[0].tolist()} == {(1, 2), (1, 3), (2, 3)}
    assert shares.shape == (2, 50)


def test_shares_have_the_mean_and_variance_of_beta_2_2():
    torch.manual_seed(0)
    shares = draw_mixtures(HARD, 20_000).shares
    assert shares.mean().item() == pytest.approx(0.5, abs=0.005)
    assert shares.var().item() == pytest.approx(0.05, abs=0.001)  # of Beta(1, 1) it would be 0.083


def test_the_same_seed_draws_the_same_mixtures():
    first, second = (draw_mixtures(HARD, 3) for _ in range(2) if torch.manual_seed(4))
    assert all(map(torch.equal, first, second))


def test_gradients_reach_both_documents_of_a_mixture():
    documents = torch.eye(3).requires_grad_()
    mixtures = Mixtures(torch.tensor([[[0, 1]]]), torch.tensor([[0.25]]), torch.tensor([[True]]))
    mixed_scores(torch.ones(1, 3), documents, mixtures, unit=False).sum().backward()
    assert documents.grad is not None
    assert documents.grad[:, 0].tolist() == [0.25, 0.75, 0.0]


def test_appended_columns_are_not_relevant_and_no_teacher_knows_them():
    ranking = Ranking(torch.ones(1, 2), torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2), torch.ones(1, 2).bool())
    wider = with_negatives_of_each(ranking, torch.tensor([[5.0, 6.0]]), torch.tensor([[True, False]]))
    assert wider.scores.tolist() == [[1, 1, 5, 6]]
    assert wider.relevance.tolist() == [[1, 0, 0, 0]]
    assert wider.keep.tolist() == [[True, True, True, False]]
    assert wider.teacher is not None
    assert wider.teacher.isnan().tolist() == [[False, False, True, True]]
