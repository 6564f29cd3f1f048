import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from shortlist.math.clusters import balanced_clusters, cluster_tree, kmeans, nearest_leaves, node_means
from shortlist.math.permutation import Question, run_plans
from shortlist.math.tree import Tree, Walked, descend, path_relevance, walk_by_scores, walk_in_slates


def tree() -> Tree:
    """The root; its children 1, 2; below 1 the nodes 3, 4; below 2 the node 5; then two, one and three documents."""
    return Tree(np.array([1, 3, 5, 6, 8, 9, 12]), np.array([3, 0, 4, 1, 5, 2]))


def points(count: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(2, count // 10), dim))
    rows = centres[rng.integers(len(centres), size=count)] + 0.4 * rng.standard_normal((count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def finish(walk, score: Callable[[Question], Sequence[float]]) -> tuple[Walked, list[list[Question]]]:
    """Run a walk to its end; returns what it found, and the slates of each round."""
    rounds: list[list[Question]] = []

    def answer(asked: list[tuple[int, Question]]) -> list[Sequence[float]]:
        rounds.append([question for _, question in asked])
        return [score(question) for question in rounds[-1]]

    [(_, walked)] = run_plans([walk], answer)
    return walked, rounds


def test_a_tree_knows_parents_depths_and_the_leaves_below_each_node():
    assert tree().parents.tolist() == [-1, 0, 0, 1, 1, 2, 3, 3, 4, 5, 5, 5]
    assert tree().depths.tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3]
    assert tree().spans.tolist() == [[0, 6], [0, 3], [3, 6], [0, 2], [2, 3], [3, 6]]
    assert tree().children(np.array([1, 2])).tolist() == [3, 4, 5]
    assert tree().children(np.array([], dtype=np.int64)).tolist() == []


def test_a_node_without_an_allowed_document_is_not_alive():
    keep = np.array([False, True, False, False, True, False])  # the leaves 3 and 2
    assert np.flatnonzero(tree().alive(keep)).tolist() == [0, 1, 2, 4, 5, 8, 9]


def test_a_tree_of_the_root_alone_has_the_documents_for_children():
    flat = Tree(np.array([1, 4]), np.arange(3))
    assert flat.depths.tolist() == [0, 1, 1, 1]
    assert flat.spans.tolist() == [[0, 3]]
    assert descend(flat, np.zeros((1, 2)), np.ones(2), beam=1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("count", [1, 4, 5, 30, 500])
def test_every_document_is_one_leaf_and_no_node_is_too_large(count: int):
    built = cluster_tree(points(count), branch=4)
    assert sorted(built.leaves.tolist()) == list(range(count))
    assert len(built.parents) == built.starts[-1] == built.num_inner + count
    sizes = np.diff(built.starts)
    assert sizes.min() >= 1
    assert sizes.max() <= 8
    assert built.depths[built.num_inner :].tolist() == [built.depths[-1]] * count
    again = cluster_tree(points(count), branch=4)
    assert (again.leaves == built.leaves).all()
    assert (again.starts == built.starts).all()


def test_points_that_are_all_alike_are_split_as_they_come():
    groups = balanced_clusters(np.ones((30, 2), dtype=np.float32), 4, rng=np.random.default_rng(0))
    assert [len(group) for group in groups] == [4, 4, 4, 4, 4, 4, 3, 3]
    assert np.concatenate(groups).tolist() == list(range(30))


def test_single_points_that_are_taken_out_over_and_over_make_no_endless_levels():
    far = np.float32(2.0) ** np.arange(40, dtype=np.float32)
    groups = balanced_clusters(far[:, None], 4, rng=np.random.default_rng(0))
    assert len(groups) <= 20
    assert cluster_tree(far[:, None], branch=4).depths[-1] <= 6


def test_kmeans_finds_two_heaps():
    heaps = np.array([[0, 0], [9, 9], [0, 1], [9, 8]], dtype=np.float32)
    numbers = kmeans(heaps, 2, rng=np.random.default_rng(1))
    assert numbers[0] == numbers[2] != numbers[1] == numbers[3]


def test_a_node_has_the_mean_of_the_documents_below_and_knows_the_nearest():
    rows = np.array([[0], [2], [4], [6], [7], [20]], dtype=np.float32)
    means = node_means(tree(), rows)
    np.testing.assert_allclose(means[:, 0], [6.5, 2, 11, 1, 4, 11])
    nearest = nearest_leaves(tree(), rows, means, 2)
    assert nearest.tolist() == [[3, 4], [1, 0], [4, 3], [0, 1], [2, -1], [4, 3]]


def test_going_down_keeps_the_best_nodes_of_each_level():
    means = np.array([[0], [1], [2], [5], [1], [3]], dtype=np.float32)
    one = np.ones(1, dtype=np.float32)
    assert descend(tree(), means, one, beam=1).tolist() == [0, 1]  # 1 and 2, then of 3, 4 and 5 the best
    assert descend(tree(), means, one, beam=2).tolist() == [0, 1, 3, 4, 5]
    only = tree().alive(np.array([True, False, False, False, False, False]))
    assert descend(tree(), means, one, beam=1, alive=only).tolist() == [1]


def test_upper_levels_keep_twice_as_many_nodes():
    wide = Tree(np.array([1, 5, 6, 7, 8, 9, 10, 11, 12, 13]), np.arange(4))
    means = np.array([[0], [4], [3], [2], [1], [0], [1], [2], [9]], dtype=np.float32)
    one = np.ones(1, dtype=np.float32)
    assert descend(wide, means, one, beam=1).tolist() == [1]  # of 1 and 2 the node 6, which beats 5
    assert descend(wide, means, one, beam=1, whole=4).tolist() == [3]  # begins with 5 to 8


def test_the_level_to_begin_with_is_the_lowest_that_is_small_enough():
    assert [tree().level(most) for most in (1, 2, 3, 99)] == [(0, 1), (1, 3), (3, 6), (3, 6)]
    assert Tree(np.array([1, 4]), np.arange(3)).level(99) == (0, 1)


def test_with_all_nodes_kept_going_down_finds_exactly_the_best():
    rows = points(30)
    built = cluster_tree(rows, branch=4)
    means = node_means(built, rows[built.leaves])
    assert sorted(descend(built, means, rows[0], beam=30).tolist()) == list(range(30))


def test_a_walk_with_budget_for_all_reads_every_node_once_and_finds_the_exact_order():
    rows = points(30)
    built, query = cluster_tree(rows, branch=4), points(1, seed=7)[0]
    means = node_means(built, rows[built.leaves])
    exact = rows @ query

    def score(nodes: Question) -> list[float]:
        both = [means[n] if n < built.num_inner else rows[built.leaves[n - built.num_inner]] for n in nodes]
        return [float(vector @ query) for vector in both]

    walked, rounds = finish(walk_by_scores(built, beam=2, budget=1000), score)
    assert walked.positions.tolist() == np.argsort(-exact, kind="stable").tolist()
    np.testing.assert_allclose(walked.scores, np.sort(exact)[::-1], atol=1e-6)
    read = [node for slates in rounds for slate in slates for node in slate]
    assert sorted(read) == list(range(1, built.num_inner + 30))
    assert walked.num_read == len(read)
    slates, _ = finish(walk_in_slates(built, beam=3, iterations=1000, calibration=0), score)
    assert sorted(slates.positions.tolist()) == list(range(30))


def test_a_walk_reads_the_best_first_and_ends_with_its_budget():
    scores = {1: 1.0, 2: 5.0, 5: 4.0, 9: 3.0, 10: 9.0, 11: 3.0, 3: 7.0, 4: 0.0}
    walked, rounds = finish(walk_by_scores(tree(), beam=1, budget=7), lambda nodes: [scores[node] for node in nodes])
    assert rounds == [[(1, 2)], [(5,)], [(9, 10, 11)], [(3,)]]
    assert walked.positions.tolist() == [5, 1, 2]
    assert walked.scores.tolist() == [9.0, 3.0, 3.0]
    assert walked.num_read == 7


def test_a_node_without_a_score_comes_last_and_a_filter_hides_the_rest():
    keep = np.array([True, False, True, True, False, False])
    walked, rounds = finish(
        walk_by_scores(tree(), beam=1, budget=99, keep=keep),
        lambda nodes: [math.nan if node == 1 else float(node) for node in nodes],
    )
    assert rounds == [[(1, 2)], [(5,)], [(11,)], [(3,)], [(6, 7)]]
    assert walked.positions.tolist() == [2, 0, 3]
    none, rounds = finish(walk_by_scores(tree(), beam=1, budget=99, keep=np.zeros(6, dtype=bool)), lambda nodes: [])
    assert (len(none.positions), rounds) == (0, [])
    none, rounds = finish(walk_in_slates(tree(), keep=np.zeros(6, dtype=bool)), lambda nodes: [])
    assert (len(none.positions), rounds) == (0, [])


def test_a_path_is_lifted_by_its_parent_unless_nothing_is_there():
    assert path_relevance(0.5, 0.9, 0.25) == pytest.approx(0.8)
    assert path_relevance(0.09, 0.9, 0.25) == 0.09
    assert path_relevance(-1.0, 0.9, 0.25) == -1.0


def test_a_walk_in_slates_scores_a_document_by_its_path_and_its_own():
    scores = {1: 0.2, 2: 0.8, 5: 0.4, 9: 0.4, 10: 0.8, 11: 0.0}
    walked, rounds = finish(
        walk_in_slates(tree(), beam=1, iterations=3, alpha=0.5), lambda nodes: [scores[node] for node in nodes]
    )
    assert rounds == [[(1, 2)], [(5,)], [(9, 10, 11)]]
    # local scores are divided by .8: 1 -> .25, 2 -> 1, 5 -> .5; paths: 2 -> 1, 5 -> .75
    assert walked.positions.tolist() == [5, 1, 2]
    np.testing.assert_allclose(walked.scores, [0.875, 0.625, 0.375], atol=1e-5)


def test_a_slate_shows_the_best_of_its_level_and_seen_documents_again():
    scores = {1: 0.9, 2: 0.8, 3: 0.9, 4: 0.1, 5: 0.7, 6: 0.9, 7: 0.1}
    _, rounds = finish(
        walk_in_slates(tree(), beam=1, iterations=5), lambda nodes: [scores.get(node, 0.5) for node in nodes]
    )
    assert rounds[:2] == [[(1, 2)], [(3, 4)]]
    assert rounds[2] == [(6, 7)]
    assert rounds[3] == [(5, 3)]  # the best node of the level
    assert rounds[4] == [(9, 10, 11, 6)]  # the better of the seen documents


def test_slates_of_different_scales_come_to_one_scale():
    """A judge that shifts every slate misleads a walk, but hardly one that shows some documents again."""
    rows = points(200, seed=3)
    built = cluster_tree(rows, branch=6)
    means = node_means(built, rows[built.leaves])
    vectors = np.concatenate([means, rows[built.leaves]])

    def recall(query: int, shift: float, calibration: int) -> float:
        rng, exact = np.random.default_rng(query), vectors @ rows[query]
        walked, _ = finish(
            walk_in_slates(built, beam=2, iterations=12, calibration=calibration),
            lambda nodes: (exact[list(nodes)] / 2 + 0.5 + rng.uniform(-shift, shift)).tolist(),
        )
        return len({*walked.positions[:10].tolist()} & {*np.argsort(-(rows @ rows[query]))[:10].tolist()}) / 10

    plain, shifted, tied = (
        np.mean([recall(query, shift, calibration) for query in range(0, 200, 40)])
        for shift, calibration in ((0.0, 10), (0.2, 0), (0.2, 10))
    )
    assert plain > 0.9
    assert shifted + 0.1 < tied


def test_the_calls_of_an_oracle_grow_like_the_depth():
    counts = []
    for size in (100, 1000, 10_000):
        rows = points(size, seed=1)
        built, query = cluster_tree(rows, branch=16), rows[0]
        means = node_means(built, rows[built.leaves])
        kept = descend(built, means, query, beam=4)
        assert 0 in built.leaves[kept]
        counts.append(len(kept))
    assert max(counts) <= 4 * 32
