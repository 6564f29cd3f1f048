import numpy as np
import pytest

from shortlist.math.outcomes import (
    BELOW,
    BROUGHT_IN,
    FOUND,
    KEPT,
    LIFTED,
    NEVER,
    NOT_LIFTED,
    OUTCOMES,
    PUSHED_DOWN,
    WITHIN,
    outcomes,
)


def test_every_outcome_is_the_one_that_it_is_called():
    before = np.array([0, 150, 40, 3, 60, 7])
    after = np.array([0, 150, 30, 25, 2, 1])
    expected = [NEVER, BELOW, NOT_LIFTED, PUSHED_DOWN, LIFTED, KEPT]
    assert outcomes(before, after, depth=100, k=10).tolist() == expected
    assert outcomes(before, None, depth=100, k=10).tolist() == [NEVER, BELOW, WITHIN, FOUND, WITHIN, FOUND]


def test_the_ends_of_the_top_and_of_the_depth_belong_to_them():
    before, after = np.array([10, 11, 100, 101]), np.array([11, 10, 10, 101])
    assert outcomes(before, after, depth=100, k=10).tolist() == [PUSHED_DOWN, LIFTED, LIFTED, BELOW]


def test_a_document_that_the_reranked_run_lacks_is_not_in_its_top():
    assert outcomes(np.array([3, 30]), np.array([0, 0]), depth=100, k=10).tolist() == [PUSHED_DOWN, NOT_LIFTED]


def test_a_second_search_brings_documents_into_the_top_that_no_reranker_could():
    assert outcomes(np.array([0, 0, 101]), np.array([10, 11, 1]), depth=100, k=10).tolist() == [
        BROUGHT_IN,
        NEVER,
        BROUGHT_IN,
    ]


@pytest.mark.parametrize("reranked", [True, False])
def test_what_is_lost_before_the_reranker_is_lost_with_it_too(reranked: bool):
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 200, 500), rng.integers(0, 200, 500)
    found = outcomes(before, after if reranked else None, depth=100, k=10)
    assert set(found) <= set(range(len(OUTCOMES)))
    brought_in = reranked & (after > 0) & (after <= 10)
    assert ((found == NEVER) == ((before == 0) & ~brought_in)).all()
    assert ((found == BELOW) == ((before > 100) & ~brought_in)).all()
    assert ((found == BROUGHT_IN) == (((before == 0) | (before > 100)) & brought_in)).all()
