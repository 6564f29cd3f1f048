from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shortlist.index import leaders
from shortlist.index.leaders import Leaders
from shortlist.math.scoring import from_keys, to_keys


def by_the_book(scores, positions, k):
    return to_keys(scores.T, positions).sort(dim=1, descending=True).values[:, :k]


@pytest.mark.slow
@given(
    num_docs=st.integers(0, 200),
    k=st.integers(1, 60),
    pieces=st.integers(1, 40),
    fewest_waiting=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_the_best_are_those_of_all_scores_at_once(num_docs, k, pieces, fewest_waiting, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-3, 4, (num_docs, 3), generator=generator).float()
    positions = torch.randperm(num_docs, generator=generator)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(leaders, "FEWEST_WAITING", fewest_waiting)
        found = Leaders(3, k)
        for some, places in zip(scores.split(pieces), positions.split(pieces), strict=True):
            found.offer(some, places)
        assert torch.equal(found.best(), by_the_book(scores, positions, k))


def test_unused_columns_are_never_looked_at():
    scores = torch.tensor([[1.0, 9.0], [2.0, torch.nan]])
    found = Leaders(1, 2, unused=1)
    found.offer(scores, torch.tensor([0, 1]))
    assert found.best().shape == (1, 2)
    assert from_keys(found.best())[1].tolist() == [[1, 0]]


def test_what_scores_less_than_the_kth_best_is_not_kept(monkeypatch):
    monkeypatch.setattr(leaders, "FEWEST_WAITING", 2)
    found = Leaders(1, 2)
    found.offer(torch.arange(20.0)[:, None], torch.arange(20))
    assert found.thresholds.tolist() >= [10.0]
    found.offer(torch.zeros(1000, 1), torch.arange(20, 1020))
    assert int(found.counts.max()) <= 4
    assert from_keys(found.best())[0].tolist() == [[19.0, 18.0]]


def test_what_is_not_expected_is_not_found_until_it_starts_again():
    scores = torch.tensor([[5.0, 1.0], [4.0, 2.0], [3.0, 3.0]])
    found = Leaders(2, 2)
    found.expect(torch.tensor([4.0, 2.5]))
    found.offer(scores, torch.arange(3))
    assert found.are_short()  # of the second query, only one document reaches 2.5
    found.start_again()
    found.offer(scores, torch.arange(3))
    assert not found.are_short()
    assert found.counts.tolist() == [3, 3]
    assert from_keys(found.best())[1].tolist() == [[0, 1], [2, 1]]


def test_a_store_smaller_than_k_is_not_short():
    found = Leaders(1, 10, unused=3)
    found.offer(torch.zeros(2, 4), torch.arange(2))
    assert not found.are_short()


@pytest.mark.slow
def test_threads_may_offer_at_the_same_time():
    scores = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(3000)
    found = Leaders(4, 50)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(found.offer, scores.split(7), positions.split(7)))
    assert torch.equal(found.best(), by_the_book(scores, positions, 50))
