from collections import Counter

import numpy as np
import pytest

from shortlist.math.sampling import draw_depths, draw_negatives, epoch_negatives, highest_allowed, interleave, shortfall

CANDIDATES = [f"c{i}" for i in range(10)]
CORPUS = CANDIDATES + [f"r{i}" for i in range(90)]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_lists_are_blended_rank_by_rank():
    assert interleave([["a", "b", "c", "d"], ["b", "x"]], depth=10) == ["a", "b", "x", "c", "d"]


def test_a_blend_holds_the_first_depth_ids_each_once():
    assert interleave([["a", "b", "c"], ["a", "b", "d"]], depth=3) == ["a", "b", "c"]
    assert interleave([[], []], depth=3) == []


def test_negatives_are_drawn_from_the_candidates_without_the_excluded():
    drawn = draw_negatives(CANDIDATES, CORPUS, {"c0", "c1"}, rng(), number=5)
    assert len(set(drawn)) == 5
    assert set(drawn) <= set(CANDIDATES) - {"c0", "c1"}


def test_too_few_candidates_give_fewer_negatives_and_no_repetition():
    drawn = draw_negatives(CANDIDATES, CORPUS, {"c0", "c1"}, rng(), number=50)
    assert sorted(drawn) == sorted(set(CANDIDATES) - {"c0", "c1"})


def test_every_eligible_candidate_is_drawn_equally_often():
    counts = Counter(
        doc_id for seed in range(2000) for doc_id in draw_negatives(CANDIDATES, [], {"c9"}, rng(seed), number=3)
    )
    assert counts.keys() == set(CANDIDATES[:9])
    assert all(580 < count < 755 for count in counts.values())  # 2000 * 3 / 9 = 667, four deviations of 21


def test_the_random_share_comes_from_the_whole_corpus():
    drawn = draw_negatives(CANDIDATES, CORPUS, set(), rng(), number=8, random_share=0.25)
    assert len(set(drawn)) == 8
    assert set(drawn[:6]) <= set(CANDIDATES)
    assert draw_negatives([], CORPUS, set(), rng(), number=8, random_share=1.0)[0].startswith("r")


@pytest.mark.parametrize("seed", range(20))
def test_random_negatives_are_never_excluded_nor_drawn_before(seed: int):
    excluded = set(CORPUS[3:95])
    drawn = draw_negatives(CANDIDATES, CORPUS, excluded, rng(seed), number=6, random_share=0.5)
    assert len(drawn) == len(set(drawn)) == 6
    assert not excluded & set(drawn)


def test_a_small_corpus_gives_all_it_has():
    assert sorted(draw_negatives([], ["a", "b", "c"], {"b"}, rng(), number=9, random_share=1.0)) == ["a", "c"]


def test_the_same_seed_draws_the_same():
    arguments = (CANDIDATES, CORPUS, {"c3"})
    first, again, other = (draw_negatives(*arguments, rng(seed), number=6, random_share=0.5) for seed in (7, 7, 8))
    assert first == again != other


def test_epochs_walk_through_all_negatives_before_repeating_one():
    slices = [epoch_negatives(CANDIDATES, 5, epoch=epoch, seed=1) for epoch in range(4)]
    assert sorted(slices[0] + slices[1]) == sorted(CANDIDATES)
    assert slices[2:] == slices[:2]


def test_over_many_epochs_every_negative_is_used_equally_often_and_never_twice_in_one():
    slices = [epoch_negatives(CANDIDATES, 7, epoch=epoch, seed=[3, 4]) for epoch in range(10)]
    assert all(len(set(chosen)) == 7 for chosen in slices)
    assert set(Counter(doc_id for chosen in slices for doc_id in chosen).values()) == {7}


def test_a_group_with_too_few_negatives_gives_those_it_has():
    assert epoch_negatives(["a", "b"], 5, epoch=3, seed=0) == ["a", "b"]
    assert epoch_negatives([], 5, epoch=3, seed=0) == []
    assert epoch_negatives(["a", "b"], 0, epoch=3, seed=0) == []


def test_groups_of_different_seeds_are_shuffled_differently():
    assert epoch_negatives(CANDIDATES, 5, epoch=0, seed=[0, 1]) != epoch_negatives(CANDIDATES, 5, epoch=0, seed=[0, 2])


def test_groups_with_fewer_negatives_than_asked_are_counted():
    counts = np.array([0, 2, 3, 4])
    assert [shortfall(counts, negatives) for negatives in (None, 0, 1, 3, 4, 9)] == [0, 0, 1, 2, 3, 4]


def test_the_positive_with_the_lowest_score_limits_the_negatives():
    assert highest_allowed([0.8, 0.6], ratio=0.95) == pytest.approx(0.57)
    assert highest_allowed([0.8, 0.6], margin=0.01) == pytest.approx(0.59)
    assert highest_allowed([0.8, 0.6], ratio=0.95, margin=0.2) == pytest.approx(0.4)
    assert highest_allowed([0.6]) == np.inf


def test_below_zero_a_share_of_the_positives_score_is_lower_too():
    assert highest_allowed([-2.0], ratio=0.75) == -2.5
    assert highest_allowed([2.0], ratio=0.75) == 1.5


def test_depths_of_a_query_differ_and_all_are_equally_likely():
    drawn = draw_depths(6000, 2, most=5, rng=rng())
    assert drawn.shape == (2, 6000)
    assert (drawn[0] != drawn[1]).all()
    for version in drawn:
        counts = np.bincount(version, minlength=6)
        assert len(counts) == 6
        assert (abs(counts - 1000) < 5 * 1000**0.5).all()
    assert np.array_equal(drawn, draw_depths(6000, 2, most=5, rng=rng()))
    assert sorted(draw_depths(1, 4, most=3, rng=rng())[:, 0]) == [0, 1, 2, 3]
