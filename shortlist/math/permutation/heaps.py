"""Plans that find the k best with a heap or by insertion."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from shortlist.math.permutation.answers import best_of_set, check_least, prefer, scores_by_place
from shortlist.math.permutation.running import Plan, PlanPart, Question, together

FindBest = Callable[[Question], PlanPart[int]]
"""Finds the best of a few documents by one question or by several."""


def pair_heapsort(num_docs: int, *, k: int) -> Plan:
    """Find the k best with a binary heap, comparing pairs in both orders.

    https://arxiv.org/abs/2306.17563
    """
    order = yield from _heapsort(range(num_docs), k, children=2, best=_best_by_pairs)
    return scores_by_place(order, num_docs)


def set_heapsort(num_docs: int, *, k: int, children: int) -> Plan:
    """Find the k best with a heap, asking for the best of several documents.

    A set is a document and those below it in the heap, at most `children`.

    https://arxiv.org/abs/2310.09497
    """
    order = yield from _heapsort(range(num_docs), k, children=children, best=best_of_set)
    return scores_by_place(order, num_docs)


def set_insertion(num_docs: int, *, k: int, children: int) -> Plan:
    """Find the k best by inserting documents into the first k.

    The first k documents are sorted with a heap. The rest challenge the k-th in sets of `children`, in first-stage
    order: if it is the best of them all, the whole set is done with; otherwise the winner gets its place by halving,
    and the others challenge the new k-th. The better the first stage, the fewer the questions.

    https://arxiv.org/abs/2504.10509
    """
    order = yield from _heapsort(range(min(k, num_docs)), k, children=children, best=best_of_set)
    waiting = list(range(len(order), num_docs))
    while order and waiting:
        winner = yield from best_of_set((order[-1], *waiting[:children]))
        if winner == order[-1]:
            del waiting[:children]
            continue
        waiting.remove(winner)
        order.pop()
        place = yield from _find_place(order, winner)
        order.insert(place, winner)
    return scores_by_place(order, num_docs)


def _heapsort(documents: Sequence[int], k: int, *, children: int, best: FindBest) -> PlanPart[list[int]]:
    """Take the best document k times from a heap with `children` below each place."""
    check_least(1, children=children)
    heap = list(documents)
    order: list[int] = []
    for level in _levels(len(heap), children) if k > 0 else []:  # what lies below the places of a level is apart
        yield from together([_sift(heap, place, children, best) for place in level])
    while heap and len(order) < k:
        order.append(heap[0])
        last = heap.pop()
        if heap and len(order) < k:
            heap[0] = last
            yield from _sift(heap, 0, children, best)
    return order


def _levels(num_docs: int, children: int) -> list[range]:
    """List the places of each level of a heap, from the bottom to the top."""
    starts = [0]
    while starts[-1] < num_docs:
        starts.append(children * starts[-1] + 1)
    return [range(start, min(end, num_docs)) for start, end in pairwise(starts)][::-1]


def _sift(heap: list[int], place: int, children: int, best: FindBest) -> PlanPart[None]:
    """Move the document at a place down the heap, below all that are better."""
    while len(below := range(children * place + 1, min(children * (place + 1) + 1, len(heap)))):
        family = [place, *below]
        winner = yield from best(tuple(heap[member] for member in family))
        [to] = [member for member in family if heap[member] == winner]
        if to == place:
            return
        heap[place], heap[to] = heap[to], heap[place]
        place = to


def _best_by_pairs(shown: Question) -> PlanPart[int]:
    """Find the best document by comparing one after another with the best so far.

    The first stage decides where the answers do not. Leaving the upper document where it is would be worse: after each
    extraction that is one from the bottom of the heap.
    """
    best = shown[0]
    for document in shown[1:]:
        [winner] = yield from prefer([(document, best)])
        best = min(document, best) if winner is None else winner
    return best


def _find_place(order: Sequence[int], document: int) -> PlanPart[int]:
    """Find where a document belongs among sorted ones, by halving; it comes behind its equals."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        winner = yield from best_of_set((order[middle], document))
        low, high = (low, middle) if winner == document else (middle + 1, high)
    return low
