"""Known scores, from this command or from an interrupted one."""

from typing import final

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

from shortlist.data.runs import RunColumns
from shortlist.data.scores import ScoreLog, list_key
from shortlist.errors import UserError
from shortlist.rerank.candidates import CandidateReader
from shortlist.rerankers import Scored


@final
class KnownScores:
    """Scores of a run's hits, written to the log as they become known.

    Args:
        reader: reader of the run.
        wanted: numbers of the hits to score; the log may know more than these.

    Attributes:
        scores: score of each hit; NaN if it has none.
        done: whether each hit needs no reading, with or without a score.
    """

    scores: Float32[np.ndarray, " hits"]
    done: Bool[np.ndarray, " hits"]

    def __init__(self, log: ScoreLog, reader: CandidateReader, wanted: Int[np.ndarray, " wanted"]) -> None:
        self.log, self.run = log, reader.run
        self.scores = np.full(len(self.run.doc_ids), np.nan, dtype=np.float32)
        self.done = np.zeros(len(self.run.doc_ids), dtype=bool)
        self._lists: dict[int, Int[np.ndarray, " docs"]] | None = None
        if not reader.whole_lists:
            self.scores[wanted] = log.read(self.run)[wanted]
            self.done[wanted] = ~np.isnan(self.scores[wanted])
            return
        spans, known = reader.list_spans(wanted), log.read_lists()
        self._lists = {int(self.run.queries_of(wanted[span][:1])[0]): wanted[span] for span in spans}
        for query, numbers in self._lists.items():
            if (scores := known.get(self._key(query, numbers))) is not None:
                self.scores[numbers], self.done[numbers] = scores, True

    def add(self, part: Scored) -> None:
        """Add scores by the numbers of their hits, and write them to the log.

        Raises:
            UserError: a score is not finite.
        """
        if self._lists is None:
            check_finite(self.run, part.numbers, part.scores)
            self.log.append(self.run.pairs(part.numbers), part.scores)
            self.scores[part.numbers] = part.scores
            self.done[part.numbers] = True
            return
        looked_at = ~np.isnan(part.scores)
        check_finite(self.run, part.numbers[looked_at], part.scores[looked_at])
        queries = self.run.queries_of(part.numbers)
        for query in dict.fromkeys(queries.tolist()):
            self._add_list(query, part.numbers[queries == query], part.scores[queries == query])

    def _add_list(self, query: int, numbers: Int[np.ndarray, " docs"], scores: Float[np.ndarray, " docs"]) -> None:
        assert self._lists is not None
        whole = self._lists[query]
        if not np.array_equal(np.sort(numbers), whole[~self.done[whole]]):
            raise ValueError(f"query {self.run.query_ids[query]!r}: a reranker of whole lists gave a part of one")
        self.scores[numbers], self.done[whole] = scores, True
        self.log.append_list(self.run.query_ids[query], self._key(query, whole), self.scores[whole])

    def _key(self, query: int, numbers: Int[np.ndarray, " docs"]) -> str:
        return list_key(self.run.query_ids[query], [doc_id for _, doc_id in self.run.pairs(numbers)])


def check_finite(run: RunColumns, numbers: Int[np.ndarray, " some"], scores: Float[np.ndarray, " some"]) -> None:
    """Refuse scores that are not finite."""
    if not np.isfinite(scores).all():
        [(query_id, doc_id)] = run.pairs(numbers[~np.isfinite(scores)][:1])
        raise UserError(
            f"query {query_id!r}, document {doc_id!r}: the model gives no finite score; it overflows, so try a wider "
            "--precision."
        )
