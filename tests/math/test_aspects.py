import numpy as np
import pytest

from shortlist.math.aspects import alpha_ndcg, err_ia, map_ia, novelty, nrbp, subtopic_recall

JUDGED = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]], dtype=bool)  # A: a; B: b; C: c; D: b
FOUND = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 1, 0]], dtype=bool)  # A, D, E, B


def test_a_list_worked_out_by_hand_has_the_values_of_ndeval():
    assert novelty(FOUND).tolist() == [1, 1, 0, 0.5]
    assert err_ia(FOUND, JUDGED, cutoff=5) == pytest.approx(0.3933, abs=5e-5)
    assert alpha_ndcg(FOUND, JUDGED, cutoff=5) == pytest.approx(1.846268 / 2.346268, abs=1e-6)
    assert alpha_ndcg(FOUND, JUDGED, cutoff=5) == pytest.approx(0.7868, abs=1e-4)
    assert subtopic_recall(FOUND, JUDGED, cutoff=5) == pytest.approx(2 / 3)
    assert subtopic_recall(FOUND, JUDGED, cutoff=1) == pytest.approx(1 / 3)
    assert map_ia(FOUND, JUDGED) == pytest.approx((1 + (1 / 2 + 2 / 4) / 2 + 0) / 3)
    assert map_ia(FOUND, JUDGED, cutoff=2) == pytest.approx((1 + (1 / 2) / 2 + 0) / 3)
    assert nrbp(FOUND, JUDGED) == pytest.approx(0.3906, abs=5e-5)


def test_the_order_of_judgements_and_of_aspects_changes_nothing():
    for order, aspects in (([3, 1, 0, 2], [2, 0, 1]), ([2, 3, 1, 0], [1, 2, 0])):
        for measure in (alpha_ndcg, err_ia, subtopic_recall, map_ia, nrbp):
            shuffled = measure(FOUND[:, aspects], JUDGED[order][:, aspects], cutoff=3)
            assert shuffled == pytest.approx(measure(FOUND, JUDGED, cutoff=3))


def test_the_best_list_has_1_and_repetition_costs():
    assert alpha_ndcg(JUDGED, JUDGED, cutoff=3) == 1.0
    assert alpha_ndcg(JUDGED[[1, 3, 0]], JUDGED, cutoff=3) < 1.0
    assert alpha_ndcg(JUDGED[[1, 3]], JUDGED, cutoff=2, alpha=0.0) == 1.0
    everything = np.ones((3, 2), dtype=bool)
    assert err_ia(everything, everything, cutoff=3) == pytest.approx(1.0)


def test_nothing_found_and_nothing_judged_is_0():
    none = np.zeros((0, 3), dtype=bool)
    for measure in (alpha_ndcg, err_ia, subtopic_recall, map_ia, nrbp):
        assert measure(none, JUDGED, cutoff=5) == 0.0
        assert measure(FOUND, np.zeros((2, 3), dtype=bool), cutoff=5) == 0.0
