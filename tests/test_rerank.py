import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from named import load_reranker
from processes import kill_when
from tiny import DOCUMENTS, QUERIES, Tiny

from shortlist import rerank
from shortlist.cli import main
from shortlist.data.formats import write_corpus, write_queries
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.manifest import read_manifest
from shortlist.data.runs import read_run, write_run
from shortlist.data.scores import ScoreLog
from shortlist.errors import UserError
from shortlist.models.run import score_pairs
from shortlist.records import Document, Hit, Query, Run
from shortlist.rerankers import Candidates, Scored
from shortlist.rerankers.reranker import Reranker
from shortlist.text.inputs import Inputs
from shortlist.text.segments import pair_segments

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
def test_how_many_pairs_are_held_at_once_changes_nothing(
    config: rerank.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs_at_once: int
):
    whole = reranked(config)
    monkeypatch.setattr(rerank, "PAIRS_AT_ONCE", pairs_at_once)
    parts = reranked(replace(config, out=tmp_path / "parts.trec"))
    assert list(parts) == list(whole)
    for query_id in whole:
        assert [h.doc_id for h in parts[query_id]] == [h.doc_id for h in whole[query_id]]


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
    job = start_job(first, JobSpec("search", {}))
    job.out.write_bytes(config.run.read_bytes())
    job.finish(ms_per_query=10_000.0)
    rerank.run(replace(config, run=job.out, out=tmp_path / "behind.trec"))
    behind = read_manifest(tmp_path / "behind.trec")
    assert behind is not None
    assert behind["results"]["ms_per_query"] > 10_000


def test_a_run_of_other_queries_or_documents_is_refused(config: rerank.Config):
    write_run(config.run, CANDIDATES | {"q99": [Hit("d1", 1.0)]})
    with pytest.raises(UserError, match=r"run.trec: 1 of 5 queries are not in .*collection test: 'q99'; check"):
        rerank.run(config)
    write_run(config.run, {"q0": [Hit("d1", 2.0), Hit("elsewhere", 1.0), Hit("lost", 0.5)]})
    with pytest.raises(UserError, match=r"2 of 3 documents are not in .*collection: 'elsewhere', 'lost'; check"):
        rerank.run(config)
    assert not config.out.exists()


def test_what_the_collection_lacks_keeps_its_place_if_asked(
    config: rerank.Config, tiny: Tiny, capsys: pytest.CaptureFixture[str]
):
    run = CANDIDATES | {"q99": [Hit("d1", 2.0), Hit("d0", 1.0)]}
    run["q0"] = [Hit("lost", 99.0), *run["q0"], Hit("elsewhere", 0.5)]
    write_run(config.run, run)
    found = reranked(replace(config, skip_missing=True))
    said = capsys.readouterr().err
    assert "1 of 5 queries are not in" in said
    assert "'elsewhere', 'lost'; left where they are" in said
    assert [hit.doc_id for hit in found["q99"]] == ["d1", "d0"]
    best = sorted(own_scores(tiny, CANDIDATES)["q0"].items(), key=lambda pair: -pair[1])
    assert [hit.doc_id for hit in found["q0"]] == [doc_id for doc_id, _ in best] + ["lost", "elsewhere"]


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


def long_run(folder: Path, num_queries: int = 40, depth: int = 25) -> tuple[str, Path]:
    """A collection, and a run with enough candidates that something can happen in the middle of them."""
    texts = [Document(f"x{i}", f"{DOCUMENTS[i % 12].text} {DOCUMENTS[i % 7].text}") for i in range(100)]
    write_corpus(folder / "c" / "corpus.jsonl", texts)
    queries = [Query(f"q{i}", QUERIES[i % 12].text + " really" * (i // 12)) for i in range(num_queries)]
    write_queries(folder / "c" / "queries.jsonl", queries)
    rng = random.Random(0)
    run = {q.query_id: [Hit(d.doc_id, float(-i)) for i, d in enumerate(rng.sample(texts, depth))] for q in queries}
    write_run(folder / "long.trec", run)
    return str(folder / "c"), folder / "long.trec"


def logged(out: Path) -> list[str]:
    """The pairs in the log of scores."""
    path = rerank.log_path(out)
    return [line.rpartition("\t")[0] for line in path.read_text().split("\n")[1:-1]] if path.exists() else []


@pytest.mark.slow
def test_a_killed_command_goes_on_without_scoring_a_pair_twice(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    collection, run = long_run(tmp_path)

    def command(out: str) -> list[str]:
        paths = ["--model", str(tiny.reranker), "--run", str(run), "--collection", collection, "--split", "all"]
        return ["rerank", *paths, "--token-budget", "100", "--out", str(tmp_path / out)]

    kill_when(lambda: len(logged(tmp_path / "broken.trec")) >= 30, command("broken.trec"))
    assert not (tmp_path / "broken.trec").exists()
    before = logged(tmp_path / "broken.trec")
    assert 30 <= len(before) < 1000
    assert main(command("broken.trec")) == 0
    after = logged(tmp_path / "broken.trec")
    assert after[: len(before) - 1] == before[:-1]  # the last one may have been cut off
    assert len(set(after)) == len(after) == 1000
    assert main(command("whole.trec")) == 0
    assert (tmp_path / "broken.trec").read_bytes() == (tmp_path / "whole.trec").read_bytes()


def test_the_first_line_of_a_log_names_settings_as_it_always_did_so_that_old_ones_go_on(config: rerank.Config):
    rerank.run(config)
    first = json.loads(rerank.log_path(config.out).read_text().partition("\n")[0])
    assert first.keys() == {"format", "model", "contract", "collection", "precision"}
    assert (first["format"], first["precision"]) == (2, "fp32")
    rerank.run(replace(config, segments="maxp", window=40, stride=8, overwrite=True))
    second = json.loads(rerank.log_path(config.out).read_text().partition("\n")[0])
    assert second.keys() == first.keys() | {"segments", "window", "stride"}


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 7, 30])
def test_an_interruption_in_any_chunk_changes_no_byte(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
):
    monkeypatch.setattr(rerank, "PAIRS_AT_ONCE", 64)
    collection, run = long_run(tmp_path, num_queries=8)
    config = rerank.Config(
        model=str(tiny.reranker),
        run=run,
        collection=collection,
        split="all",
        out=tmp_path / "whole.trec",
        token_budget=100,
    )
    rerank.run(config)
    chunks: list[list[int]] = []
    append = ScoreLog.append

    def until_interrupted(self: ScoreLog, pairs: Any, scores: Any) -> None:
        chunks.append(pairs)
        if len(chunks) > after:
            raise KeyboardInterrupt
        append(self, pairs, scores)

    broken = replace(config, out=tmp_path / "broken.trec")
    with monkeypatch.context() as patch:
        patch.setattr(ScoreLog, "append", until_interrupted)
        with pytest.raises(KeyboardInterrupt):
            rerank.run(broken)
    rerank.run(broken)
    assert logged(broken.out) == logged(config.out)
    assert rerank.log_path(broken.out).read_bytes() == rerank.log_path(config.out).read_bytes()
    assert broken.out.read_bytes() == config.out.read_bytes()


def test_a_score_that_is_not_finite_is_named(config: rerank.Config, monkeypatch: pytest.MonkeyPatch):
    score_lists = Reranker.score_lists
    monkeypatch.setattr(
        Reranker, "score_lists", lambda *a: (part._replace(scores=part.scores * np.nan) for part in score_lists(*a))
    )
    with pytest.raises(UserError, match=r"query 'q\d', document 'd\d+': the model gives no finite score"):
        rerank.run(config)
    assert logged(config.out) == []


def test_what_is_done_is_not_done_again_and_another_model_is_refused(
    config: rerank.Config, tiny: Tiny, capsys: pytest.CaptureFixture[str]
):
    rerank.run(config)
    before = config.out.stat().st_mtime_ns
    rerank.run(replace(config, workers=2, token_budget=7))
    assert "already done" in capsys.readouterr().err
    assert config.out.stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"holds another job \(contract: None there, rankllama-v1 now"):
        rerank.run(replace(config, contract="rankllama-v1"))
    with pytest.raises(UserError, match=r"holds another job .*max_length: None there, 20 now"):
        rerank.run(replace(config, max_length=20))


def test_an_interrupted_job_of_another_model_is_refused_before_there_is_a_run(
    config: rerank.Config, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rerank, "write_run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rerank.run(config)
    assert len(logged(config.out)) == 32
    assert not config.out.exists()
    with pytest.raises(UserError, match=r"reranked.trec.scores: holds scores made with another contract; choose"):
        rerank.run(replace(config, contract="rankllama-v1"))
    rerank.run(replace(config, contract="rankllama-v1", overwrite=True))
    assert len(logged(config.out)) == 32


def test_a_greater_depth_needs_no_score_again(config: rerank.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rerank.run(replace(config, depth=3))
    scored: list[Document] = []
    score_lists = Reranker.score_lists

    def counted(self: Reranker, lists: list[Candidates]) -> Iterator[Scored]:
        scored.extend(document for _, documents in lists for document in documents)
        return score_lists(self, lists)

    monkeypatch.setattr(Reranker, "score_lists", counted)
    rerank.run(replace(config, depth=8, overwrite=True))
    assert len(scored) == 4 * 5
    whole = reranked(replace(config, out=tmp_path / "whole.trec"))
    again = read_run(config.out)
    assert {q: [h.doc_id for h in hits] for q, hits in again.items()} == {
        q: [h.doc_id for h in hits] for q, hits in whole.items()
    }


@pytest.mark.slow
def test_several_processes_write_the_same_bytes(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    collection, run = long_run(tmp_path, num_queries=8)
    monkeypatch.setattr(rerank, "PAIRS_AT_ONCE", 64)
    config = rerank.Config(
        model=str(tiny.reranker), run=run, collection=collection, split="all", out=tmp_path / "one.trec"
    )
    rerank.run(config)
    rerank.run(replace(config, out=tmp_path / "two.trec", workers=2))
    assert sorted(logged(tmp_path / "two.trec")) == sorted(logged(tmp_path / "one.trec"))
    assert (tmp_path / "two.trec").read_bytes() == (tmp_path / "one.trec").read_bytes()


def test_the_best_ranked_pairs_are_read_first_and_the_rest_is_told(
    config: rerank.Config, tiny: Tiny, capsys: pytest.CaptureFixture[str]
):
    expected = own_scores(tiny, CANDIDATES)
    run = reranked(replace(config, max_pairs=10))  # the first two of four queries, and the third of two
    assert "22 of 32 pairs were not reached and keep their places" in capsys.readouterr().err
    for query_id, count in zip(CANDIDATES, (3, 3, 2, 2), strict=True):
        old = [hit.doc_id for hit in CANDIDATES[query_id]]
        head = sorted(old[:count], key=lambda doc_id, scores=expected[query_id]: -scores[doc_id])
        assert [hit.doc_id for hit in run[query_id]] == head + old[count:]
    manifest = read_manifest(config.out)
    assert manifest is not None
    assert (manifest["complete"], manifest["results"]["num_pairs"], manifest["results"]["not_reached"]) == (
        False,
        10,
        22,
    )
    again = config.out.read_bytes()
    rerank.run(replace(config, max_pairs=10))
    assert config.out.read_bytes() == again
    rerank.run(config)
    assert len(logged(config.out)) == 32
    for query_id, hits in read_run(config.out).items():
        assert [hit.doc_id for hit in hits] == sorted(expected[query_id], key=lambda d, s=expected[query_id]: -s[d])


def test_time_that_runs_out_leaves_a_valid_run_that_goes_on(config: rerank.Config, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rerank, "BEST_FIRST", 4)
    rerank.run(replace(config, budget_seconds=0.0))
    first = read_run(config.out)
    assert len(logged(config.out)) == 4  # a chunk was under way
    assert {line.partition("\t")[0] for line in logged(config.out)} == {"q0", "q1", "q2", "q3"}
    assert {q: sorted(h.doc_id for h in hits) for q, hits in first.items()} == {
        q: sorted(h.doc_id for h in hits) for q, hits in CANDIDATES.items()
    }
    rerank.run(replace(config, budget_seconds=0.0))
    assert len(logged(config.out)) == 8
    rerank.run(replace(config, budget_seconds=60.0))
    manifest = read_manifest(config.out)
    assert manifest is not None
    assert (manifest["complete"], manifest["results"]["not_reached"]) == (True, 0)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_narrow_precision_tells_how_far_it_agrees(
    config: rerank.Config, precision: Any, capsys: pytest.CaptureFixture[str]
):
    rerank.run(replace(config, precision=precision))
    said = capsys.readouterr().err
    assert re.search(
        r"agreement with fp32 on 32 pairs of 4 queries: Kendall's tau 0\.\d+, nDCG@10 0\.\d+ instead", said
    )
    manifest = read_manifest(config.out)
    assert manifest is not None
    assert manifest["results"]["agreement"] in said


def test_agreement_needs_no_judgements(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    collection, run = long_run(tmp_path, num_queries=3)
    out = tmp_path / "out.trec"
    settings = {"model": str(tiny.reranker), "run": run, "collection": collection, "split": "all", "out": out}
    rerank.run(rerank.Config(**settings, precision="bf16"))
    assert re.search(r"75 pairs of 3 queries: Kendall's tau \d\.\d+\.\n", capsys.readouterr().err)


@pytest.mark.parametrize("segments", ["firstp", "maxp", "avgp"])
def test_one_segment_for_every_document_equals_no_segmentation(config: rerank.Config, tmp_path: Path, segments: Any):
    rerank.run(config)
    stride = None if segments == "firstp" else 100
    rerank.run(replace(config, segments=segments, window=196, stride=stride, out=tmp_path / "segments.trec"))
    assert (tmp_path / "segments.trec").read_bytes() == config.out.read_bytes()


def test_segments_reach_behind_the_length_of_a_whole_document(config: rerank.Config, tiny: Tiny, tmp_path: Path):
    model = load_reranker(str(tiny.reranker)).eval()
    model.inputs = Inputs(model.inputs.form.with_lengths(document=20), model.inputs.tokenizer)
    queries = {query.query_id: query for query in QUERIES}
    pairs = [(queries["q0"], document) for document in DOCUMENTS]
    parts = pair_segments(model.inputs, pairs, stride=2)
    assert max(map(len, parts)) > 1
    write_run(config.run, {"q0": [Hit(document.doc_id, float(-i)) for i, document in enumerate(DOCUMENTS)]})
    for segments, combine in (("maxp", np.max), ("avgp", np.mean)):
        out = tmp_path / f"{segments}.trec"
        run = reranked(replace(config, segments=segments, window=20, stride=2, out=out))  # type: ignore[arg-type]
        expected = {d.doc_id: float(combine(score_pairs(model, p))) for d, p in zip(DOCUMENTS, parts, strict=True)}
        assert {hit.doc_id: hit.score for hit in run["q0"]} == pytest.approx(expected, abs=1e-6)


def test_empty_documents_are_refused_or_left_where_they_are(tiny: Tiny, tmp_path: Path):
    collection, run = long_run(tmp_path, num_queries=2, depth=5)
    texts = [Document(f"x{i}", "" if i % 2 else "the apple") for i in range(100)]
    write_corpus(tmp_path / "c" / "corpus.jsonl", texts)
    settings = {"model": str(tiny.reranker), "run": run, "collection": collection, "split": "all"}
    with pytest.raises(UserError, match=r"document 'x\d+' has neither title nor text; .*--skip-missing"):
        rerank.run(rerank.Config(**settings, out=tmp_path / "out.trec"))
    rerank.run(rerank.Config(**settings, out=tmp_path / "out.trec", skip_missing=True))
    for hits in read_run(tmp_path / "out.trec").values():
        odd = [int(hit.doc_id[1:]) % 2 for hit in hits]
        assert odd == sorted(odd)
        assert len(odd) == 5


def test_a_query_longer_than_a_pair_is_refused_before_anything_is_scored(
    tiny: Tiny, config: rerank.Config, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rerank, "PAIRS_AT_ONCE", 8)
    with pytest.raises(UserError, match=r"query 'q\d'.*raise --max-length"):
        rerank.run(replace(config, max_length=9))
    assert logged(config.out) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q0 d1\n", r"run.trec:1: found 2 columns; expected 6"),
        ("q0 Q0 d1 1 2.0 t\nq0 Q0 d1 2 1.0 t\n", r"run.trec:2: document 'd1' occurs twice for query 'q0'"),
        ("q0 Q0 d1 1 nan t\n", r"run.trec:1: score is 'nan'"),
    ],
)
def test_runs_that_are_none_are_refused(config: rerank.Config, text: str, message: str):
    config.run.write_text(text)
    with pytest.raises(UserError, match=message):
        rerank.run(config)
    assert not config.out.exists()


def test_queries_that_leave_no_room_are_refused_cut_or_skipped(
    config: rerank.Config, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "collection"
    write_corpus(folder / "corpus.jsonl", DOCUMENTS)
    long = QUERIES[0]._replace(text=QUERIES[0].text + " really" * 600)
    write_queries(folder / "queries.jsonl", [long, *QUERIES[1:]])
    config = replace(config, collection=str(folder), split="all", max_length=24)
    with pytest.raises(UserError, match=r"query 'q0': takes 6\d\d tokens .* 24; .* --long-queries cut"):
        rerank.run(config)
    assert not rerank.log_path(config.out).exists()
    skipped = reranked(replace(config, long_queries="skip"))
    assert [hit.doc_id for hit in skipped["q0"]] == [hit.doc_id for hit in CANDIDATES["q0"]]
    assert "1 queries are too long and left as they were; query 'q0': takes" in capsys.readouterr().err
    cut = reranked(replace(config, long_queries="cut", out=tmp_path / "cut.trec"))
    assert cut["q1"] == skipped["q1"]
    assert [hit.doc_id for hit in cut["q0"]] != [hit.doc_id for hit in CANDIDATES["q0"]]
    inputs = Reranker.load(str(tiny.reranker), max_length=24).inputs
    [shorter] = inputs.cut_queries([long, QUERIES[1]]).values()
    assert long.text.startswith(shorter.text)
    assert len(inputs.pair_ids([(shorter, DOCUMENTS[0]._replace(text=""))])[0]) <= 14


def test_candidates_of_a_query_without_a_text_keep_their_places_if_asked(config: rerank.Config, tmp_path: Path):
    folder = tmp_path / "collection"
    write_corpus(folder / "corpus.jsonl", DOCUMENTS)
    write_queries(folder / "queries.jsonl", [QUERIES[0]._replace(text=" "), *QUERIES[1:]])
    config = replace(config, collection=str(folder), split="all")
    with pytest.raises(UserError, match="query 'q0' has no text"):
        rerank.run(config)
    run = reranked(replace(config, skip_missing=True))
    assert [hit.doc_id for hit in run["q0"]] == [hit.doc_id for hit in CANDIDATES["q0"]]
    assert [hit.doc_id for hit in run["q1"]] != [hit.doc_id for hit in CANDIDATES["q1"]]
