import math
import random

import pytest

from shortlist.math.fusion import FUSIONS, interpolate, merge, minmax, reorder, rrf, weight_grid, weighted, zscore
from shortlist.records import Hit, Run

NAN = float("nan")
A: Run = {"q1": [Hit("a", 9.0), Hit("b", 5.0), Hit("c", 1.0)], "only_a": [Hit("x", 1.0)]}
B: Run = {"q1": [Hit("c", 0.9), Hit("d", 0.1)], "only_b": [Hit("y", 1.0), Hit("z", 0.5)]}


def scores(run: Run, query_id: str = "q1") -> dict[str, float]:
    return {hit.doc_id: hit.score for hit in run[query_id]}


def test_rrf_equals_the_value_worked_out_by_hand():
    fused = rrf([A, B])
    assert scores(fused) == pytest.approx({"c": 1 / 63 + 1 / 61, "a": 1 / 61, "b": 1 / 62, "d": 1 / 62})
    assert [hit.doc_id for hit in fused["q1"]] == ["c", "a", "b", "d"]


def test_rrf_weighs_runs_and_damps_first_ranks_by_k():
    assert scores(rrf([A, B], weights=[2.0, 1.0], k=1.0)) == pytest.approx({"a": 1, "c": 1, "b": 2 / 3, "d": 1 / 3})


def test_rrf_does_not_look_at_scores():
    squeezed = {query_id: [Hit(hit.doc_id, hit.score / 1000) for hit in hits] for query_id, hits in A.items()}
    assert rrf([squeezed, B]) == rrf([A, B])


def test_weighted_equals_the_value_worked_out_by_hand():
    fused = weighted([A, B], weights=[1.0, 0.5])
    assert scores(fused) == pytest.approx({"a": 1.0, "b": 0.5, "c": 0.5, "d": 0.0})


def test_a_zscore_sum_gives_absent_documents_the_lowest_score_of_the_run():
    deviation = (32 / 3) ** 0.5
    first = {"a": 4 / deviation, "b": 0.0, "c": -4 / deviation, "d": -4 / deviation}
    second = {"a": -1.0, "b": -1.0, "c": 1.0, "d": -1.0}
    fused = weighted([A, B], scale=zscore)
    assert scores(fused) == pytest.approx({doc_id: first[doc_id] + second[doc_id] for doc_id in first})


@pytest.mark.parametrize("scale", [minmax, zscore])
def test_scaled_scores_do_not_change_when_a_run_is_stretched_and_moved(scale):
    stretched = {query_id: [Hit(hit.doc_id, 3 * hit.score - 70) for hit in hits] for query_id, hits in A.items()}
    before, after = weighted([A, B], scale=scale), weighted([stretched, B], scale=scale)
    assert scores(after) == pytest.approx(scores(before))


def test_one_hit_alone_is_worth_more_than_none():
    fused = weighted([{"q": [Hit("a", 7.0)]}, {"q": [Hit("b", 3.0), Hit("c", 2.0)]}])
    assert scores(fused, "q") == pytest.approx({"a": 1.0, "b": 1.0, "c": 0.0})


@pytest.mark.parametrize("name", FUSIONS)
def test_a_fusion_keeps_every_query_and_document_best_first(name: str):
    fused = FUSIONS[name]([A, B])
    assert fused.keys() == {"q1", "only_a", "only_b"}
    assert {hit.doc_id for hit in fused["q1"]} == {"a", "b", "c", "d"}
    for hits in fused.values():
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize("name", FUSIONS)
def test_a_fusion_does_not_care_which_run_comes_first(name: str):
    assert scores(FUSIONS[name]([A, B])) == pytest.approx(scores(FUSIONS[name]([B, A])))


@pytest.mark.parametrize("name", FUSIONS)
def test_a_fusion_of_one_run_keeps_its_order(name: str):
    assert [hit.doc_id for hit in FUSIONS[name]([A])["q1"]] == ["a", "b", "c"]


@pytest.mark.parametrize("name", FUSIONS)
def test_a_run_of_weight_zero_adds_documents_but_no_score(name: str):
    fused = scores(FUSIONS[name]([A, B], weights=[1.0, 0.0]))
    assert {doc_id: fused[doc_id] for doc_id in "abc"} == pytest.approx(scores(FUSIONS[name]([A])))


@pytest.mark.parametrize("name", FUSIONS)
def test_an_empty_list_says_nothing(name: str):
    assert FUSIONS[name]([A, {"q1": []}])["q1"] == FUSIONS[name]([A])["q1"]
    assert FUSIONS[name]([{"q": []}, {"q": []}]) == {"q": []}


@pytest.mark.parametrize("name", FUSIONS)
def test_as_many_weights_as_runs_are_needed(name: str):
    with pytest.raises(ValueError, match="zip"):
        FUSIONS[name]([A, B], weights=[1.0])


def test_interpolating_is_the_zscore_fusion_of_what_was_read():
    hits, scores = [Hit("a", 9.0), Hit("b", 5.0), Hit("c", 1.0), Hit("d", 0.5)], [0.1, 0.2, 0.9]
    run, read = {"q": hits[:3]}, {"q": [Hit(hit.doc_id, score) for hit, score in zip(hits, scores, strict=False)]}
    fused = {hit.doc_id: hit.score for hit in FUSIONS["zscore"]([run, read], weights=[0.7, 0.3])["q"]}
    mixed = interpolate(hits, scores, 0.3)
    assert mixed[:3] == pytest.approx([fused[name] for name in "abc"])
    assert math.isnan(mixed[3])
    assert [hit.doc_id for hit in reorder(hits, mixed)] == ["a", "b", "c", "d"]


def test_a_share_of_one_leaves_the_second_stages_scores_as_they_are():
    hits = [Hit("a", 9.0), Hit("b", 5.0)]
    assert interpolate(hits, [0.25, 0.5], 1.0) == [0.25, 0.5]
    assert interpolate(hits, [0.25, 0.5], 0.0) == pytest.approx([1, -1])
    assert interpolate([], [], 0.5) == []


def test_what_was_not_read_takes_no_part_in_a_mixture():
    hits = [Hit("a", 3.0), Hit("b", 2.0), Hit("c", 1.0)]
    mixed = interpolate(hits, [0.0, NAN, 9.0], 0.75)
    assert [mixed[0], mixed[2]] == pytest.approx(interpolate([hits[0], hits[2]], [0.0, 9.0], 0.75))
    assert math.isnan(mixed[1])


def test_the_grid_holds_all_weights_that_add_up_to_one():
    assert weight_grid(1, 4) == [(1.0,)]
    assert weight_grid(2, 4) == [(0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0)]
    assert len(weight_grid(3, 4)) == 15
    assert all(sum(weights) == pytest.approx(1) for weights in weight_grid(3, 20))


def test_new_scores_decide_and_equal_ones_keep_the_old_order():
    hits = [Hit("d", 9), Hit("c", 8), Hit("b", 7), Hit("a", 6)]
    assert reorder(hits, [1.0, 3.0, 1.0, 3.0]) == [Hit("c", 3.0), Hit("a", 3.0), Hit("d", 1.0), Hit("b", 1.0)]


def test_what_has_no_new_score_follows_in_its_old_order():
    hits = [Hit("a", 9), Hit("b", 8), Hit("c", 700), Hit("d", 6)]
    assert reorder(hits, [-2.0, 5.0, NAN, NAN]) == [Hit("b", 5.0), Hit("a", -2.0), Hit("c", -3.0), Hit("d", -4.0)]
    assert reorder(hits, [NAN, 5.0, NAN, 6.0]) == [Hit("d", 6.0), Hit("b", 5.0), Hit("a", 4.0), Hit("c", 3.0)]
    assert reorder(hits[:2], [NAN, NAN]) == [Hit("a", -1.0), Hit("b", -2.0)]


def test_reordering_loses_and_invents_nothing():
    assert reorder([], []) == []
    rng = random.Random(0)
    hits = [Hit(str(i), 0.0) for i in range(50)]
    new = reorder(hits, [rng.random() for _ in range(30)] + [NAN] * 20)
    assert sorted(hit.doc_id for hit in new) == sorted(hit.doc_id for hit in hits)
    assert [hit.score for hit in new] == sorted((hit.score for hit in new), reverse=True)


def test_lists_on_one_scale_are_merged_by_their_scores():
    news = {"q1": [Hit("a", 0.9), Hit("b", 0.2)], "q2": [Hit("c", -1.0)]}
    papers = {"q1": [Hit("d", 0.5), Hit("b", 0.4)]}
    assert merge([news, papers]) == {"q1": [Hit("a", 0.9), Hit("d", 0.5), Hit("b", 0.4)], "q2": [Hit("c", -1.0)]}
    assert [hit.doc_id for hit in merge([news, papers], weights=[0.5, 1.0])["q1"]] == ["d", "a", "b"]
