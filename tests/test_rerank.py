import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import DOCUMENTS, QUERIES, Tiny

from shortlist import rerank
from shortlist.data.formats import read_run, write_run
from shortlist.data.manifest import read_manifest, start_job
from shortlist.errors import UserError
from shortlist.models.checkpoint import load_reranker
from shortlist.models.embed import score_pairs
from shortlist.records import Hit, Run
from shortlist.rerank import PAIRS_AT_ONCE, reorder, windows

CANDIDATES: Run = {
    query.query_id: [Hit(document.doc_id, 10.0 - rank) for rank, document in enumerate(DOCUMENTS[place:] + DOCUMENTS)][
        :8
    ]
    for place, query in enumerate(QUERIES[:4])
}


@pytest.fixture
def config(tiny: Tiny, tmp_path: Path) -> rerank.Config:
    write_run(tmp_path / "run.trec", CANDIDATES)
    return rerank.Config(
        model=str(tiny.reranker),
        run=tmp_path / "run.trec",
        collection=str(tiny.collection),
        out=tmp_path / "reranked.trec",
    )


def reranked(config: rerank.Config) -> Run:
    rerank.run(config)
    return read_run(config.out)


def own_scores(tiny: Tiny, run: Run) -> dict[str, dict[str, float]]:
    """Every pair's score, each text alone in its batch."""
    model = load_reranker(str(tiny.reranker)).eval()
    queries = {query.query_id: query for query in QUERIES}
    documents = {document.doc_id: document for document in DOCUMENTS}
    return {
        query_id: {
            hit.doc_id: float(score_pairs(model, [(queries[query_id], documents[hit.doc_id])])[0]) for hit in hits
        }
        for query_id, hits in run.items()
    }


def test_new_scores_decide_and_equal_ones_keep_the_old_order():
    hits = [Hit("d", 9), Hit("c", 8), Hit("b", 7), Hit("a", 6)]
    assert reorder(hits, [1.0, 3.0, 1.0, 3.0]) == [Hit("c", 3.0), Hit("a", 3.0), Hit("d", 1.0), Hit("b", 1.0)]


def test_what_has_no_new_score_follows_in_its_old_order():
    hits = [Hit("a", 9), Hit("b", 8), Hit("c", 700), Hit("d", 6)]
    assert reorder(hits, [-2.0, 5.0]) == [Hit("b", 5.0), Hit("a", -2.0), Hit("c", -3.0), Hit("d", -4.0)]


def test_reordering_loses_and_invents_nothing():
    assert reorder([], []) == []
    rng = random.Random(0)
    hits = [Hit(str(i), 0.0) for i in range(50)]
    new = reorder(hits, [rng.random() for _ in range(30)])
    assert sorted(hit.doc_id for hit in new) == sorted(hit.doc_id for hit in hits)
    assert [hit.score for hit in new] == sorted((hit.score for hit in new), reverse=True)


def test_scores_are_those_of_each_pair_by_itself(config: rerank.Config, tiny: Tiny):
    expected, run = own_scores(tiny, CANDIDATES), reranked(config)
    for query_id, hits in run.items():
        assert {hit.doc_id: hit.score for hit in hits} == pytest.approx(expected[query_id], abs=1e-6)
        assert [hit.score for hit in hits] == sorted(expected[query_id].values(), reverse=True) or np.allclose(
            [hit.score for hit in hits], sorted(expected[query_id].values(), reverse=True), atol=1e-6
        )


def test_candidates_beyond_the_depth_keep_their_order_behind_the_others(config: rerank.Config, tiny: Tiny):
    expected, run = own_scores(tiny, CANDIDATES), reranked(replace(config, depth=3))
    for query_id, hits in run.items():
        old = [hit.doc_id for hit in CANDIDATES[query_id]]
        head = sorted(old[:3], key=lambda doc_id, scores=expected[query_id]: -scores[doc_id])
        assert [hit.doc_id for hit in hits] == head + old[3:]


@pytest.mark.parametrize("pairs_at_once", [1, 5, 1000])
def test_windows_change_nothing(
    config: rerank.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs_at_once: int
):
    whole = reranked(config)
    monkeypatch.setattr(rerank, "PAIRS_AT_ONCE", pairs_at_once)
    parts = reranked(replace(config, out=tmp_path / "parts.trec"))
    assert list(parts) == list(whole)
    for query_id in whole:
        assert [h.doc_id for h in parts[query_id]] == [h.doc_id for h in whole[query_id]]


def test_windows_hold_whole_queries_and_a_bounded_number_of_pairs():
    run = {f"q{i}": [Hit(str(j), -float(j)) for j in range(1000)] for i in range(30)}
    parts = windows(run, depth=2000)
    assert {query_id: hits for part in parts for query_id, hits in part.items()} == run
    assert [sum(len(hits) for hits in part.values()) for part in parts] == [PAIRS_AT_ONCE, 10_000]
    assert len(windows(run, depth=10)) == 1
    assert windows({}, depth=10) == [{}]


def test_pairs_are_cut_to_the_length_asked_for(config: rerank.Config, tmp_path: Path):
    long, short = reranked(config), reranked(replace(config, max_length=14, out=tmp_path / "short.trec"))
    assert [h.score for h in long["q0"]] != [h.score for h in short["q0"]]
    with pytest.raises(UserError, match=r"query 'q\d'.*raise --max-length"):
        rerank.run(replace(config, max_length=8, out=tmp_path / "none.trec"))
    assert not (tmp_path / "none.trec").exists()


def test_the_time_of_all_stages_adds_up(config: rerank.Config, tmp_path: Path):
    rerank.run(config)
    alone = read_manifest(config.out)
    assert alone is not None
    assert alone["results"]["num_pairs"] == 32
    assert 0 < alone["results"]["ms_per_query"] < 10_000
    first = replace(config, out=tmp_path / "timed.trec")
    job = start_job(first, stage="search", inputs={})
    job.out.write_bytes(config.run.read_bytes())
    job.finish(ms_per_query=10_000.0)
    rerank.run(replace(config, run=job.out, out=tmp_path / "behind.trec"))
    behind = read_manifest(tmp_path / "behind.trec")
    assert behind is not None
    assert behind["results"]["ms_per_query"] > 10_000


def test_a_run_of_other_queries_or_documents_is_refused(config: rerank.Config):
    write_run(config.run, CANDIDATES | {"q99": [Hit("d1", 1.0)]})
    with pytest.raises(UserError, match=r"run.trec: 1 of 5 queries are not in .*collection test, such as 'q99'"):
        rerank.run(config)
    write_run(config.run, {"q0": [Hit("d1", 2.0), Hit("elsewhere", 1.0)]})
    with pytest.raises(UserError, match="elsewhere"):
        rerank.run(replace(config, overwrite=True))
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "--depth is 0"),
        ({"run": Path("nowhere.trec")}, "nowhere.trec: no such file"),
        ({"model": "./nowhere"}, "cannot load a model"),
    ],
)
def test_settings_that_make_no_sense_are_refused(config: rerank.Config, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        rerank.run(replace(config, **change))
    assert not config.out.exists()


def test_a_backbone_without_a_head_is_no_reranker(config: rerank.Config, tiny: Tiny):
    with pytest.raises(UserError, match="not a trained reranker"):
        rerank.run(replace(config, model=str(tiny.llama), contract="rankllama"))
