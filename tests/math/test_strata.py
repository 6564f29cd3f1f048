import numpy as np
import pytest

from shortlist.math.strata import take_from_strata, to_unit


def test_values_are_scaled_to_0_and_1():
    assert to_unit(np.array([3.0, 1.0, 2.0])).tolist() == [1, 0, 0.5]
    assert to_unit(np.array([2.0, 2.0])).tolist() == [0, 0]


def test_the_smallest_stratum_gives_all_and_the_others_an_equal_share():
    """Two, four and six items are in three strata, and two have the highest scores of all: 7 are wanted."""
    scores = np.array([0.0, 0.1, *[0.4] * 4, *[0.9] * 5, 0.999, 5.0, 6.0])
    taken, strata = take_from_strata(scores, 7, num_strata=3, hardest=2 / 14, seed=0)
    assert [(stratum.size, stratum.taken) for stratum in strata] == [(2, 2), (4, 2), (6, 3)]
    assert {0, 1} < {*taken.tolist()} < {*range(12)}
    assert len({*taken.tolist()}) == 7


def test_a_stratum_without_items_takes_no_part():
    scores = np.array([0.0, 0.01, 0.99, 1.0])
    taken, strata = take_from_strata(scores, 2, num_strata=10, hardest=0.0, seed=1)
    assert [(stratum.size, stratum.taken) for stratum in strata] == [(2, 1), (2, 1)]
    assert (strata[0].low, strata[1].high) == (0, 1)
    assert len(taken) == 2


def test_equal_scores_are_one_stratum_and_the_seed_decides():
    drawn = [take_from_strata(np.zeros(50), 5, num_strata=4, hardest=0.1, seed=seed)[0].tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("size", [1, 5, 13, 90])
def test_as_many_are_taken_as_wanted(size: int):
    scores = np.random.default_rng(0).gamma(1, size=100)
    taken, strata = take_from_strata(scores, size, num_strata=7, hardest=0.1, seed=0)
    assert len(taken) == size == sum(stratum.taken for stratum in strata)
    assert scores[taken].max() <= np.sort(scores)[89]
