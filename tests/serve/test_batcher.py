import threading
from concurrent.futures import CancelledError
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import DOCUMENTS, QUERIES, Tiny
from toys import TOYS, Toy

from shortlist import Reranker, Retriever
from shortlist.models.outputs import Rows, split
from shortlist.models.run import embed_documents, run_model, score_pairs
from shortlist.serve import batcher as batcher_module
from shortlist.serve.batcher import ALIKE, Batcher, Item, Queue, Work

BUDGET = 100
ARRIVALS = count()


def queue(*works: Work) -> Queue:
    waiting = Queue({"retriever": BUDGET, "reranker": BUDGET})
    for work in works:
        waiting.add(work)
    return waiting


def work(*lengths: int, model: str = "retriever") -> Work:
    return Work(model, [[7] * length for length in lengths], next(ARRIVALS))


def drain(waiting: Queue) -> list[list[Item]]:
    batches = []
    while batch := waiting.take():
        batches.append(batch)
    return batches


def test_texts_of_several_requests_share_a_batch():
    one, two, three = work(10, 10), work(12), work(9, 9, 9)
    [batch] = drain(queue(one, two, three))
    assert {item.work for item in batch} == {one, two, three}


def test_a_short_query_waits_for_two_batches_at_most_however_much_is_ahead_of_it():
    waiting = queue(work(*[50] * 100), work(*[40] * 100))
    waiting.take()
    query = work(8)
    waiting.add(query)
    behind = [waiting.take() for _ in range(2)]
    assert any(item.work is query for batch in behind for item in batch)


def test_long_work_gets_every_other_batch_whatever_comes_behind_it():
    long = work(*[50] * 20)
    waiting = queue(long)
    batches = []
    while long.waiting:
        waiting.add(work(5))
        waiting.add(work(5))
        batches.append(waiting.take())
    assert len(batches) <= 2 * 10  # two of its texts fill a batch


def test_a_batch_is_of_one_model():
    one, two = work(10), work(10, model="reranker")
    assert [{item.work for item in batch} for batch in drain(queue(one, two))] == [{one}, {two}]


def test_cancelled_work_is_never_taken():
    left, stays = work(10, 10), work(10)
    waiting = queue(left, stays)
    left.future.cancel()
    assert {item.work for batch in drain(waiting) for item in batch} == {stays}
    assert waiting.works == []


def test_work_cancelled_half_way_is_dropped():
    left = work(*[60] * 5)
    waiting = queue(left)
    waiting.take()
    left.future.cancel()
    assert waiting.take() == []


@given(st.lists(st.lists(st.integers(1, 150), min_size=1, max_size=12), min_size=1, max_size=8))
def test_every_text_is_taken_once_in_batches_that_fit_and_hold_no_more_padding_than_text(lengths: list[list[int]]):
    works = [work(*some) for some in lengths]
    batches = drain(queue(*works))
    taken = [(item.work.arrival, item.place) for batch in batches for item in batch]
    assert sorted(taken) == sorted((each.arrival, place) for each in works for place in range(len(each.token_ids)))
    for batch in batches:
        sizes = [len(item.token_ids) for item in batch]
        assert len(sizes) == 1 or max(sizes) * len(sizes) <= BUDGET
        assert max(sizes) <= ALIKE**2 * min(sizes)


@pytest.fixture(scope="module")
def retriever(tiny: Tiny) -> Any:
    return Retriever.load(str(tiny.retriever), packed=False).model


@pytest.fixture(scope="module")
def reranker(tiny: Tiny) -> Any:
    return Reranker.load(str(tiny.reranker), packed=False).model


@pytest.mark.slow
def test_an_answer_is_the_same_whatever_it_was_batched_with(retriever: Any, reranker: Any):
    pairs = [(query, document) for query in QUERIES for document in DOCUMENTS]
    batcher = Batcher({"retriever": retriever, "reranker": reranker}, token_budget=64)
    embedding = [batcher.submit("retriever", retriever.inputs.document_ids([document])) for document in DOCUMENTS]
    scoring = [batcher.submit("reranker", reranker.inputs.pair_ids(pairs[i::5])) for i in range(5)]
    vectors, scores = [[future.result(60).values.numpy() for future in futures] for futures in (embedding, scoring)]
    batcher.close()  # only one thread may run a model
    for document, vector in zip(DOCUMENTS, vectors, strict=True):
        np.testing.assert_allclose(vector, embed_documents(retriever, [document]), atol=1e-6)
    for i, some in enumerate(scores):
        alone = np.concatenate([score_pairs(reranker, [pair]) for pair in pairs[i::5]])
        np.testing.assert_allclose(some, alone, atol=1e-6)


@pytest.mark.parametrize("toy", TOYS)
def test_a_request_gets_all_the_rows_of_its_texts_however_many_they_are(retriever: Any, toy: type[Toy]):
    model = toy(retriever.backbone, retriever.inputs).eval()
    token_ids = retriever.inputs.document_ids(DOCUMENTS)
    batcher = Batcher({"toy": model}, token_budget=64)
    futures = [batcher.submit("toy", token_ids[i::5]) for i in range(5)]
    answers = [future.result(60) for future in futures]
    assert batcher.submit("toy", []).result(0).values.shape == (0, *model.row_shape)
    batcher.close()
    for i, rows in enumerate(answers):
        for ids, actual in zip(token_ids[i::5], split(rows), strict=True):
            torch.testing.assert_close(actual, run_model(model, [ids]).values, atol=1e-5, rtol=1e-5)


def test_requests_are_joined_while_the_model_is_busy(retriever: Any):
    batches: list[int] = []
    started, go_on = threading.Event(), threading.Event()

    def finished(model: str, texts: int, tokens: int, seconds: float) -> None:
        batches.append(texts)
        started.set()
        go_on.wait(30)

    batcher = Batcher({"retriever": retriever}, finished=finished)
    ids = retriever.inputs.query_ids(QUERIES[:1])
    futures = [batcher.submit("retriever", ids)]
    assert started.wait(30)
    futures += [batcher.submit("retriever", ids) for _ in range(7)]
    go_on.set()
    for future in futures:
        assert future.result(30).values.shape == (1, *retriever.row_shape)
    batcher.close()
    assert batches == [1, 7]
    assert batcher.tokens_per_second > 0


def test_a_batch_that_fails_tells_who_waits_for_it_and_the_next_one_is_run(
    retriever: Any, monkeypatch: pytest.MonkeyPatch
):
    def fails_at_three_tokens(model: Any, token_ids: Any, **options: Any) -> Rows:
        if len(token_ids[0]) == 3:
            raise RuntimeError("ours")
        return Rows(torch.zeros(len(token_ids), 2))

    monkeypatch.setattr(batcher_module, "run_model", fails_at_three_tokens)
    batcher = Batcher({"retriever": retriever})
    with pytest.raises(RuntimeError, match="ours"):
        batcher.submit("retriever", [[1, 2, 3]]).result(30)
    assert batcher.submit("retriever", [[1, 2, 3, 4]]).result(30).values.shape == (1, 2)
    assert batcher.alive
    batcher.close()


def test_a_core_for_each_batch_runs_as_many_at_once(retriever: Any, monkeypatch: pytest.MonkeyPatch):
    both, before = threading.Barrier(2), torch.get_num_threads()

    def run_both(model: Any, token_ids: Any, **options: Any) -> Rows:
        both.wait(30)
        return Rows(torch.tensor([[float(len(ids))] for ids in token_ids]))

    monkeypatch.setattr(batcher_module, "run_model", run_both)
    torch.set_num_threads(2)
    try:
        batcher = Batcher({"retriever": retriever}, token_budget=4)
        rows = batcher.submit("retriever", [[1] * length for length in (3, 4, 4, 3)]).result(30)
        batcher.close()
    finally:
        torch.set_num_threads(before)
    assert rows.values.flatten().tolist() == [3, 4, 4, 3]


def test_no_texts_are_answered_at_once_and_a_closed_batcher_takes_none(retriever: Any):
    batcher = Batcher({"retriever": retriever})
    assert batcher.submit("retriever", []).result(0).values.shape == (0, *retriever.row_shape)
    batcher.close()
    with pytest.raises(CancelledError):
        batcher.submit("retriever", [[1]]).result(0)
