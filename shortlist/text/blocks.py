"""Token ids of prompts whose documents stand in blocks of their own."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from shortlist.records import Document, Query
from shortlist.text.excerpts import encodings
from shortlist.text.prompts import Prompt
from shortlist.text.rendering import Renderer


class RenderedBlocks(NamedTuple):
    """A prompt in blocks."""

    first: list[int]
    """The ids of all that stands before the documents."""
    documents: list[list[int]]
    last: list[int]
    """The ids of all behind the documents, up to where the answer's first label begins."""
    asking: slice
    """The tokens of the last block whose attention is read: the one before the answer, and the answer's first."""


class BlockRenderer:
    """Renders a prompt in blocks.

    Each block is tokenised by itself, and so is the answer, as BlockRank does.

    Args:
        prompt: a prompt that asks for blocks.
        tokenizer: a fast tokenizer.
        block_length: most tokens of a document's block, whose end is cut away (None: no limit).

    Raises:
        UserError: the tokenizer does not suit the prompt.
    """

    def __init__(self, prompt: Prompt, tokenizer: Any, *, block_length: int | None = None) -> None:
        self.prompt, self.tokenizer, self.block_length = prompt, tokenizer, block_length
        self._texts = Renderer(prompt, tokenizer, reads="text")
        self.opening, _, self.closing = prompt.answer_whole.partition("{answers}")

    def render(self, query: Query, documents: Sequence[Document], labels: Sequence[str]) -> RenderedBlocks:
        """Render a prompt.

        Args:
            query: the query.
            documents: the documents.
            labels: the label of each document, which stays with it wherever it stands.
        """
        texts = self._texts.block_texts(query, documents, labels)
        first, *own, last, opening = ([*one.ids] for one in encodings(self.tokenizer, [*texts, self.opening]))
        asking = slice(len(last) - 1, len(last) + 1)
        return RenderedBlocks(first, [ids[: self.block_length] for ids in own], last + opening, asking)

    def answer(self, labels: Sequence[str]) -> list[int]:
        """Return the ids of the whole answer with these labels."""
        text = self.prompt.answer_whole.format(answers=self.prompt.answers_between.join(labels))
        [one] = encodings(self.tokenizer, [text])
        return list(one.ids)

    def read_answer(self, ids: Sequence[int]) -> str:
        """Return the labels in an answer's text, whose opening stood in the prompt."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.split(self.closing)[0] if self.closing else text
