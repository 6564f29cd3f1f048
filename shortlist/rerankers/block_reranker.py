"""The reranker in blocks, ready to score."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np
from jaxtyping import Float

from shortlist.errors import UserError
from shortlist.math.blocks import BLOCK_LENGTH, OFFSETS, usual_layer
from shortlist.models.blocks import Blocks, answer_blocks, check_blocks, score_blocks
from shortlist.models.folder import ModelFolder
from shortlist.models.generator import Generator
from shortlist.records import Document, Query, as_documents, as_queries
from shortlist.rerankers import Candidates, Scored
from shortlist.rerankers.lists import score_each
from shortlist.rerankers.opening import longest_input, open_generator, stop_ids
from shortlist.text.blocks import BlockRenderer
from shortlist.text.prompts import Prompt


@final
class BlockReranker:
    """Scores documents in blocks.

    Args:
        generator: the model.
        renderer: makes token ids of the prompt.
        layer: the layer whose attention is read.
        offset: a key of `math.blocks.OFFSETS`.
        stop: ids that end an answer; None if none is generated.
        seed: seed of the labels.

    Raises:
        UserError: the model does not suit blocks.
    """

    def __init__(
        self,
        generator: Generator,
        renderer: BlockRenderer,
        *,
        layer: int,
        offset: str,
        stop: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        self.generator, self.renderer, self.layer, self.offset = generator, renderer, layer, offset
        self.stop, self.seed, self.reader = stop, seed, generator.reader()
        self.most_positions = longest_input(generator)
        check_blocks(self.reader, layer)

    def score(self, query: str | Query, documents: Iterable[str | Document]) -> Float[np.ndarray, " docs"]:
        """Score the documents of one query, whose order matters only to generated answers.

        Documents that a generated answer does not name keep their order, behind those that it does.
        """
        given = as_documents(list(documents))
        [scored] = self.score_lists([Candidates(as_queries([query])[0], given)])
        return scored.scores

    def score_lists(self, lists: Iterable[Candidates]) -> Iterator[Scored]:
        """Yield the scores of each list."""
        return score_each(self._score, lists)

    def _score(self, query: Query, documents: Sequence[Document]) -> tuple[Float[np.ndarray, " docs"], int]:
        order = self.labelled(documents)
        shown = [documents[place] for place in order]
        labels = list(map(self.renderer.prompt.label, range(len(shown))))
        rendered = self.renderer.render(query, shown, labels)
        blocks = Blocks(rendered.first, rendered.documents, rendered.last, rendered.asking)
        start = self._start(query, blocks)
        scores = np.empty(len(documents), np.float32)
        if self.stop is None:
            scores[order] = score_blocks(self.reader, blocks, layer=self.layer, start=start).numpy()
        else:
            scores[:] = self._answered(blocks, order, start)
        return scores, sum(blocks.lengths)

    def labelled(self, documents: Sequence[Document]) -> list[int]:
        """Return the places of documents in the order of their labels.

        It does not depend on the given order, except among documents with the same id and text.
        """
        order = sorted(range(len(documents)), key=lambda place: (documents[place].doc_id, documents[place].text))
        random.Random(self.seed).shuffle(order)
        return order

    def _answered(self, blocks: Blocks, order: Sequence[int], start: int) -> list[float]:
        """Have the labels of relevant documents generated, and rank these first."""
        prompt, most = self.renderer.prompt, self.renderer.prompt.most_tokens
        ids = answer_blocks(
            self.reader,
            self.generator.head,
            blocks,
            start=start,
            most=most if isinstance(most, int) else 8 * len(order),
            stop=self.stop or (),
        )
        found, _ = prompt.parsed(self.renderer.read_answer(ids), len(order))
        scores = np.empty(len(order))
        scores[list(order)] = found
        return scores.tolist()

    def _start(self, query: Query, blocks: Blocks) -> int:
        """Return the position of the last block, and refuse contexts without room for it."""
        start, longest = OFFSETS[self.offset](blocks.lengths), max(map(len, blocks.documents))
        room = 0 if self.stop is None else self.renderer.prompt.most_tokens
        end = start + len(blocks.last) + (room if isinstance(room, int) else 0)
        if len(blocks.first) + longest > start:
            raise UserError(
                f"query {query.query_id!r}: the instruction takes {len(blocks.first)} tokens and the longest document "
                f"{longest}, and what follows begins at position {start:,}; lower --max-length. Any number of "
                "documents fits."
            )
        if end > self.most_positions:
            raise UserError(
                f"query {query.query_id!r}: what follows the documents ends at position {end:,}, and the model has "
                f"{self.most_positions:,}; use --offset near, or lower --max-length. Any number of documents fits."
            )
        return start


def open_block(
    *,
    folder: ModelFolder,
    prompt: Prompt,
    layer: int | None,
    offset: str,
    answers: str | None,
    max_length: int | None,
    seed: int,
    running: Mapping[str, Any],
) -> BlockReranker:
    """Load a reranker in blocks; arguments as for `rerankers.block.in_own_blocks`."""
    generator = open_generator(folder, readable=True, **running)
    chosen = usual_layer(generator.backbone.config.num_hidden_layers) if layer is None else layer
    renderer = BlockRenderer(prompt, folder.tokenizer, block_length=max_length or BLOCK_LENGTH)
    stop = stop_ids(folder, prompt) if answers == "text" else None
    return BlockReranker(generator, renderer, layer=chosen, offset=offset, stop=stop, seed=seed)
