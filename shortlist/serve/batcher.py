"""Queue of texts from many requests, and the threads that run the models.

A batch may hold texts of several requests.
"""

import threading
import time
from bisect import insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import nullcontext, suppress
from itertools import count
from typing import NamedTuple, final

import torch

from shortlist.models.apart import runs_apart
from shortlist.models.memory import give_back_memory
from shortlist.models.outputs import Rows, join, select
from shortlist.models.run import Model, TokenIds, default_token_budget, run_model
from shortlist.text.batching import token_batches

SMALLER = 4
"""How many times smaller a batch is here than when many texts are read at once. It is as fast, and later requests wait
less."""
ALIKE = 2
"""Texts share a batch if neither is more than this many times as long as the other, to limit padding."""
LOOK_AHEAD = 4
"""Number of batches' worth of waiting texts to search for texts of similar length."""
PACE = 0.2
"""Weight of the last batch in the reported speed."""

TRIMMED = 4
"""Number of batches after which free memory is returned to the system."""


Finished = Callable[[str, int, int, float], None]
"""Called after each batch with the model's name, the number of texts, their tokens without padding, and seconds."""


@final
class Work:
    """The texts of one request that wait for one model.

    Args:
        arrival: a number that grows from one work to the next.
    """

    def __init__(self, model: str, token_ids: Sequence[TokenIds], arrival: int) -> None:
        self.model, self.token_ids, self.arrival = model, token_ids, arrival
        self.future: Future[Rows] = Future()
        self.waiting = sorted(range(len(token_ids)), key=lambda place: -len(token_ids[place]))
        self.num_tokens = sum(map(len, token_ids))
        """Tokens of the waiting texts."""
        self.places: list[int] = []
        """Numbers of the finished texts, in the order of their rows in `parts`."""
        self.parts: list[Rows] = []
        self._lock = threading.Lock()

    def take(self, places: set[int]) -> None:
        """Remove these texts from those that wait."""
        self.waiting = [place for place in self.waiting if place not in places]
        self.num_tokens -= sum(len(self.token_ids[place]) for place in places)

    def give(self, places: Sequence[int], rows: Rows) -> None:
        """Add the model's rows for some of the texts; the last rows finish the work."""
        with self._lock:
            self.places += places
            self.parts.append(rows)
            last = len(self.places) == len(self.token_ids)
        if last:
            with suppress(InvalidStateError):  # it was just cancelled
                self.future.set_result(select(join(self.parts), torch.tensor(self.places).argsort()))


class Item(NamedTuple):
    """A text of a work."""

    work: Work
    place: int

    @property
    def token_ids(self) -> TokenIds:
        """The token ids that the model reads."""
        return self.work.token_ids[self.place]


@final
class Queue:
    """The waiting works, and the rule that chooses the next batch.

    Batches begin alternately with the oldest work and with the shortest. So a short query waits for at most two
    batches, however much long work is ahead of it, and long work still gets every other batch. A batch is for one
    model. It is filled up in the same order with texts of similar length, until the token budget is used.
    """

    def __init__(self, token_budgets: Mapping[str, int]) -> None:
        self.token_budgets = dict(token_budgets)
        self.works: list[Work] = []
        self.oldest_first = False

    def add(self, work: Work) -> None:
        """Add a work at the end of the queue."""
        insort(self.works, work, key=lambda work: work.arrival)

    def take(self) -> list[Item]:
        """Take the next batch out of the queue; empty if nothing waits.

        Cancelled works are removed from the queue.
        """
        self.works = [work for work in self.works if work.waiting and not work.future.cancelled()]
        if not self.works:
            return []
        self.oldest_first = not self.oldest_first
        order = self.works if self.oldest_first else sorted(self.works, key=lambda work: work.num_tokens)
        budget = self.token_budgets[order[0].model]
        window = list(_alike(order, LOOK_AHEAD * budget))
        batches = token_batches([len(item.token_ids) for item in window], budget)
        batch = [window[i] for i in next(batch for batch in batches if 0 in batch)]
        for work in dict.fromkeys(item.work for item in batch):
            work.take({item.place for item in batch if item.work is work})
        return batch


def _alike(order: Sequence[Work], most_tokens: int) -> Iterator[Item]:
    """Yield texts like the first one until `most_tokens` tokens are reached.

    They are for the same model and about as long.
    """
    first = Item(order[0], order[0].waiting[0])
    length, num_tokens = len(first.token_ids), 0
    for work in order:
        for place in work.waiting if work.model == first.work.model else ():
            tokens = len(work.token_ids[place])
            if length <= ALIKE * tokens and tokens <= ALIKE * length:
                yield Item(work, place)
                num_tokens += tokens
                if num_tokens >= most_tokens:
                    return


@final
class Batcher:
    """Runs the models in threads, which alone may use them.

    There is one thread for each core, as a batch of a small model is computed by one core. Batches of other models are
    run one at a time.

    Args:
        token_budget: tokens per forward pass, padding included (None: chosen for the device and short waits).
        finished: called after each batch.
    """

    def __init__(
        self, models: Mapping[str, Model], *, token_budget: int | None = None, finished: Finished | None = None
    ) -> None:
        self.models, self.finished, self.token_budget = dict[str, Model](), finished, token_budget
        self.queue = Queue({})
        for name, model in models.items():
            self.add(name, model)
        self.tokens_per_second = 0.0
        """Recent speed; 0 before the first batch."""
        self._changed = threading.Condition()
        self._closed, self._arrivals = False, 0
        self._one_at_a_time = threading.Lock()
        threads = 1 if torch.cuda.is_available() else torch.get_num_threads()
        self._threads = [threading.Thread(target=self._work, name="models", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def add(self, name: str, model: Model) -> None:
        """Add a model; call this before anything is submitted to it."""
        device = next(model.parameters()).device
        self.queue.token_budgets[name] = self.token_budget or default_token_budget(device) // SMALLER
        self.models[name] = model

    def submit(self, model: str, token_ids: Sequence[TokenIds]) -> "Future[Rows]":
        """Submit texts to a model; the result has its rows in the same order.

        Cancelling the future removes texts that have not been run from the queue.
        """
        with self._changed:
            self._arrivals += 1
            work = Work(model, token_ids, self._arrivals)
            if self._closed:
                work.future.cancel()
            elif token_ids:
                self.queue.add(work)
                self._changed.notify_all()  # it may be enough for all threads
            else:
                work.future.set_result(Rows(torch.zeros(0, *self.models[model].row_shape)))
        return work.future

    @property
    def alive(self) -> bool:
        """Whether the threads are still running."""
        return all(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        """End the threads and cancel all waiting work."""
        with self._changed:
            self._closed = True
            for work in self.queue.works:
                work.future.cancel()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        for number in count(1):
            if not (batch := self._next()):
                return
            if number % TRIMMED == 0:
                give_back_memory()
            try:
                self._run(batch)
            except Exception as error:  # only this batch fails; the next one may succeed
                for work in {item.work for item in batch}:
                    with suppress(InvalidStateError):
                        work.future.set_exception(error)
                    work.waiting = []

    def _next(self) -> list[Item]:
        with self._changed:
            while not (batch := self.queue.take()) and not self._closed:
                self._changed.wait()
        return [] if self._closed else batch

    def _run(self, batch: Sequence[Item]) -> None:
        name = batch[0].work.model
        token_ids = [item.token_ids for item in batch]
        lengths = [len(ids) for ids in token_ids]
        apart = runs_apart(self.models[name])
        with nullcontext() if apart else self._one_at_a_time:
            start = time.monotonic()
            rows = run_model(self.models[name], token_ids, token_budget=max(lengths) * len(lengths))
            seconds = max(time.monotonic() - start, 1e-6)
        self._pace(sum(lengths) / seconds * (len(self._threads) if apart else 1))
        for work in dict.fromkeys(item.work for item in batch):
            texts = [i for i, item in enumerate(batch) if item.work is work]
            work.give([batch[i].place for i in texts], select(rows, torch.tensor(texts)))
        if self.finished:
            self.finished(name, len(lengths), sum(lengths), seconds)

    def _pace(self, now: float) -> None:
        before = self.tokens_per_second or now
        self.tokens_per_second = (1 - PACE) * before + PACE * now
