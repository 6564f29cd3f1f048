import pytest

from shortlist.math.fusion import FUSIONS, minmax, rrf, weighted, zscore
from shortlist.records import Hit, Run

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
