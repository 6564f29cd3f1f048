"""Examples for a language model that reads each group's documents in blocks of their own."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, final

import numpy as np

from shortlist.errors import UserError
from shortlist.math.blocks import OFFSETS, block_spans
from shortlist.models.language import BlockLayout, Wanted
from shortlist.records import Document, Query
from shortlist.text.blocks import BlockRenderer
from shortlist.text.conversations import end_of_answer
from shortlist.text.prompts import Prompt
from shortlist.train.examples import Batch
from shortlist.train.losses import Term
from shortlist.train.written import Written, worth_of


@final
class BlockAsking:
    """Asks about groups in blocks, and writes the right answers: the labels of relevant documents.

    Args:
        prompt: a prompt that asks for blocks.
        tokenizer: the model's tokenizer.
        terms: the losses, which decide whether answers are written and whether documents are ranked by attention.
        num_docs: the most documents to show.
        block_length: most tokens of a document's block (None: no limit).
        layer: the layer whose attention ranks documents.
        offset: a key of `math.blocks.OFFSETS`.
        positions: the model's positions.

    Raises:
        UserError: the prompt does not suit the tokenizer, or the last block does not fit into the positions.
    """

    def __init__(
        self,
        prompt: Prompt,
        tokenizer: Any,
        terms: Sequence[Term],
        *,
        num_docs: int,
        block_length: int | None,
        layer: int,
        offset: str,
        positions: int,
    ) -> None:
        self.prompt, self.tokenizer, self.terms, self.num_docs = prompt, tokenizer, terms, num_docs
        self.block_length, self.layer, self.offset, self.positions = block_length, layer, offset, positions
        self.writes = any(term.is_of_answers for term in terms)
        self.end_id = end_of_answer(prompt, tokenizer)
        if self.writes and self.end_id is None:
            raise UserError(f"{tokenizer.name_or_path}: the tokenizer has no token that ends an answer; set eos_token.")
        self.renderer = BlockRenderer(prompt, tokenizer, block_length=block_length)
        documents = [Document(str(place), "a") for place in range(num_docs)]
        self._written(Query("", "a"), documents, list(range(num_docs)))

    def write(self, batch: Batch, *, rng: np.random.Generator) -> list[Written]:
        """Ask about each group of a batch, its documents in an order that `rng` draws."""
        written = []
        for number, (query, group) in enumerate(zip(batch.queries, batch.documents, strict=True)):
            shown = rng.permutation(len(group)).tolist()
            worth = worth_of(batch, number)
            relevant = [place for place, i in enumerate(shown) if group[i].doc_id in batch.positives[number]]
            relevant = relevant or [max(range(len(shown)), key=lambda place, w=worth, s=shown: w[s[place]])]
            ids, wanted = self._written(query, [group[i] for i in shown], relevant)
            written.append(Written(ids, wanted, shown))
        return written

    @cached_property
    def uncut(self) -> "BlockAsking":
        """Ask with whole blocks."""
        how = {"layer": self.layer, "offset": self.offset, "positions": 10**9, "num_docs": self.num_docs}
        return BlockAsking(self.prompt, self.tokenizer, self.terms, block_length=None, **how)  # type: ignore[arg-type]

    def largest(self, rows: int, tokens: int) -> list[Wanted]:
        """Return what is asked of so many inputs of this length, with all documents."""
        size = tokens // (self.num_docs + 2)
        lengths = (size,) * (self.num_docs + 1)
        layout = BlockLayout((*lengths, tokens - sum(lengths)), 0, slice(max(0, tokens - 2), tokens), self.layer)
        return [Wanted(max(1, tokens - 1), tokens, layout=layout)] * rows

    def _written(
        self, query: Query, documents: Sequence[Document], relevant: Sequence[int]
    ) -> tuple[list[int], Wanted]:
        """Make the token ids of a prompt with its answer.

        Args:
            relevant: the places of the documents whose labels are the answer.
        """
        labels = list(map(self.prompt.label, range(len(documents))))
        rendered = self.renderer.render(query, documents, labels)
        last = rendered.last
        if self.writes:
            answer = self.renderer.answer([labels[place] for place in relevant])
            last = [*last[: rendered.asking.stop - 1], *answer, self.end_id]
        lengths = (len(rendered.first), *map(len, rendered.documents), len(last))
        start = OFFSETS[self.offset](lengths)
        if lengths[0] + max(lengths[1:-1]) > start or start + lengths[-1] > self.positions:
            raise UserError(
                f"query {query.query_id!r}: what follows the documents stands at positions {start:,} to "
                f"{start + lengths[-1]:,}, behind {lengths[0] + max(lengths[1:-1]):,}, and the model has "
                f"{self.positions:,}; use --offset near, or lower --max-length."
            )
        begun = block_spans(lengths)[-1].start
        asking = slice(begun + rendered.asking.start, begun + rendered.asking.stop)
        end = sum(lengths)
        wanted = Wanted(
            asking.stop - 1 if self.writes else end, end, layout=BlockLayout(lengths, start, asking, self.layer)
        )
        return [*rendered.first, *(i for ids in rendered.documents for i in ids), *last], wanted
