"""The reranker by states at the marks of documents and query, ready to score."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Float

from shortlist.math.query_vectors import cosines, merged_query
from shortlist.models.folder import ModelFolder
from shortlist.models.generator import Generator
from shortlist.models.outputs import split
from shortlist.models.projector import Projector, load_projector
from shortlist.records import Document, Query, as_documents, as_queries
from shortlist.rerankers import Candidates, Scored
from shortlist.rerankers.lists import score_each
from shortlist.rerankers.opening import longest_input, open_generator
from shortlist.text.prompts import Prompt
from shortlist.text.rendering import Rendered, Renderer


class ReadBlock(NamedTuple):
    """The vectors that a model gives to one block."""

    query: Float[np.ndarray, " dim"]
    documents: Float[np.ndarray, "docs dim"]


@final
class MarkedReranker:
    """Scores documents by vectors of theirs and the query's from one context.

    A score is the cosine of the two. Documents that do not fit into one context make several. The query then has a
    vector in each, and the mean of these, in which contexts with a better document count more, is compared with all
    documents.

    Args:
        generator: the model.
        projector: makes vectors of its states.
        renderer: makes token ids of the prompt, without a limit to all of it.
        most_tokens: most tokens of a prompt.
        window: most documents in a prompt.

    https://arxiv.org/abs/2509.25085
    """

    def __init__(
        self, generator: Generator, projector: Projector, renderer: Renderer, *, most_tokens: int, window: int
    ) -> None:
        self.generator, self.projector, self.renderer = generator, projector, renderer
        self.most_tokens, self.window = most_tokens, window
        self._fitting = Renderer(renderer.prompt, renderer.tokenizer, most_tokens=most_tokens)

    def score(self, query: str | Query, documents: Iterable[str | Document]) -> Float[np.ndarray, " docs"]:
        """Score the documents of one query, given in the first stage's order."""
        given = as_documents(list(documents))
        [scored] = self.score_lists([Candidates(as_queries([query])[0], given)])
        return scored.scores

    def score_lists(self, lists: Iterable[Candidates]) -> Iterator[Scored]:
        """Yield the scores of each list."""
        return score_each(self._score, lists)

    def _score(self, query: Query, documents: Sequence[Document]) -> tuple[Float[np.ndarray, " docs"], int]:
        rendered = self.blocks(query, documents)
        found = [self._read(one) for one in rendered]
        bests = np.array([cosines(block.query, block.documents).max() for block in found])
        merged = merged_query(np.stack([block.query for block in found]), bests)
        scores = cosines(merged, np.concatenate([block.documents for block in found]))
        return scores, sum(len(one.ids) for one in rendered)

    def _read(self, one: Rendered) -> ReadBlock:
        [states] = split(self.generator.hidden([one.ids], [one.marks]))
        vectors = self.projector(states.to(self.projector.first.device)).cpu().numpy()
        return ReadBlock(vectors[-1], vectors[:-1])

    def blocks(self, query: Query, documents: Sequence[Document]) -> list[Rendered]:
        """Render a list as prompts that fit the model.

        A block ends where the list's longest document would no longer fit behind it.

        Raises:
            UserError: a single document does not fit, however short it is cut.
        """
        sizes: list[int] = []
        fixed = 0
        for start in range(0, len(documents), self.window):
            one = self.renderer.render(query, documents[start : start + self.window])
            own = sizes_of(one)
            sizes, fixed = sizes + own, max(fixed, len(one.ids) - sum(own))
        shown: list[list[Document]] = [[]]
        room = self.most_tokens - fixed
        for document, size in zip(documents, sizes, strict=True):
            if shown[-1] and (len(shown[-1]) == self.window or room < max(sizes)):
                shown.append([])
                room = self.most_tokens - fixed
            shown[-1].append(document)
            room -= size
        return self._fitting.render_many([(query, block) for block in shown])


def sizes_of(one: Rendered) -> list[int]:
    """Count the tokens from each document's piece to the next one."""
    starts = [span.start for span in one.spans]
    between = starts[1] - one.marks[0] if len(starts) > 1 else 1
    ends = [*starts[1:], one.marks[len(starts) - 1] + between]
    return [end - start for start, end in zip(starts, ends, strict=True)]


def open_marked(
    folder: ModelFolder,
    *,
    prompt: Prompt,
    window: int,
    max_length: int | None,
    token_budget: int | None,
    running: dict[str, Any],
) -> MarkedReranker:
    """Load a model with a projector; arguments as for `rerankers.embedding.by_embedding`.

    Args:
        running: settings of `models.run.for_inference`.
    """
    projector, renderer = load_projector(folder), Renderer(prompt, folder.tokenizer)
    generator = open_generator(folder, headless=True, token_budget=token_budget, **running)
    longest = longest_input(generator)
    return MarkedReranker(
        generator,
        projector.to(generator.device),
        renderer,
        most_tokens=min(max_length or longest, longest),
        window=window,
    )
