"""How often `mix` finds the two of five sources that a target is a blend of.

    python benchmarks/mix.py --data ../shared/data --model MINILM --out benchmarks/mix.md

The sources are SciFact, NFCorpus, Cranfield, CoSQA and XQuAD. Half of each one's queries are the source; a target is
two thirds queries of the other half of one and one third of another's, whose negatives are positives of the whole
blend. All 20 ordered pairs are tried over some draws. L1 is the sum of differences between found and true shares.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from jaxtyping import Float
from measuring import ROOT, conditions, publish, quiet, table

from shortlist.data.collections import open_collection
from shortlist.data.groups import groups_from_qrels
from shortlist.math.projection import GroupGradients, group_gradient
from shortlist.mix import mix
from shortlist.models.group_gradients import OTHERS
from shortlist.models.retriever import Retriever

SOURCES = {
    "scifact": "train",
    "nfcorpus": "test",
    "cranfield": "test",
    "cosqa": "dev",
    "xquad-r/en": "test",
}
"""Folders of the collections, and their splits."""
MOST_POSITIVES = 2


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path = ROOT.parent / "shared" / "data"
    """Folder with the collections."""
    model: str = "shortlist-mini"
    """Retriever whose vectors are read."""
    most: int = 400
    """Most queries of each collection."""
    characters: int = 700
    """Characters of a document that are read."""
    temperatures: tuple[float, ...] = (0.05, 0.2, 0.5, 1.0)
    """Divisors of the scores."""
    sizes: tuple[int, ...] = (60, 150)
    """Queries of a target."""
    draws: int = 2
    """Draws of halves and negatives."""
    out: Path | None = None
    """Markdown file to write too."""


class Vectors(NamedTuple):
    """Queries with the documents that answer them."""

    queries: Float[np.ndarray, "queries dim"]
    answers: list[Float[np.ndarray, "answers dim"]]

    def some(self, numbers: Sequence[int]) -> "Vectors":
        """Some of the queries."""
        return Vectors(self.queries[list(numbers)], [self.answers[number] for number in numbers])


def read(config: Config, model: Retriever, folder: str, split: str) -> Vectors:
    """Encode queries of a collection and first answers to them."""
    collection = open_collection(str(config.data / folder))
    queries = {query.query_id: query for query in collection.queries(split)}
    groups = [group for group in groups_from_qrels(collection.qrels(split)) if group.query_id in queries]
    groups = [groups[number] for number in np.random.default_rng(0).permutation(len(groups))[: config.most]]
    wanted = list(dict.fromkeys(doc_id for group in groups for doc_id in group.positives[:MOST_POSITIVES]))
    documents = collection.documents(wanted)
    cut = [documents[doc_id]._replace(text=documents[doc_id].text[: config.characters]) for doc_id in wanted]
    of_doc = dict(zip(wanted, np.asarray(model.encode_documents(cut), dtype=np.float64), strict=True))
    asked = np.asarray(model.encode_queries([queries[group.query_id] for group in groups]), dtype=np.float64)
    return Vectors(asked, [np.stack([of_doc[one] for one in group.positives[:MOST_POSITIVES]]) for group in groups])


def gradients(vectors: Vectors, temperature: float, random: np.random.Generator) -> GroupGradients:
    """Gradients of groups whose negatives are first answers to other queries."""
    count, parts = len(vectors.queries), []
    for number, (query, answers) in enumerate(zip(*vectors, strict=True)):
        others = random.choice(count, size=min(count, OTHERS + 1), replace=False).tolist()
        firsts = [vectors.answers[other][0] for other in others if other != number][:OTHERS]
        firsts = [first for first in firsts if not (first == answers).all(1).any()]
        parts.append(group_gradient(query, np.stack([*answers, *firsts]), len(answers), temperature=temperature))
    return GroupGradients(vectors.queries, np.stack([pull for pull, _ in parts]), np.array([loss for _, loss in parts]))


def row(read_in: Sequence[Vectors], temperature: float, size: int, draws: int) -> list[str]:
    """A row of the table."""
    found, distances, errors, errors_without = 0, [], [], []
    pairs = list(itertools.permutations(range(len(read_in)), 2))
    for seed in range(draws):
        random = np.random.default_rng(seed)
        orders = [random.permutation(len(vectors.queries)).tolist() for vectors in read_in]
        halves = [order[: len(order) // 2] for order in orders]
        rests = [order[len(order) // 2 :] for order in orders]
        sources = [gradients(some.some(half), temperature, random) for some, half in zip(read_in, halves, strict=True)]
        for most, least in pairs:
            first = rests[most][: size * 2 // 3]
            second = rests[least][: max(1, len(first) // 2)]
            parts = read_in[most].some(first), read_in[least].some(second)
            both = Vectors(np.concatenate([part.queries for part in parts]), parts[0].answers + parts[1].answers)
            target = gradients(both.some(random.permutation(len(both.queries)).tolist()), temperature, random)
            mixed, true = mix(sources, target), np.zeros(len(sources))
            true[[most, least]] = np.array([len(first), len(second)]) / len(both.queries)
            found += set(np.argsort(-mixed.shares)[:2].tolist()) == {most, least}
            distances.append(np.abs(mixed.shares - true).sum())
            errors.append(min(step["error"] for step in mixed.path))
            others = [source for place, source in enumerate(sources) if place not in (most, least)]
            errors_without.append(min(step["error"] for step in mix(others, target).path))
    cells = [f"{temperature:g}", f"{size}", f"{found} of {draws * len(pairs)}", f"{np.mean(distances):.2f}"]
    return [*cells, f"{np.median(errors):.2f}", f"{np.median(errors_without):.2f}"]


def main(config: Config) -> None:
    quiet()
    under, model = conditions(None), Retriever.load(config.model)
    read_in = [read(config, model, folder, split) for folder, split in SOURCES.items()]
    rows = [row(read_in, heat, size, config.draws) for heat in config.temperatures for size in config.sizes]
    columns = ["temperature", "queries", "both first", "L1", "median error", "without the two sources"]
    publish("Sources of a blend", under, [table(columns, rows)], config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
