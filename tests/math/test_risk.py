import numpy as np
import pytest

from shortlist.math.risk import Needs, control, mean_loss, of_first, of_recall, recalibrate

THREE = of_recall(
    np.array([0, 0, 1, 2, 2]), np.array([1.0, 4.0, 2.0, 3.0, np.inf]), np.array([2, 1, 2])
)  # the mean loss is 1 at 0, 5/6 at 1, 1/2 at 2, 1/3 at 3, 1/6 at 4


def test_three_queries_by_hand():
    assert [mean_loss(THREE, float(cut)) for cut in range(5)] == pytest.approx([1, 5 / 6, 1 / 2, 1 / 3, 1 / 6])
    for level, cut in ((0.5, 3), (0.625, 2), (0.375, 4)):  # 3/4 of the loss and 1/4 more
        assert control(THREE, level) == (cut, pytest.approx(0.375))
        assert control(THREE, level - 0.001).cut != cut
    assert control(THREE, 0.374).cut is None
    assert control(THREE, 0.876).cut == 1.0


def test_the_loss_of_at_least_one_is_the_rank_of_the_first_relevant_document():
    rng = np.random.default_rng(0)
    ranks = rng.permutation(60)[:40].astype(float)
    needs = of_first(of_recall(np.arange(40).repeat(2), np.stack([ranks, ranks + 99], 1).ravel(), np.full(40, 2)))
    for level in (0.3, 0.1, 0.05):
        expected = np.sort(ranks)[int(np.ceil(41 * (1 - level) - 1e-9)) - 1]
        assert control(needs, level).cut == expected


def test_too_few_queries_or_too_shallow_a_run_promise_nothing():
    perfect = of_recall(np.arange(9), np.ones(9), np.ones(9, dtype=int))
    assert control(perfect, 0.1) == (1.0, pytest.approx(0.1))
    assert control(perfect, 0.09).cut is None
    nothing = of_recall(np.zeros(1, dtype=int), np.array([np.inf]), np.array([1]))
    assert control(nothing, 0.9) == (None, 1.0)
    assert np.isinf(recalibrate(nothing, 0.9, resamples=3)).all()


def test_the_order_of_documents_changes_nothing():
    order = np.array([4, 2, 0, 3, 1])
    queries, cuts = np.array([0, 0, 1, 2, 2]), np.array([1.0, 4.0, 2.0, 3.0, np.inf])
    assert control(of_recall(queries[order], cuts[order], np.array([2, 1, 2])), 0.5) == control(THREE, 0.5)


def test_the_promise_is_kept_on_average_over_calibrations():
    rng, losses = np.random.default_rng(0), []
    for _ in range(400):
        ranks = rng.geometric(0.1, 60).astype(float)
        needs = of_recall(np.arange(60), ranks, np.ones(60, dtype=int))
        cut = control(needs, 0.2).cut
        assert cut is not None
        losses.append(0.9**cut)  # the probability that a new query's document stands lower
    assert 0.17 < np.mean(losses) <= 0.2


def test_other_draws_are_calibrations_of_those_queries():
    needs = Needs(np.arange(30), np.arange(1.0, 31), np.ones(30), 30)
    found = recalibrate(needs, 0.2, resamples=50)
    assert len(found) == 50
    assert found.min() < control(needs, 0.2).cut < found.max()
    drawn = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), 50)[0]
    queries = np.arange(30).repeat(drawn)
    assert control(of_recall(np.arange(30), queries + 1.0, np.ones(30, dtype=int)), 0.2).cut == found[0]
