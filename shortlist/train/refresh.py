"""New negatives in the middle of a training, found by the model itself.

Only the queries of the steps until the next refresh are searched, as those of later steps get other negatives before
they are used. The negatives are a function of the weights, the seed and the step. A checkpoint between two refreshes
keeps those in use, as the weights that found them are gone.
"""

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from shortlist.data.beir import shares_ids
from shortlist.data.files import read_json
from shortlist.errors import UserError
from shortlist.math.sampling import draw_negatives
from shortlist.models.kinds import for_kind
from shortlist.models.outputs import Rows
from shortlist.models.save import Trainable
from shortlist.progress import say
from shortlist.records import Document, Group
from shortlist.text.hashes import document_text_hash
from shortlist.train.gather import ALONE, World, from_leader
from shortlist.train.mixture import Mixture, Renewed, inputs_of
from shortlist.train.negatives import MINED_NEGATIVES
from shortlist.train.similarity import SIMILARITIES, Similarity, dot_products
from shortlist.train.steps import compute_outputs

NEGATIVES = "negatives.json"
"""The file in a checkpoint with the negatives that are in use."""

SEARCHED_AT_ONCE = 1024
"""Documents that are encoded and compared with all queries together."""


class Refresh(NamedTuple):
    """Settings of the renewal of negatives."""

    every: int
    """Steps between two refreshes."""
    depth: int
    """Best documents of each query to draw from."""
    most_docs: int | None
    """Most documents to search, sampled anew each time; None for all."""
    seed: int

    def span(self, step: int, steps: int) -> range:
        """Return the steps from this one to the next refresh, or to the end."""
        return range(step, min(steps, (step // self.every + 1) * self.every))


def renew_negatives(
    refresh: Refresh,
    model: Trainable,
    mixture: Mixture,
    steps: range,
    *,
    token_budget: int,
    bf16: bool,
    world: World = ALONE,
) -> Renewed:
    """Search with the model for new negatives of the groups of these steps.

    Neither a document relevant to the query nor one with its text becomes a negative. Lists without a positive stay as
    they are.

    Returns:
        For each source, the negatives by the number of the group; all processes get the same.
    """
    model.eval()
    model.inputs.on_cut = None  # what is read here is not trained on
    renewed: list[dict[int, tuple[str, ...]]] = []
    for place, (part, numbers) in enumerate(zip(mixture.parts, mixture.groups_of_each(steps), strict=True)):
        groups = {number: group for number in numbers if (group := part.source.groups[number]).positives}
        found: dict[int, tuple[str, ...]] = {}
        if groups:
            inputs, seed = inputs_of(part, model.inputs), [refresh.seed, steps.start, place]

            def encode(token_ids: list[list[int]]) -> Rows:
                rows = compute_outputs(model, token_ids, token_budget=token_budget, bf16=bf16, world=world)
                return rows._replace(values=rows.values.float())

            queries = [part.source.queries[group.query_id] for group in groups.values()]
            forbidden = _forbidden(mixture, place, list(groups.values()))
            similarity = for_kind(SIMILARITIES, model.kind)
            search = _Search(encode(inputs.query_ids(queries)), len(queries), forbidden, similarity)
            own = [group.query_id if shares_ids(part.collection.name) else "" for group in groups.values()]
            documents = _sample(part.collection.corpus(), refresh.most_docs, seed)
            for some in _parts(documents, SEARCHED_AT_ONCE):
                search.add(some, encode(inputs.document_ids(some)), own, depth=refresh.depth)
            number_wanted = max(MINED_NEGATIVES, part.config.negatives or 0)
            for number, candidates in zip(groups, search.best(world), strict=True):
                rng = np.random.default_rng([*seed, number])
                if drawn := draw_negatives(candidates, (), (), rng, number=number_wanted):
                    found[number] = tuple(drawn)
        renewed.append(found)
    say(f"step {steps.start}: {sum(map(len, renewed)):,} groups have new negatives.")
    return renewed


class _Search:
    """The best documents of each query so far.

    Args:
        queries: the queries' rows.
        num_queries: how many queries there are.
        forbidden: queries, by their places, that a document with this text must not be a negative of.
        similarity: scores documents by their rows and those of queries.
    """

    def __init__(
        self, queries: Rows, num_queries: int, forbidden: dict[int, list[int]], similarity: Similarity = dot_products
    ) -> None:
        self._queries, self._forbidden, self._similarity = queries, forbidden, similarity
        self._doc_ids: list[str] = []
        self._scores = queries.values.new_zeros((num_queries, 0))
        self._places = torch.zeros((num_queries, 0), dtype=torch.int64, device=queries.values.device)

    def add(self, documents: Sequence[Document], rows: Rows, own: Sequence[str], *, depth: int) -> None:
        """Compare documents with all queries, and keep the best `depth` of each query.

        Args:
            own: the id of the document that each query is itself, or nothing.
        """
        scores = self._similarity(self._queries, rows)
        own_rows = {query_id: row for row, query_id in enumerate(own) if query_id}
        for column, document in enumerate(documents):
            relevant = self._forbidden.get(document_text_hash(document), [])
            scores[
                [*relevant, *([own_rows[document.doc_id]] if document.doc_id in own_rows else [])], column
            ] = -torch.inf
        places = torch.arange(len(documents), device=scores.device) + len(self._doc_ids)
        self._doc_ids += [document.doc_id for document in documents]
        scores = torch.cat([self._scores, scores], 1)
        places = torch.cat([self._places, places.expand(len(scores), -1)], 1)
        order = scores.sort(dim=1, descending=True, stable=True).indices[
            :, :depth
        ]  # topk promises no order among equals
        self._scores, self._places = scores.gather(1, order), places.gather(1, order)

    def best(self, world: World) -> Iterator[list[str]]:
        """Yield the ids of each query's best documents, the same in every process."""
        places = torch.where(self._scores.isneginf(), -1, self._places)
        rows: Int[np.ndarray, "queries depth"] = from_leader(places, world).cpu().numpy()
        return ([self._doc_ids[place] for place in row if place >= 0] for row in rows.tolist())


def _forbidden(mixture: Mixture, place: int, groups: Sequence[Group]) -> dict[int, list[int]]:
    """Return the queries, by their places, for which each text is an answer."""
    relevant = mixture.relevant[place]
    rows: dict[int, list[int]] = {}
    for row, texts in enumerate(relevant.texts([relevant.doc_ids(group) for group in groups])):
        for text in texts:
            rows.setdefault(text, []).append(row)
    return rows


def _sample(documents: Iterable[Document], most: int | None, seed: Sequence[int]) -> Iterable[Document]:
    """Draw at most so many documents, in corpus order (None: all)."""
    if most is None:
        return documents
    rng = np.random.default_rng(seed)
    lots = ((rng.random(), place, document) for place, document in enumerate(documents))
    return [document for _, _, document in sorted(heapq.nsmallest(most, lots), key=lambda lot: lot[1])]


def _parts(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    rest = iter(documents)
    while some := list(islice(rest, size)):
        yield some


def renewed_json(renewed: Renewed) -> str:
    """Write negatives as JSON, for a checkpoint."""
    return json.dumps([{str(number): list(doc_ids) for number, doc_ids in found.items()} for found in renewed])


def read_renewed(checkpoint: Path) -> Renewed:
    """Read the negatives in use from a checkpoint, whose files have been checked.

    Raises:
        UserError: the checkpoint has none.
    """
    path = checkpoint / NEGATIVES
    if not path.is_file():
        raise UserError(f"{path}: is missing, and the training cannot go on without it; delete this checkpoint.")
    return [{int(number): tuple(doc_ids) for number, doc_ids in found.items()} for found in read_json(path, kind=list)]
