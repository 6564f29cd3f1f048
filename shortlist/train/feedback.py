"""Feedback encoders: queries that learn to read their first documents, beside vectors that stay."""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortlist.data.collections import Collection
from shortlist.data.runs import read_run
from shortlist.errors import UserError
from shortlist.math.losses.regularise import lol
from shortlist.math.ranking import Ranking
from shortlist.math.sampling import draw_depths
from shortlist.models.folder import ModelFolder
from shortlist.models.kinds import load_model
from shortlist.models.outputs import Rows
from shortlist.models.run import Model, for_inference
from shortlist.progress import say
from shortlist.records import Document, Query
from shortlist.settings.feedback import FeedbackSettings, feedback_settings
from shortlist.settings.parts import OpenPart
from shortlist.settings.train import Config
from shortlist.text.inputs import Inputs
from shortlist.train.examples import Batch
from shortlist.train.losses import Term, needs, total_loss
from shortlist.train.objectives import accuracy, rank_batch
from shortlist.train.steps import Example, Outcome

FirstDocuments = Mapping[str, Sequence[str]]
"""The ids of each query's first documents, best first."""


def feedback_heads(config: Config, part: OpenPart, *, depth: int) -> FirstDocuments:
    """Read the first documents of all training queries, and say what is missing.

    Raises:
        UserError: the run has no documents for any of them, or names documents that the collection lacks.
    """
    run, asked = read_run(Path(str(config.feedback))), {group.query_id for group in part.source.groups}
    heads = {name: [hit.doc_id for hit in run[name][:depth]] for name in asked if name in run}
    lacking = set(part.collection.missing(dict.fromkeys(doc_id for head in heads.values() for doc_id in head)))
    if lacking and not config.skip_missing:
        raise UserError(
            f"--feedback {config.feedback}: names {len(lacking):,} documents that the collection lacks, such as "
            f"{min(lacking)!r}; search the collection again, or leave them out with --skip-missing."
        )
    heads = {name: [doc_id for doc_id in head if doc_id not in lacking] for name, head in heads.items()}
    heads = {name: head for name, head in heads.items() if head}
    if not heads:
        raise UserError(
            f"--feedback {config.feedback}: has documents for none of {len(asked):,} queries of the training; expected "
            "a run over these queries, such as `shortlist search --split train` makes."
        )
    if alone := len(asked) - len(heads):
        say(f"train: --feedback has no documents for {alone:,} of {len(asked):,} queries, which are read alone.")
    return heads


@final
class Revisions:
    """Writes queries with their first documents, as a feedback encoder reads them.

    Args:
        inputs: those of the encoder.
        heads: the first documents of queries.
        collection: has their texts.
        settings: how many are read.
        cut: whether inputs are cut to the encoder's limit.
    """

    def __init__(
        self,
        inputs: Inputs,
        heads: FirstDocuments,
        collection: Collection,
        settings: FeedbackSettings,
        *,
        cut: bool = True,
    ) -> None:
        self.inputs, self.heads, self.collection, self.settings = inputs, heads, collection, settings
        self._cut = cut

    @cached_property
    def uncut(self) -> "Revisions":
        """Write whole texts, which may be longer than the model can read."""
        return Revisions(self.inputs, self.heads, self.collection, self.settings, cut=False)

    def with_inputs(self, inputs: Inputs) -> "Revisions":
        """Return the same with other inputs."""
        return Revisions(inputs, self.heads, self.collection, self.settings, cut=self._cut)

    def draw(self, queries: Sequence[Query], *, rng: np.random.Generator) -> list[list[list[str]]]:
        """Draw the feedback documents of all queries, version by version.

        With several versions, each query has another number of documents in each, and those of a shorter one begin a
        longer one. Documents are drawn in any order where there are more than are read.
        """
        docs, depth, versions, _ = self.settings
        counts = np.full((1, len(queries)), docs)
        if versions > 1:
            counts = draw_depths(len(queries), versions, most=docs, rng=rng)
        heads = [list(self.heads.get(query.query_id, ())) for query in queries]
        if depth > docs:
            heads = [[head[place] for place in rng.permutation(len(head))] for head in heads]
        return [[head[:count] for head, count in zip(heads, row.tolist(), strict=True)] for row in counts]

    def write(
        self, batch: Batch, *, rng: np.random.Generator
    ) -> tuple[list[list[int]], Int[np.ndarray, "versions queries"]]:
        """Make the token ids of all versions of a batch's queries, and count their documents."""
        drawn = self.draw(batch.queries, rng=rng)
        texts = self.collection.documents({doc_id for version in drawn for head in version for doc_id in head})
        pairs: list[tuple[Query, Sequence[Document]]] = [
            (query, [texts[doc_id] for doc_id in head])
            for version in drawn
            for query, head in zip(batch.queries, version, strict=True)
        ]
        return self.inputs.feedback_ids(pairs, cut=self._cut), np.array([list(map(len, row)) for row in drawn])

    def example(
        self, batch: Batch, terms: Sequence[Term], frozen: Inputs, *, rng: np.random.Generator, **options: Any
    ) -> Example:
        """Prepare a batch for a training step.

        Args:
            terms: the losses to add up.
            frozen: inputs of the model that embeds documents.
            options: further arguments of `rank_batch`.
        """
        token_ids, depths = self.write(batch, rng=rng)
        weight = self.settings.lol
        outcome = partial(compared, terms, depths=torch.from_numpy(depths), weight=weight) if weight else None
        ranked = rank_batch(batch, token_ids, terms, versions=len(depths), outcome=outcome, **options)

        def objective(rows: Rows, /, start_rows: Rows | None = None, guide_rows: Rows | None = None) -> Outcome:
            assert guide_rows is not None  # the documents' vectors; for the type checker
            documents = guide_rows.values.to(rows.values.device)

            def beside(queries: Rows | None) -> Rows | None:
                return None if queries is None else Rows(torch.cat([queries.values, documents]))

            return ranked(beside(rows), start_rows=beside(start_rows))

        return Example(
            token_ids,
            [query.query_id for query in batch.queries],
            objective,
            any("start" in needs(term) for term in terms),
            frozen.document_ids([document for group in batch.documents for document in group]),
        )


def compared(
    terms: Sequence[Term], ranking: Ranking, *, depths: Int[Tensor, "versions queries"], weight: float
) -> Outcome:
    """Compute the mean loss of all versions, and what more documents make worse.

    Args:
        terms: losses that are means over queries.
        ranking: the rows of all versions, one version after another.
        depths: the number of documents of each.
        weight: the weight of the comparison.
    """
    losses = losses_of_queries(terms, ranking).view(depths.shape)
    worse = lol(losses, depths.to(losses.device))
    return Outcome(losses.mean() + weight * worse, accuracy(ranking), {"lol": round(worse.item(), 6)})


def losses_of_queries(terms: Sequence[Term], ranking: Ranking) -> Float[Tensor, " queries"]:
    """Compute the loss of each row by itself."""
    rows = range(len(ranking.scores))
    return torch.stack([total_loss(terms, _row(ranking, place)) for place in rows])


def _row(ranking: Ranking, place: int) -> Ranking:
    return Ranking(*(None if part is None else part[place : place + 1] for part in ranking))  # type: ignore[arg-type]


def make_revisions(config: Config, part: OpenPart, inputs: Inputs) -> Revisions | None:
    """Prepare the queries of a feedback encoder; None for other trainings.

    Raises:
        UserError: as for `feedback_heads`.
    """
    settings = feedback_settings(config)
    if settings is None:
        return None
    return Revisions(inputs, feedback_heads(config, part, depth=settings.depth), part.collection, settings)


def frozen_documents(config: Config, backbone: ModelFolder, device: torch.device | None) -> Model | None:
    """Load the model that embeds documents for a feedback encoder.

    There is none for other trainings. Its contract, with `--max-length`, is the one that their vectors were made with.
    It computes in float32, as `encode` does.

    Raises:
        UserError: the backbone is no retriever that documents can be embedded with.
    """
    if config.feedback is None:
        return None
    model: Model = load_model(
        backbone, "document", config.contract, adjust=lambda found: found.with_lengths(document=config.max_length)
    )
    for_inference(model, device)
    return model
