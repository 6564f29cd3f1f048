"""Forecast of a language model's work: calls, tokens, and time from a sample."""

import time
from collections.abc import Sequence
from contextlib import closing
from typing import cast

import numpy as np

from shortlist.math.permutation import Count, Plan, Question, Verdict, count_questions
from shortlist.progress import say
from shortlist.rerank.candidates import CandidateReader, Chunk
from shortlist.rerankers.asked import AskingReranker
from shortlist.rerankers.prepared import Prepared
from shortlist.text.rendering import QueryAndShown

CALLS_SAMPLED = 16
"""Prompts that are asked to see how long one takes."""


def forecast_calls(prepared: Prepared, candidates: CandidateReader) -> None:
    """Print the calls, tokens and time that a run would take, from a sample."""
    with closing(cast(AskingReranker, prepared.open())) as ranker:
        say(forecast_in_words(ranker, candidates))


def forecast_in_words(ranker: AskingReranker, candidates: CandidateReader) -> str:
    """Describe what reranking these candidates would take, in words."""
    readable = candidates.readable()
    sizes = [span.stop - span.start for span in candidates.list_spans(readable)]
    few, many = sorted(sum_counts(ranker, sizes, wrong=wrong) for wrong in (False, True))
    asked = sampled_questions(ranker, candidates, readable)
    start = time.perf_counter()
    ranker.questions(asked)
    taken, tally = time.perf_counter() - start, ranker.questions.tally
    each = [count.questions / max(1, tally.calls) for count in (few, many)]
    calls = between(few.questions, many.questions)
    tokens = between(*(round(times * tally.prompt_tokens) for times in each))
    answers = between(*(round(times * tally.answer_tokens) for times in each))
    minutes = between(*(round(times * taken / 60) for times in each))
    faults = f"; {tally.malformed:,} of them malformed: {ranker.questions.faults()}" if tally.malformed else ""
    pace = f"{1000 * taken / max(1, tally.calls):,.0f} ms a call (from {tally.calls} calls{faults})"
    return (
        f"rerank: {len(sizes):,} queries, {sum(sizes):,} candidates: {calls} calls in {few.rounds:,} rounds or more, "
        f"{tokens} tokens to read and {answers} to generate, {minutes} minutes at {pace}."
    )


def between(low: int, high: int) -> str:
    """Write a range of numbers, or one number where both are equal."""
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def sum_counts(ranker: AskingReranker, sizes: Sequence[int], *, wrong: bool) -> Count:
    """Count the questions of all lists if the first stage is right throughout, or wrong."""
    each = {size: count_different(ranker.plan(size), wrong=wrong) for size in set(sizes)}
    return Count(
        sum(each[size].questions for size in sizes),
        max((each[size].rounds for size in sizes), default=0),
        sum(each[size].documents for size in sizes),
    )


def count_different(plan: Plan, *, wrong: bool) -> Count:
    """Count the different questions of one list, as the log answers the others."""
    asked: set[Question] = set()

    def answer(questions: list[Question]) -> list[Verdict]:
        asked.update(questions)
        return [[float(document) if wrong else -float(document) for document in shown] for shown in questions]

    return count_questions(plan, answer)._replace(questions=len(asked))


def sampled_questions(ranker: AskingReranker, candidates: CandidateReader, readable: np.ndarray) -> list[QueryAndShown]:
    """Choose the first questions of the first lists."""
    asked: list[QueryAndShown] = []
    done = np.zeros(len(candidates.ranks), dtype=bool)
    chunk = next(candidates.chunks(readable, done), Chunk(readable[:0], []))
    for query, documents in chunk.lists[:CALLS_SAMPLED]:
        for question in next(ranker.plan(len(documents)), [])[: max(1, CALLS_SAMPLED // len(chunk.lists))]:
            asked.append((query, [documents[place] for place in question]))
    return asked[:CALLS_SAMPLED]
