"""Plans that change a list step by step: windows, bubblesorts, sliding pairs."""

from collections.abc import Callable, Sequence

from shortlist.math.permutation.answers import check_least, prefer, put_best_first, scores_by_place
from shortlist.math.permutation.running import Plan, PlanPart, Question, Verdict


def listwise(num_docs: int, *, window: int = 20, stride: int = 10, passes: int = 1) -> Plan:
    """Sort overlapping windows, from the tail of the list to its head.

    The last window of a pass starts at the first document, so that every document is read. After one pass with perfect
    answers the best `window - stride` documents come first. All documents are placed.

    Args:
        num_docs: how many documents the list has.
        window: how many documents are shown together, at least 2.
        stride: how far a window lies above the one before, at least 1; more than `window` counts as `window`.
        passes: how often to go through the list.

    https://arxiv.org/abs/2304.09542
    """
    check_least(2, window=window)
    check_least(1, stride=stride)
    spans = _windows(num_docs, window, min(stride, window))
    order = yield from _rearrange(num_docs, spans * passes, _by_answer)
    return scores_by_place(order, num_docs)


def set_bubblesort(num_docs: int, *, k: int, children: int) -> Plan:
    """Find the k best by passes that move each set's best to its front.

    A set is `children + 1` documents that follow each other, and shares one document with the next. Each pass reads all
    documents that have no place yet, from the tail, and does not guess from the pass before which sets to leave out.

    https://arxiv.org/abs/2310.09497
    """
    check_least(1, children=children)
    places = range(max(0, min(k, num_docs - 1)))
    spans = [
        slice(max(place, end - children - 1), end) for place in places for end in range(num_docs, place + 1, -children)
    ]
    order = yield from _rearrange(num_docs, spans, _best_to_front)
    return scores_by_place(order[: max(0, k)], num_docs)


def sliding_pairs(num_docs: int, *, passes: int = 10) -> Plan:
    """Swap neighbours where the lower one is preferred in both orders.

    Passes go from the tail to the head. After p passes with perfect answers the p best come first. All documents are
    placed.

    https://arxiv.org/abs/2306.17563
    """
    order = list(range(num_docs))
    spans = [slice(low - 1, low + 1) for place in range(passes) for low in range(num_docs - 1, place, -1)]
    for step in _rounds(spans, num_docs):
        winners = yield from prefer([(order[span][0], order[span][1]) for span in step])
        for span, winner in zip(step, winners, strict=True):
            if winner == order[span][1]:
                order[span] = order[span][::-1]
    return scores_by_place(order, num_docs)


def pair_bubblesort(num_docs: int, *, k: int) -> Plan:
    """Find the k best by passes of swaps that skip an unchanged tail.

    A pass begins one below the first swap of the pass before, and follows it at a distance of two, so that both may be
    asked together. Without a swap in a pass there is no next one.

    https://arxiv.org/abs/2306.17563
    """
    order = list(range(num_docs))
    lows = [num_docs - 1] if k > 0 else []  # for each pass, the place of the lower document that it compares next
    while ready := [
        index for index, low in enumerate(lows) if low > index and (index == 0 or lows[index - 1] <= low - 2)
    ]:
        winners = yield from prefer([(order[lows[index] - 1], order[lows[index]]) for index in ready])
        for index, winner in zip(ready, winners, strict=True):
            low = lows[index]
            if winner == order[low]:
                order[low - 1 : low + 1] = order[low], order[low - 1]
                if index == len(lows) - 1 and len(lows) < k:
                    lows.append(min(low + 1, num_docs - 1))
            lows[index] -= 1
    return scores_by_place(order[: max(0, k)], num_docs)


def _windows(num_docs: int, window: int, stride: int) -> list[slice]:
    """List the windows of one pass, from the tail to the head."""
    if num_docs < 2:
        return []
    ends = [num_docs]
    while ends[-1] > window:
        ends.append(max(ends[-1] - stride, 2))  # a document left over at the head is shown with the next
    return [slice(max(0, end - window), end) for end in ends]


def _rounds(spans: Sequence[slice], num_docs: int) -> list[list[slice]]:
    """Put steps that share no place into rounds.

    A step comes after all earlier steps that share a place with it, so the outcome is that of one after another.
    """
    rounds: list[list[slice]] = []
    free = [0] * num_docs  # for each place, the first round that may change it
    for span in spans:
        at = max(free[span])
        if at == len(rounds):
            rounds.append([])
        rounds[at].append(span)
        free[span] = [at + 1] * (span.stop - span.start)
    return rounds


def _rearrange(
    num_docs: int, spans: Sequence[slice], reorder: Callable[[Question, Verdict], list[int]]
) -> PlanPart[list[int]]:
    """Reorder one stretch of a list after another by the answers."""
    order = list(range(num_docs))
    for step in _rounds(spans, num_docs):
        questions = [tuple(order[span]) for span in step]
        answers = yield questions
        for span, question, answer in zip(step, questions, answers, strict=True):
            order[span] = reorder(question, answer)
    return order


def _by_answer(shown: Question, answer: Verdict) -> list[int]:
    """Put the best documents first."""
    return put_best_first(zip(shown, answer, strict=True))


def _best_to_front(shown: Question, answer: Verdict) -> list[int]:
    """Move the best document to the front; the others keep their order."""
    best = _by_answer(shown, answer)[0]
    return [best, *(document for document in shown if document != best)]
