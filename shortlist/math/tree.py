"""A tree of documents, and walks that find documents by scores of its nodes.

A walk is a generator without a model: it yields slates of nodes, is sent a score for each, and returns documents, so
that walks of many queries advance together (`math.permutation.run_plans`).

Slates whose scores cannot be compared with one another are brought to one scale, as in LATTICE
(https://arxiv.org/abs/2510.13217).
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from shortlist.math.latent import crossing, latent_scores
from shortlist.math.permutation import PlanPart, Question

LEAST_LOCAL = 0.09
"""A node with no more than this is not lifted by its parent."""
SAMPLING_BASE = 16.0
"""Seen documents are shown again with a chance in proportion to this, to the power of their score: 4^(2s)."""


@dataclass(frozen=True)
class Tree:
    """A tree whose leaves are documents, all at the same depth.

    Nodes are numbered level by level from the root, which is 0, and the documents follow all inner nodes. So the
    children of a node are neighbours, and so are the documents below it.

    Attributes:
        starts: the first child of each inner node, followed by the number of all nodes.
        leaves: positions of the documents in the corpus, in the order of the leaves.
    """

    starts: Int[np.ndarray, " _"]
    leaves: Int[np.ndarray, " docs"]

    @property
    def num_inner(self) -> int:
        """The number of nodes that are no documents."""
        return len(self.starts) - 1

    @cached_property
    def parents(self) -> Int[np.ndarray, " nodes"]:
        """The parent of each node, -1 for the root."""
        return np.concatenate([[-1], np.repeat(np.arange(self.num_inner), np.diff(self.starts))])

    @cached_property
    def depths(self) -> Int[np.ndarray, " nodes"]:
        """The distance of each node from the root."""
        depths = np.zeros(int(self.starts[-1]), dtype=np.int64)
        first, depth = int(self.starts[0]), 1
        while True:
            depths[first:] = depth
            if first >= self.num_inner:
                return depths
            first, depth = int(self.starts[first]), depth + 1

    def level(self, most: int) -> tuple[int, int]:
        """Return where the lowest inner level with at most so many nodes begins and ends."""
        first, end = 0, 1
        while end < self.num_inner and self.starts[end] - end <= most:
            first, end = end, int(self.starts[end])
        return first, end

    @cached_property
    def spans(self) -> Int[np.ndarray, "inner 2"]:
        """The first leaf below each inner node, and the one behind its last."""
        spans = np.stack([self.starts[:-1], self.starts[1:]], axis=1).astype(np.int64)
        for level in range(int(self.depths[-1]) - 2, -1, -1):
            nodes = np.flatnonzero(self.depths[: self.num_inner] == level)
            spans[nodes] = np.stack([spans[spans[nodes, 0], 0], spans[spans[nodes, 1] - 1, 1]], axis=1)
        return spans - self.num_inner

    def children(self, nodes: Int[np.ndarray, " nodes"]) -> Int[np.ndarray, " children"]:
        """Return the children of some inner nodes, in order."""
        first = self.starts[nodes]
        counts = self.starts[nodes + 1] - first
        ends = np.cumsum(counts)
        return np.repeat(first - ends + counts, counts) + np.arange(ends[-1] if len(ends) else 0)

    def alive(self, keep: Bool[np.ndarray, " docs"] | None) -> Bool[np.ndarray, " nodes"]:
        """Say for each node whether a document that may be found is there.

        Args:
            keep: whether the document at each position of the corpus may be found (None: all may).
        """
        if keep is None:
            return np.ones(int(self.starts[-1]), dtype=bool)
        kept = keep[self.leaves]
        before = np.concatenate([[0], np.cumsum(kept)])
        return np.concatenate([before[self.spans[:, 1]] > before[self.spans[:, 0]], kept])


class Walked(NamedTuple):
    """The documents that a walk has seen, best first, and equal ones in corpus order."""

    positions: Int[np.ndarray, " found"]
    scores: Float[np.ndarray, " found"]
    num_read: int
    """Number of nodes and documents that were shown."""


def descend(
    tree: Tree,
    centres: Float[np.ndarray, "inner dim"],
    query: Float[np.ndarray, " dim"],
    *,
    beam: int,
    whole: int = 1,
    alive: Bool[np.ndarray, " nodes"] | None = None,
) -> Int[np.ndarray, " leaves"]:
    """Return the leaves below the best nodes, going down level by level.

    Args:
        centres: vectors of the inner nodes; their products with the query's are scores.
        beam: nodes that are kept of the lowest level, and half of those that are kept of each other one.
        whole: the first level to look at is the lowest with at most so many nodes.
        alive: the nodes to look at (None: all).
    """
    nodes = np.arange(*tree.level(whole))
    while True:
        if alive is not None:
            nodes = nodes[alive[nodes]]
        if not len(nodes) or nodes[0] >= tree.num_inner:
            return nodes - tree.num_inner
        kept = beam if tree.starts[nodes[0]] >= tree.num_inner else 2 * beam
        if len(nodes) > kept:
            first, end = nodes[0], nodes[-1] + 1
            scores = (centres[first:end] if len(nodes) == end - first else centres[nodes]) @ query
            nodes = np.sort(nodes[np.argpartition(-scores, kept - 1)[:kept]])
        nodes = tree.children(nodes)


def walk_by_scores(
    tree: Tree, *, beam: int, budget: int, keep: Bool[np.ndarray, " docs"] | None = None
) -> PlanPart[Walked]:
    """Read the children of the best nodes seen so far, up to a budget.

    The scores of different slates must be comparable. With a budget for all nodes, every document is read.

    Args:
        beam: nodes whose children are read together.
        budget: most nodes and documents to read.
        keep: whether each document may be found (None: all may).
    """
    alive = tree.alive(keep)
    frontier: list[tuple[float, int]] = [(0.0, 0)] if alive[0] else []
    found = dict[int, float]()
    num_read = 0
    while frontier and num_read < budget:
        slates: list[Question] = []
        while frontier and len(slates) < beam and num_read < budget:
            _, node = heapq.heappop(frontier)
            children = tree.children(np.array([node]))
            slates.append(tuple(children[alive[children]][: budget - num_read].tolist()))
            num_read += len(slates[-1])
        answers = yield slates
        for child, score in _flat(slates, answers):
            if child >= tree.num_inner:
                found[child] = score
            else:
                heapq.heappush(frontier, (-score, child))
    return _walked(tree, found, num_read)


def walk_in_slates(
    tree: Tree,
    *,
    beam: int = 2,
    iterations: int = 20,
    alpha: float = 0.5,
    calibration: int = 10,
    tau: float = 5.0,
    share: float = 1.0,
    keep: Bool[np.ndarray, " docs"] | None = None,
    seed: int = 0,
) -> PlanPart[Walked]:
    """Read the children of the best nodes, by scores that mean something within a slate.

    A slate of documents shows some seen ones again, and one of inner nodes the best seen node of their level, so that
    all slates can be brought to one scale.

    Args:
        beam: nodes whose children are shown in an iteration, each in a slate of its own.
        iterations: most times that slates are yielded.
        alpha: the weight of a node's own score in its path.
        calibration: most seen documents to show again in a slate.
        tau: scale of the latent scores.
        share: the weight of squared errors in the fit, 0 to 1; the likelihood of the orders has the rest.
        keep: whether each document may be found (None: all may).
        seed: decides which documents are shown again.

    https://arxiv.org/abs/2510.13217
    """
    alive, rng = tree.alive(keep), np.random.default_rng(seed)
    frontier, path, local = {0}, {0: 1.0}, dict[int, float]()
    judged = list[tuple[int, int, float]]()
    num_slates, num_read = 0, 0
    for _ in range(iterations):
        chosen = sorted(frontier, key=lambda node: (-path[node], node))[:beam]
        slates = list[Question]()
        for node in chosen:
            children = tree.children(np.array([node]))
            shown = children[alive[children]].tolist()
            slates.append((*shown, *_shown_again(tree, shown, path, local, most=calibration, rng=rng)))
        slates = [slate for slate in slates if slate]
        if not slates:
            break
        answers = yield slates
        for slate, answer in zip(slates, answers, strict=True):
            judged += [(num_slates, *one) for one in zip(slate, answer, strict=True) if not math.isnan(one[1])]
            num_slates += 1
            num_read += len(slate)
        seen = {node for slate in slates for node in slate} | local.keys()
        local = dict.fromkeys(sorted(seen), 0.0) | _calibrated(judged, tau=tau, share=share)
        frontier = (frontier | {node for node in seen if node < tree.num_inner and node not in path}) - set(chosen)
        for node in sorted(local):  # parents before children
            path[node] = path_relevance(local[node], path[int(tree.parents[node])], alpha)
    leaves = [node for node in local if node >= tree.num_inner]
    scores = {node: (1 - alpha) * path[int(tree.parents[node])] + alpha * local[node] for node in leaves}
    return _walked(tree, scores, num_read)


def path_relevance(local: float, parent: float, alpha: float) -> float:
    """Mix a node's own score with its parent's path, unless nothing is there."""
    return alpha * local + (1 - alpha) * parent if local > LEAST_LOCAL else local


def _calibrated(judged: Sequence[tuple[int, int, float]], *, tau: float, share: float) -> dict[int, float]:
    """Return scores of the judged nodes on one scale, whose largest is 1."""
    if not judged:
        return {}
    slates, nodes, scores = (np.array(column) for column in zip(*judged, strict=True))
    names, numbers = np.unique(nodes, return_inverse=True)
    theta = latent_scores(numbers, slates, scores.astype(np.float64), tau=tau, share=share)
    best = theta.max()
    return dict(zip(names.tolist(), (theta / best if best > 0 else np.zeros_like(theta)).tolist(), strict=True))


def _shown_again(
    tree: Tree,
    shown: Sequence[int],
    path: dict[int, float],
    local: dict[int, float],
    *,
    most: int,
    rng: np.random.Generator,
) -> list[int]:
    """Choose seen nodes that tie a slate to those before."""
    if not shown or not most:
        return []
    if shown[0] < tree.num_inner:
        depth = tree.depths[shown[0]]
        level = [node for node in local if tree.depths[node] == depth and node not in shown]
        return [max(level, key=lambda node: (path[node], -node))] if level else []
    leaves = np.array([node for node in local if node >= tree.num_inner and node not in shown], dtype=np.int64)
    if not len(leaves):
        return []
    scores = np.array([local[node] for node in leaves.tolist()])
    good = scores >= crossing(scores)
    chances = SAMPLING_BASE ** scores[good]
    count = min(most, int(good.sum()))
    return np.sort(rng.choice(leaves[good], count, replace=False, p=chances / chances.sum())).tolist()


def _flat(slates: Sequence[Question], answers: Sequence[Sequence[float]]) -> list[tuple[int, float]]:
    """Pair nodes with their scores; what has none comes last."""
    pairs = [pair for both in zip(slates, answers, strict=True) for pair in zip(*both, strict=True)]
    return [(node, -math.inf if math.isnan(score) else float(score)) for node, score in pairs]


def _walked(tree: Tree, found: dict[int, float], num_read: int) -> Walked:
    positions = tree.leaves[np.fromiter(found, dtype=np.int64, count=len(found)) - tree.num_inner]
    scores = np.fromiter(found.values(), dtype=np.float64, count=len(found))
    order = np.lexsort((positions, -scores))
    return Walked(positions[order], scores[order], num_read)
