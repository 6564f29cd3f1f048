"""How fast lists are made varied: shortlist's MMR beside a greedy loop in NumPy, query by query, with the same choices.

    python benchmarks/diversify_speed.py --out benchmarks/diversify_speed.md

Made-up unit vectors: documents around topics, queries near documents, the nearest documents as candidates, the cosine
scaled to [0, 1] as relevance. The loop keeps each candidate's highest similarity with what is chosen, and after a
choice compares all candidates with it in one product. Both sides run in one process, in turns, on the same arrays. In
32 bits two candidates may be equally good to the last bit, so the choices are compared by their values.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from measuring import conditions, publish, rounds_of, table

from shortlist.math.diversity import mmr, scaled, unit_rows

ALLOWED = 1e-5
"""Most that the value of a choice may lie below the best one's."""


@dataclass(frozen=True, kw_only=True)
class Config:
    queries: int = 1000
    """Queries of which each has a list."""
    candidates: int = 1000
    """Candidates of each query."""
    k: int = 100
    """Documents to choose."""
    documents: int = 20_000
    """Documents that the candidates are found among."""
    dim: int = 384
    """Numbers of a vector."""
    topics: int = 200
    """Topics that the documents are about."""
    shares: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    """Weights of relevance."""
    rounds: int = 5
    """Times every side runs."""
    out: Path | None = None
    """Markdown file to write too."""


class Lists(NamedTuple):
    """The documents' vectors, and the candidates of each query with their relevance."""

    vectors: np.ndarray
    candidates: np.ndarray
    relevance: np.ndarray


def made_up(config: Config) -> Lists:
    """Make documents around topics, and find the nearest to each query."""
    rng = np.random.default_rng(0)
    topics = rng.normal(size=(config.topics, config.dim))
    about = topics[rng.integers(config.topics, size=config.documents)]
    drawn = about + rng.normal(size=(config.documents, config.dim)) + rng.normal(size=config.dim)
    vectors = unit_rows(drawn.astype(np.float32))
    near = vectors[rng.integers(config.documents, size=config.queries)]
    queries = unit_rows(near + 0.04 * rng.normal(size=near.shape).astype(np.float32))
    scores = queries @ vectors.T
    best = np.argsort(-scores, axis=1)[:, : config.candidates]
    relevance = np.stack([scaled(row) for row in np.take_along_axis(scores, best, 1).astype(np.float64)])
    return Lists(vectors, best, relevance)


def looped(relevance: np.ndarray, vectors: np.ndarray, *, k: int, share: float) -> np.ndarray:
    """Choose greedily; every candidate is compared with every choice."""
    weighed, nearest = (share * relevance).astype(np.float32), np.full(len(relevance), -np.inf, dtype=np.float32)
    other, chosen = np.float32(1 - share), [int(relevance.argmax())]
    while len(chosen) < k:
        weighed[chosen[-1]] = -np.inf
        np.maximum(nearest, vectors @ vectors[chosen[-1]], out=nearest)
        chosen.append(int((weighed - other * nearest).argmax()))
    return np.array(chosen)


def choices(lists: Lists, choose: Callable[..., np.ndarray], k: int, share: float) -> list[np.ndarray]:
    """Choose documents of all queries."""
    pairs = zip(lists.candidates, lists.relevance, strict=True)
    return [choose(relevance, lists.vectors[places], k=k, share=share) for places, relevance in pairs]


def largest_loss(lists: Lists, found: Sequence[np.ndarray], share: float) -> float:
    """The most by which a choice is worse than the best one in its place, over all lists."""
    worst = 0.0
    for places, relevance, chosen in zip(lists.candidates, lists.relevance, found, strict=True):
        vectors = lists.vectors[places].astype(np.float64)
        nearest = np.maximum.accumulate(vectors @ vectors[chosen].T, axis=1)[:, :-1]
        values = share * relevance[:, None] - (1 - share) * nearest
        taken = np.arange(1, len(chosen))
        for count in taken:
            values[chosen[:count], count - 1] = -np.inf
        worst = max(worst, float((values.max(0) - values[chosen[1:], taken - 1]).max()))
    return worst


def run(config: Config) -> None:
    """Measure and publish."""
    under, lists, rows = conditions(None, packages=("numpy",)), made_up(config), []
    for share in config.shares:
        how = {"lists": lists, "k": config.k, "share": share}
        sides = {"loop": partial(choices, choose=looped, **how), "shortlist": partial(choices, choose=mmr, **how)}
        found = {name: side() for name, side in sides.items()}
        lost = {name: largest_loss(lists, chosen, share) for name, chosen in found.items()}
        if max(lost.values()) > ALLOWED:
            raise SystemExit(f"weight {share:g}: a choice is worse than the best one by {lost}.")
        same = np.mean([np.array_equal(*pair) for pair in zip(found["loop"], found["shortlist"], strict=True)])
        times = {name: statistics.median(seconds) for name, seconds in rounds_of(sides, config.rounds).items()}
        each = [f"{1000 * seconds / config.queries:.2f}" for seconds in times.values()]
        rows.append(
            [
                f"{share:g}",
                *each,
                f"{times['loop'] / times['shortlist']:.2f}",
                f"{same:.1%}",
                f"{lost['shortlist']:.0e}",
            ]
        )
    columns = [
        "weight of relevance",
        "loop, ms a query",
        "shortlist, ms a query",
        "times",
        "lists alike",
        "largest loss",
    ]
    about = f"{config.queries:,} queries, {config.candidates:,} candidates each, of {config.dim} dimensions; "
    about += f"{config.k} chosen. Both sides fetch the candidates' vectors."
    publish("Making lists varied (MMR)", under, [about, table(columns, rows)], config.out)


if __name__ == "__main__":
    run(tyro.cli(Config, description=__doc__))
