"""The reranker by attention, ready to score."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np
from jaxtyping import Float
from torch import Tensor

from shortlist.data.heads import Head
from shortlist.errors import UserError
from shortlist.math.attention import filtered_sums, span_ends, span_sums
from shortlist.models.folder import ModelFolder
from shortlist.models.generator import Generator
from shortlist.records import Document, Query, as_documents, as_queries
from shortlist.rerankers import Candidates, Scored
from shortlist.rerankers.lists import score_each
from shortlist.rerankers.opening import longest_input, open_generator
from shortlist.text.prompts import Prompt
from shortlist.text.rendering import Rendered, Renderer

NO_QUERY = "N/A"
"""The query without content, by which scores are calibrated."""


class ReadDocuments:
    """Reads the attention that documents get from a query and from one without content.

    Args:
        generator: the model.
        renderer: makes token ids of the prompt.
        most_tokens: most tokens of a prompt.
        heads: the heads to read (None: all).
        signal: what is read of them, as in `models.reading.SIGNALS`.
        calibrated: whether the query without content is read too.
    """

    def __init__(
        self,
        generator: Generator,
        renderer: Renderer,
        *,
        most_tokens: int,
        heads: Sequence[Head] | None,
        signal: str,
        calibrated: bool,
    ) -> None:
        self.read, self.renderer, self.most_tokens = generator.reader(), renderer, most_tokens
        self.heads, self.signal, self.calibrated = heads, signal, calibrated
        if heads is not None:
            self.read.check(heads)

    def __call__(
        self, query: Query, documents: Sequence[Document]
    ) -> tuple[Float[Tensor, "heads tokens"], list[slice], int]:
        """Read one list of documents, given best first and shown best last.

        Returns:
            What each head gives each token, the tokens of each document, and the number of tokens read.

        Raises:
            UserError: the prompt is longer than the model reads.
        """
        shown = documents[::-1]
        queries = [query, query._replace(text=NO_QUERY)] if self.calibrated else [query]
        rendered = self.renderer.render_many([(each, shown) for each in queries])
        self._check_length(query, rendered)
        prompts, asking = [one.ids for one in rendered], [one.asking for one in rendered]
        found = self.read(prompts, asking, heads=self.heads, signal=self.signal)
        end = asking[0].start
        values = found[0][:, :end] - found[1][:, :end] if self.calibrated else found[0][:, :end]
        return values, rendered[0].spans[::-1], sum(map(len, prompts)) - end * (len(prompts) - 1)

    def _check_length(self, query: Query, rendered: Sequence[Rendered]) -> None:
        longest = max(rendered, key=lambda one: len(one.ids))
        excess = len(longest.ids) - self.most_tokens
        if excess <= 0:
            return
        spans = longest.spans
        starts = [span.start for span in spans[1:]] + [longest.asking.start]
        sizes = sorted(end - span.start for span, end in zip(spans, starts, strict=True))
        room = self.most_tokens - (len(longest.ids) - sum(sizes))
        fit = int((np.cumsum(sizes[::-1]) <= room).sum())  # the longest ones, so that any that many fit
        raise UserError(
            f"query {query.query_id!r}: {len(spans)} documents take {len(longest.ids):,} tokens with the prompt "
            f"{self.renderer.prompt.name!r}, and the model reads {self.most_tokens:,}; {fit} of them fit (--depth "
            f"{fit})."
        )


@final
class AttentionReranker:
    """Scores documents by the attention that a query's tokens pay them.

    Args:
        read: reads the attention of a list.
    """

    def __init__(self, read: ReadDocuments) -> None:
        self.read = read

    def score(self, query: str | Query, documents: Iterable[str | Document]) -> Float[np.ndarray, " docs"]:
        """Score the documents of one query, given in the first stage's order."""
        given = as_documents(list(documents))
        [scored] = self.score_lists([Candidates(as_queries([query])[0], given)])
        return scored.scores

    def score_lists(self, lists: Iterable[Candidates]) -> Iterator[Scored]:
        """Yield the scores of each list."""
        return score_each(self._score, lists)

    def _score(self, query: Query, documents: Sequence[Document]) -> tuple[Float[np.ndarray, " docs"], int]:
        values, spans, num_tokens = self.read(query, documents)
        scores = document_scores(values, spans, signal=self.read.signal, calibrated=self.read.calibrated)
        return scores.numpy().astype(np.float32), num_tokens


def document_scores(
    values: Float[Tensor, "heads tokens"], spans: Sequence[slice], *, signal: str, calibrated: bool
) -> Float[Tensor, " docs"]:
    """Add up what heads give to documents: by their tokens, or by their last ones."""
    summed = values.sum(0)
    if signal == "qk":
        return span_ends(summed, spans)
    return (filtered_sums if calibrated else span_sums)(summed, spans)


def open_reader(
    *,
    folder: ModelFolder,
    prompt: Prompt,
    heads: Sequence[Head] | None,
    signal: str,
    calibrated: bool,
    max_length: int | None,
    running: Mapping[str, Any],
) -> ReadDocuments:
    """Load a language model ready to read attention; arguments as for `rerankers.attention.by_attention`."""
    generator = open_generator(folder, readable=True, **running)
    renderer = Renderer(prompt, folder.tokenizer)
    most = min(max_length or longest_input(generator), longest_input(generator))
    return ReadDocuments(generator, renderer, most_tokens=most, heads=heads, signal=signal, calibrated=calibrated)


def open_attention(**how: Any) -> AttentionReranker:
    """Load a reranker by attention; arguments as for `open_reader`."""
    return AttentionReranker(open_reader(**how))
