"""What asking a language model would take: calls, tokens, and time from a sample."""

import time
from collections.abc import Sequence

import numpy as np

from shortlist.math.permutation import Count, Plan, count_questions
from shortlist.progress import say
from shortlist.rerank.candidates import CandidateReader, Chunk
from shortlist.rerankers.asked import AskingReranker
from shortlist.rerankers.models import Asked
from shortlist.rerankers.prepared import Prepared
from shortlist.settings.rerank import Config

SAMPLED = 16
"""Prompts that are asked to see how long one takes."""


def forecast_calls(config: Config, prepared: Prepared, candidates: CandidateReader) -> None:
    """Print the calls and tokens that a run would take, and the time, from a sample that is asked."""
    ranker = prepared.open()
    assert isinstance(ranker, AskingReranker)
    readable = candidates.readable()
    sizes = [span.stop - span.start for span in candidates.list_spans(readable)]
    few, many = (sum_counts(ranker, sizes, wrong=wrong) for wrong in (False, True))
    asked = sample(ranker, candidates, readable)
    start = time.perf_counter()
    ranker.questions(asked)
    seconds = (time.perf_counter() - start) / max(1, len(asked))
    tally = ranker.questions.tally
    calls = between(few.questions, many.questions)
    tokens = between(*(count.questions * tally.prompt_tokens // max(1, len(asked)) for count in (few, many)))
    answers = between(*(count.questions * tally.answer_tokens // max(1, len(asked)) for count in (few, many)))
    minutes = between(*(round(count.questions * seconds / 60) for count in (few, many)))
    say(
        f"rerank: {len(sizes):,} queries, {sum(sizes):,} candidates: {calls} calls in {few.rounds:,} rounds or more, "
        f"{tokens} tokens to read and {answers} to generate, {minutes} minutes at {1000 * seconds:,.0f} ms a call "
        f"(from {len(asked)} calls)."
    )


def between(low: int, high: int) -> str:
    """Write a range of numbers, or one number where both are equal."""
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def sum_counts(ranker: AskingReranker, sizes: Sequence[int], *, wrong: bool) -> Count:
    """Count the questions of all lists if the first stage is right throughout, or wrong."""
    each = {size: count(ranker.plan(size), wrong=wrong) for size in set(sizes)}
    return Count(
        sum(each[size].questions for size in sizes),
        max((each[size].rounds for size in sizes), default=0),
        sum(each[size].documents for size in sizes),
    )


def count(plan: Plan, *, wrong: bool) -> Count:
    """Count the questions of one list."""
    if wrong:
        return count_questions(plan)
    return count_questions(plan, lambda questions: [[-float(document) for document in shown] for shown in questions])


def sample(ranker: AskingReranker, candidates: CandidateReader, readable: np.ndarray) -> list[Asked]:
    """Choose the first questions of the first lists."""
    asked: list[Asked] = []
    done = np.zeros(len(candidates.ranks), dtype=bool)
    chunk = next(candidates.chunks(readable, done), Chunk(readable[:0], []))
    for query, documents in chunk.lists[:SAMPLED]:
        for question in next(ranker.plan(len(documents)), [])[: max(1, SAMPLED // len(chunk.lists))]:
            asked.append((query, [documents[place] for place in question]))
    return asked[:SAMPLED]
