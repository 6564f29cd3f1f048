"""Scoring chunk after chunk, in this process, in several, or on a cluster."""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from shortlist.engine import Engine, spread
from shortlist.rerank.candidates import Chunk
from shortlist.rerankers import Ranker, Scored
from shortlist.rerankers.lists import score_lists
from shortlist.rerankers.prepared import Prepared


@dataclass(frozen=True)
class Scorer:
    """Scores chunks in whichever process it is sent to; the reranker is opened there, when the first one comes."""

    prepared: Prepared

    @cached_property
    def ranker(self) -> Ranker:
        """The reranker, ready to score."""
        return self.prepared.open()

    def parts(self, chunk: Chunk) -> Iterator[Scored]:
        """The chunk's candidates, by their numbers among the run's hits, as they are scored."""
        for numbers, scores, num_tokens in score_lists(self.ranker, chunk.lists):
            yield Scored(chunk.numbers[numbers], scores, num_tokens)

    def __call__(self, chunk: Chunk) -> Scored:
        """The whole chunk."""
        numbers, scores, tokens = zip(*self.parts(chunk), strict=True)
        return Scored(np.concatenate(numbers), np.concatenate(scores), sum(tokens))


def score_chunks(
    scorer: Scorer, chunks: Iterator[Chunk], *, engine: Engine, workers: int | None
) -> Generator[Scored, None, None]:
    """Score chunks here, as many candidates at a time as become known together, or elsewhere, chunk by chunk."""
    workers = workers or (None if engine == "ray" else max(1, torch.cuda.device_count()))
    if engine == "local" and workers == 1:
        for chunk in chunks:
            yield from scorer.parts(chunk)
        return
    with closing(spread(scorer, chunks, engine=engine, workers=workers)) as parts:
        yield from parts
