"""Hierarchical clusters of vectors, from the documents up, by k-means at each level."""

import numpy as np
from jaxtyping import Float32, Int

from shortlist.math.tree import Tree

KMEANS_STEPS = 8
PART_POINTS = 1 << 17
"""Most vectors that are clustered together, so that the time grows in proportion to their number."""
POINTS_AT_ONCE = 4096
LEAST_BRANCH = 4
"""The least fan-out: with fewer, a level may have as many nodes as the one below."""


def cluster_tree(vectors: Float32[np.ndarray, "docs dim"], *, branch: int, seed: int = 0) -> Tree:
    """Build a tree from below, by clustering documents, then the clusters' means.

    It ends when the root can have all of them.

    Args:
        branch: about how many children a node has, and at most twice as many.
        seed: decides where k-means begins.

    Raises:
        ValueError: `branch` is below LEAST_BRANCH, or there is no document.
    """
    if branch < LEAST_BRANCH or not len(vectors):
        raise ValueError(f"expected a branch of {LEAST_BRANCH} or more, and documents")
    rng, levels = np.random.default_rng(seed), list[list[Int[np.ndarray, " members"]]]()
    points, sizes = vectors, np.ones(len(vectors), dtype=np.float32)
    while len(points) > 2 * branch:
        groups = balanced_clusters(points, branch, rng=rng)
        levels.append(groups)
        sums = np.stack([sizes[members] @ points[members] for members in groups])
        sizes = np.array([sizes[members].sum() for members in groups], dtype=np.float32)
        points = sums / sizes[:, None]
    counts, order = [len(points)], np.arange(len(points))
    for groups in reversed(levels):
        below = [groups[number] for number in order.tolist()]
        counts += map(len, below)
        order = np.concatenate(below)
    return Tree(1 + np.concatenate([[0], np.cumsum(counts)]), order)


def balanced_clusters(
    points: Float32[np.ndarray, "points dim"], size: int, *, rng: np.random.Generator
) -> list[Int[np.ndarray, " members"]]:
    """Cluster points by k-means into groups of about `size`, and at most twice as many.

    Larger groups are clustered again, and points that are all alike are split as they come.
    """
    done, open_groups = list[Int[np.ndarray, " members"]](), [np.arange(len(points))]
    while open_groups:
        members = open_groups.pop()
        if len(members) <= 2 * size:
            done.append(members)
            continue
        count = -(-len(members) // size) if len(members) <= PART_POINTS else -(-2 * len(members) // PART_POINTS)
        numbers = kmeans(points[members], count, rng=rng)
        order = np.argsort(numbers, kind="stable")
        parts = np.split(members[order], np.flatnonzero(np.diff(numbers[order])) + 1)
        open_groups += reversed(parts if len(parts) > 1 else np.array_split(members, count))
    if 2 * len(done) <= len(points) or len(points) <= 2 * size:
        return done
    order = np.concatenate(done)  # k-means takes out single points over and over
    return [np.sort(part) for part in np.array_split(order, -(-len(order) // size))]


def kmeans(
    points: Float32[np.ndarray, "points dim"], count: int, *, rng: np.random.Generator, iterations: int = KMEANS_STEPS
) -> Int[np.ndarray, " points"]:
    """Return the cluster of each point, by the nearest mean; a cluster may be empty."""
    means = points[np.sort(rng.choice(len(points), count, replace=False))]
    numbers, gaps = _nearest(points, means)
    for _ in range(iterations):
        order = np.argsort(numbers, kind="stable")
        present, firsts, sizes = np.unique(numbers[order], return_index=True, return_counts=True)
        means = np.empty_like(means)
        means[present] = np.add.reduceat(points[order], firsts) / sizes[:, None].astype(np.float32)
        empty = np.setdiff1d(np.arange(count), present)
        means[empty] = points[np.argsort(-gaps, kind="stable")[: len(empty)]]  # where the farthest points are
        numbers, gaps = _nearest(points, means)
    return numbers


def _nearest(
    points: Float32[np.ndarray, "points dim"], means: Float32[np.ndarray, "means dim"]
) -> tuple[Int[np.ndarray, " points"], Float32[np.ndarray, " points"]]:
    """Find each point's nearest mean, and the square of its distance."""
    numbers, gaps = np.empty(len(points), dtype=np.int64), np.empty(len(points), dtype=np.float32)
    halves = 0.5 * np.square(means).sum(1)
    for start in range(0, len(points), POINTS_AT_ONCE):
        part = points[start : start + POINTS_AT_ONCE]
        products = part @ means.T - halves
        best = products.argmax(1)
        numbers[start : start + len(part)] = best
        gaps[start : start + len(part)] = np.square(part).sum(1) - 2 * products[np.arange(len(part)), best]
    return numbers, gaps


def node_means(tree: Tree, vectors: Float32[np.ndarray, "leaves dim"]) -> Float32[np.ndarray, "inner dim"]:
    """Return the mean of the documents below each inner node.

    Args:
        vectors: of the documents, in the order of the leaves.
    """
    means = np.empty((tree.num_inner, vectors.shape[1]), dtype=np.float32)
    depths = tree.depths[: tree.num_inner]
    for depth in range(int(depths[-1]) + 1):
        nodes = np.flatnonzero(depths == depth)
        first, end = tree.spans[nodes].T
        means[nodes] = np.add.reduceat(vectors, first) / (end - first)[:, None].astype(np.float32)
    return means


def nearest_leaves(
    tree: Tree, vectors: Float32[np.ndarray, "leaves dim"], means: Float32[np.ndarray, "inner dim"], count: int
) -> Int[np.ndarray, "inner count"]:
    """Return the leaves below each inner node that are nearest to its mean.

    The nearest is first, and -1 stands where there are fewer.

    Args:
        vectors: of the documents, in the order of the leaves.
    """
    found = np.full((tree.num_inner, count), -1, dtype=np.int64)
    halves = 0.5 * np.square(vectors).sum(1)
    for node, (first, end) in enumerate(tree.spans.tolist()):
        gaps = halves[first:end] - vectors[first:end] @ means[node]
        best = np.argsort(gaps, kind="stable")[:count]
        found[node, : len(best)] = first + best
    return found
