"""Retrievers that also learn to rank with a query that has read the documents."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from shortlist.errors import UserError
from shortlist.models.outputs import Rows, select
from shortlist.models.save import Trainable
from shortlist.records import Document, Query
from shortlist.settings.parts import OpenPart
from shortlist.settings.train import Config
from shortlist.text.prompts import Prompt, named_prompt
from shortlist.text.rendering import QueryAndShown, Renderer
from shortlist.train.asking import longest_prompt
from shortlist.train.examples import Batch
from shortlist.train.losses import Term, needs, total_loss
from shortlist.train.objectives import accuracy, known_groups
from shortlist.train.settings import prompt_losses
from shortlist.train.steps import Example, Outcome


@final
class Prompted:
    """Writes each group's query with its documents, as the retriever will rerank with them.

    Args:
        prompt: a prompt that asks for states, without marks.
        tokenizer: the model's tokenizer.
        document_length: most tokens of a document in the prompt.
        longest: most tokens of a prompt.
        terms: the losses of rankings by the prompt's vector.

    Raises:
        UserError: the prompt does not suit the tokenizer.
    """

    def __init__(
        self, prompt: Prompt, tokenizer: Any, terms: Sequence[Term], *, document_length: int, longest: int
    ) -> None:
        self.prompt, self.tokenizer, self.terms, self.longest = prompt, tokenizer, terms, longest
        self.renderer = Renderer(prompt.cut_at(document_length), tokenizer, most_tokens=longest)
        self.renderer.render(Query("", "a"), [Document("", "a")])  # refuses a tokenizer that does not suit

    @cached_property
    def uncut(self) -> "Prompted":
        """Write whole texts, which may be longer than the model can read."""
        return Prompted(self.prompt, self.tokenizer, self.terms, document_length=10**9, longest=10**9)

    def write(self, batch: Batch, *, rng: np.random.Generator) -> list[list[int]]:
        """Make the token ids of each group's prompt.

        Its documents stand in an order that `rng` draws. A prompt shows as many as it does when reranking; all
        documents are ranked.
        """
        window = self.prompt.shown_at_once()
        questions: list[QueryAndShown] = [
            (query, [group[place] for place in rng.permutation(len(group))[:window]])
            for query, group in zip(batch.queries, batch.documents, strict=True)
        ]
        return [one.ids for one in self.renderer.render_many(questions)]

    def beside(self, example: Example, batch: Batch, *, rng: np.random.Generator) -> Example:
        """Add prompts to a retriever's example, and the loss of the rankings by their vectors.

        Args:
            example: the batch's queries and documents, in this order.
        """
        prompts, known, terms = self.write(batch, rng=rng), known_groups(batch), self.terms
        sizes, count = list(map(len, batch.documents)), len(example.token_ids)

        def scores(rows: Rows) -> Float[Tensor, "queries docs"]:
            return prompt_cosines(rows.values[count:], rows.values[len(sizes) : count], sizes)

        def objective(rows: Rows, /, start_rows: Rows | None = None, guide_rows: Rows | None = None) -> Outcome:
            def part(all_rows: Rows | None) -> Rows | None:
                return None if all_rows is None else select(all_rows, torch.arange(count))

            own = example.objective(part(rows), start_rows=part(start_rows), guide_rows=guide_rows)
            ranking = known.beside(scores(rows), start=scores(start_rows) if start_rows else None)
            measured = {**own.measured, "prompt_accuracy": round(accuracy(ranking), 4)}
            return own._replace(loss=own.loss + total_loss(terms, ranking), measured=measured)

        return example._replace(
            token_ids=example.token_ids + prompts,
            objective=objective,
            reads_start=example.reads_start or any("start" in needs(term) for term in terms),
        )


def prompt_cosines(
    prompts: Float[Tensor, "queries dim"], documents: Float[Tensor, "documents dim"], sizes: Sequence[int]
) -> Float[Tensor, "queries docs"]:
    """Compute the cosines of each prompt's vector with those in its group.

    Args:
        documents: the documents' vectors, group by group.
        sizes: the number of documents of each group; shorter rows end with zeros.
    """
    groups = F.normalize(documents, dim=-1).split(list(sizes))
    return pad_sequence(
        [group @ prompt for group, prompt in zip(groups, F.normalize(prompts, dim=-1), strict=True)], batch_first=True
    )


def make_prompted(config: Config, parts: Sequence[OpenPart], model: Trainable) -> list[Prompted]:
    """Prepare the prompt of each source for a retriever.

    There are none without a prompt, and for other models.

    Raises:
        UserError: the prompt does not suit the tokenizer, or the model does not pool by the last token.
    """
    if not config.prompt or config.kind != "retriever":
        return []
    if model.reading.pooling != "last":
        raise UserError(
            f"--prompt: the contract pools by {model.reading.pooling}, and a prompt's vector is its last token's "
            "state; choose another --contract, or leave out --prompt."
        )
    return [
        Prompted(
            named_prompt(part.config.prompt or config.prompt),
            model.inputs.tokenizer,
            prompt_losses(config),
            document_length=model.inputs.form.document_length,
            longest=longest_prompt(model.backbone.config, None),
        )
        for part in parts
    ]
