"""Scoring of chunks, in this process, in several, or on a cluster."""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from shortlist.engine import Engine, spread
from shortlist.rerank.candidates import Chunk
from shortlist.rerankers import Ranker, Scored
from shortlist.rerankers.asked import AskingReranker
from shortlist.rerankers.limits import CallLimits
from shortlist.rerankers.lists import score_lists
from shortlist.rerankers.prepared import Prepared


@dataclass(frozen=True)
class Scorer:
    """Scores chunks in the process that it is sent to.

    The reranker is opened there when the first chunk comes.
    """

    prepared: Prepared
    limits: CallLimits | None = None
    """What a language model may be asked, and where its answers go."""

    @cached_property
    def ranker(self) -> Ranker:
        """The reranker, ready to score."""
        return self.prepared.open(limits=self.limits) if self.prepared.asks else self.prepared.open()

    @property
    def asking(self) -> AskingReranker | None:
        """The reranker, if it asks a language model and was opened in this process."""
        ranker = self.__dict__.get("ranker")
        return ranker if isinstance(ranker, AskingReranker) else None

    def parts(self, chunk: Chunk) -> Iterator[Scored]:
        """Yield scores of the chunk's candidates as they become known.

        Candidates have the numbers of their hits in the run.
        """
        for numbers, scores, num_tokens in score_lists(self.ranker, chunk.lists):
            yield Scored(chunk.numbers[numbers], scores, num_tokens)

    def close(self) -> None:
        """Close the log of a language model's answers."""
        if self.asking:
            self.asking.close()

    def __call__(self, chunk: Chunk) -> Scored:
        """Score the whole chunk."""
        parts = [*self.parts(chunk)] or [Scored(chunk.numbers[:0], np.empty(0, dtype=np.float32), 0)]
        numbers, scores, tokens = zip(*parts, strict=True)
        return Scored(np.concatenate(numbers), np.concatenate(scores), sum(tokens))


def score_chunks(
    scorer: Scorer, chunks: Iterator[Chunk], *, engine: Engine, workers: int | None
) -> Generator[Scored, None, None]:
    """Score chunks in this process or in others.

    In this process, scores are yielded as they become known; from other processes, chunk by chunk.
    """
    workers = workers or (None if engine == "ray" else max(1, torch.cuda.device_count()))
    if engine == "local" and workers == 1:
        for chunk in chunks:
            yield from scorer.parts(chunk)
        return
    with closing(spread(scorer, chunks, engine=engine, workers=workers)) as parts:
        yield from parts
