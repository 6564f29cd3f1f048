import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tiny import DOCUMENTS, Tiny

from shortlist.models import apart
from shortlist.models.apart import on_cores_of_their_own, runs_apart
from shortlist.models.retriever import Retriever
from shortlist.models.run import run_model


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_each_item_has_one_thread_and_all_others_keep_theirs():
    assert list(on_cores_of_their_own(lambda _: torch.get_num_threads(), range(5))) == [1] * 5
    seen: list[int] = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert [torch.get_num_threads(), *seen] == [2, 2]


@pytest.mark.usefixtures("two_threads")
def test_two_items_are_under_way_at_once_and_results_come_in_order():
    both = threading.Barrier(2)

    def work(item: int) -> int:
        both.wait(30)
        return item

    assert list(on_cores_of_their_own(work, range(6))) == list(range(6))


@pytest.mark.usefixtures("two_threads")
def test_an_error_is_raised_where_its_result_would_come_and_ends_the_work():
    done: list[int] = []

    def work(item: int) -> int:
        if item == 1:
            raise RuntimeError("ours")
        done.append(item)
        return item

    results = on_cores_of_their_own(work, range(1000))
    assert next(results) == 0
    with pytest.raises(RuntimeError, match="ours"):
        next(results)
    assert len(done) < 10


@pytest.mark.usefixtures("two_threads")
def test_rows_do_not_depend_on_the_number_of_threads(tiny: Tiny):
    model = Retriever.load(str(tiny.retriever), packed=False).model
    token_ids = model.inputs.document_ids(DOCUMENTS)
    assert runs_apart(model)
    together = run_model(model, token_ids, token_budget=32).values
    torch.set_num_threads(1)
    assert not runs_apart(model)
    assert np.array_equal(together, run_model(model, token_ids, token_budget=32).values)


@pytest.mark.usefixtures("two_threads")
def test_wide_models_use_all_threads_for_each_batch(tiny: Tiny, monkeypatch: pytest.MonkeyPatch):
    model = Retriever.load(str(tiny.retriever), packed=False).model
    monkeypatch.setattr(apart, "WIDEST", model.backbone.config.hidden_size - 1)
    assert not runs_apart(model)
