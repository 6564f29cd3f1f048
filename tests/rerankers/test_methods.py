from collections.abc import Iterator
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import DOCUMENTS, QUERIES, Tiny
from toy_reranker import Toy, toy

from shortlist import Pipeline, index, rerank
from shortlist.cli import main
from shortlist.config import keyword_types
from shortlist.data.formats import write_corpus, write_queries
from shortlist.data.manifest import read_manifest
from shortlist.data.runs import read_run, write_run
from shortlist.data.scores import ScoreLog
from shortlist.errors import UserError
from shortlist.records import Hit, Query, Run
from shortlist.rerankers import Candidates, ListsRanker, Ranker, Scored
from shortlist.rerankers.kinds import RERANKERS, prepare
from shortlist.rerankers.lists import score_lists
from shortlist.rerankers.reranker import Reranker
from shortlist.settings.rerank import READING

RUN: Run = {
    query.query_id: [Hit(document.doc_id, 10.0 - rank) for rank, document in enumerate(DOCUMENTS[place : place + 4])]
    for place, query in enumerate(QUERIES[:6])
}
TURNED = {query_id: [*[hit.doc_id for hit in hits[-2::-1]], hits[-1].doc_id] for query_id, hits in RUN.items()}
"""What the toy makes of it: all but the last, from the last to the first."""


@pytest.fixture
def command(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setitem(RERANKERS, "toy", toy)
    write_run(tmp_path / "run.trec", RUN)
    paths = ["--run", str(tmp_path / "run.trec"), "--collection", str(tiny.collection)]
    return [
        "rerank",
        "--method",
        "toy",
        "--model",
        str(tmp_path / "asked"),
        *paths,
        "--out",
        str(tmp_path / "out.trec"),
    ]


def order(path: Path) -> dict[str, list[str]]:
    return {query_id: [hit.doc_id for hit in hits] for query_id, hits in read_run(path).items()}


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_reranker_of_whole_lists_goes_on_where_it_was_interrupted_and_asks_nothing_twice(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
):
    monkeypatch.setattr(rerank, "PAIRS_AT_ONCE", 4)  # a list in a chunk
    append, appended = ScoreLog.append_list, []

    def until_interrupted(self: ScoreLog, *arguments: Any) -> None:
        append(self, *arguments)
        appended.append(arguments)
        if len(appended) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ScoreLog, "append_list", until_interrupted)
        assert main([*command, "--workers", workers]) == 130
    before = asked(tmp_path)
    assert main(command) == 0
    assert order(tmp_path / "out.trec") == TURNED
    known = {query_id for query_id, _, _ in appended}
    assert [line.split()[0] for line in asked(tmp_path)[len(before) :]] == [q for q in RUN if q not in known]
    manifest = read_manifest(tmp_path / "out.trec")
    assert manifest is not None
    assert (manifest["complete"], manifest["results"]["num_pairs"], manifest["results"]["not_reached"]) == (True, 18, 0)


def test_an_answer_is_used_again_for_the_same_list_only(command: list[str], tmp_path: Path):
    assert main(command) == 0
    run = RUN | {"q0": RUN["q0"][:3], "q1": [Hit(hit.doc_id, -hit.score) for hit in RUN["q1"]][::-1]}
    write_run(tmp_path / "run.trec", run)
    assert main([*command, "--overwrite"]) == 0
    assert [line.split()[0] for line in asked(tmp_path)[6:]] == ["q0", "q1"]  # shorter, and in another order
    assert main([*command, "--overwrite", "--depth", "2"]) == 0
    assert len(asked(tmp_path)) == 6 + 2 + 6


def test_a_log_of_one_method_is_not_another_ones(command: list[str], tiny: Tiny, tmp_path: Path):
    assert main(command) == 0
    (tmp_path / "out.trec").unlink()
    (tmp_path / "out.trec.manifest.json").unlink()
    with pytest.raises(UserError, match=r"out.trec.scores: holds scores made with another contract, method, model"):
        rerank.run(
            rerank.Config(
                model=str(tiny.reranker),
                run=tmp_path / "run.trec",
                collection=str(tiny.collection),
                out=tmp_path / "out.trec",
            )
        )


def test_a_budget_of_pairs_is_spent_on_whole_lists(command: list[str], tmp_path: Path):
    assert main([*command, "--max-pairs", "11"]) == 0
    assert [line.split()[0] for line in asked(tmp_path)] == ["q0", "q1"]
    old = {query_id: [hit.doc_id for hit in hits] for query_id, hits in RUN.items()}
    assert order(tmp_path / "out.trec") == old | {query_id: TURNED[query_id] for query_id in ("q0", "q1")}
    assert main([*command, "--budget-seconds", "0"]) == 0
    assert main(command) == 0
    assert order(tmp_path / "out.trec") == TURNED
    assert len(asked(tmp_path)) == 6


def test_names_of_methods_and_settings_are_checked(command: list[str], capsys: pytest.CaptureFixture[str]):
    assert main([*command, "--segments", "maxp"]) == 1
    assert "unknown setting of the method 'toy' 'segments'" in capsys.readouterr().err
    assert main([*command, "--method", "tyo"]) == 1
    assert "unknown method 'tyo': perhaps 'toy'" in capsys.readouterr().err
    with pytest.raises(UserError, match="--method pointwise needs a --model"):
        prepare("pointwise", {})


def test_the_commands_defaults_are_the_methods():
    flags = {field.name: field.default for field in fields(rerank.Config)}
    for method in RERANKERS.values():
        for name, setting in signature(method).parameters.items():
            if name in READING:  # None leaves the choice to the method
                assert flags[name] in (None, setting.default), f"{method.__name__}: {name}"


def test_the_command_has_every_setting_of_every_method():
    settings = {name for method in RERANKERS.values() for name in keyword_types(method)}
    assert settings - set(READING) == {"adjust", "device", "packed"}


def test_lists_are_scored_one_after_another_where_a_reranker_knows_no_better():
    lists = [Candidates(Query("q", "text"), DOCUMENTS[:count]) for count in (3, 1, 2)]
    assert isinstance(Toy(None), Ranker)
    assert not isinstance(Toy(None), ListsRanker)
    parts = list(score_lists(Toy(None), lists))
    assert [part.numbers.tolist() for part in parts] == [[0, 1, 2], [3], [4, 5]]
    np.testing.assert_array_equal(np.concatenate([part.scores for part in parts]), [0, 1, np.nan, np.nan, 0, np.nan])


def test_a_pointwise_reranker_gives_each_document_once_and_the_same_score_in_any_list(tiny: Tiny):
    reranker = Reranker.load(str(tiny.reranker), token_budget=64)
    lists = [Candidates(query, DOCUMENTS[: place + 1]) for place, query in enumerate(QUERIES[:5])]
    scores = np.full(15, np.nan, dtype=np.float32)
    for part in score_lists(reranker, lists):
        assert np.isnan(scores[part.numbers]).all()
        assert part.num_tokens > 0
        scores[part.numbers] = part.scores
    alone = np.concatenate([reranker.score(query, documents) for query, documents in lists])
    np.testing.assert_allclose(scores, alone, atol=1e-6)


def test_half_a_list_is_refused(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def halves(_: Any, lists: list[Candidates]) -> Iterator[Scored]:
        yield Scored(np.arange(2), np.zeros(2, dtype=np.float32), 0)

    monkeypatch.setattr(Toy, "score_lists", halves, raising=False)
    with pytest.raises(ValueError, match="'q0': a reranker of whole lists gave a part of one"):
        main(command)


def test_empty_documents_are_no_part_of_a_list(tiny: Tiny, command: list[str], tmp_path: Path):
    texts = [document._replace(text="", title="") if i == 1 else document for i, document in enumerate(DOCUMENTS)]
    write_corpus(tmp_path / "c" / "corpus.jsonl", texts)
    write_queries(tmp_path / "c" / "queries.jsonl", QUERIES)
    command = [*command, "--collection", str(tmp_path / "c"), "--split", "all", "--skip-missing"]
    assert main(command) == 0
    assert [len(line.split()) - 1 for line in asked(tmp_path)] == [3, 3, 4, 4, 4, 4]
    manifest = read_manifest(tmp_path / "out.trec")
    assert manifest is not None
    assert (manifest["complete"], manifest["results"]["not_reached"]) == (True, 0)
    assert main([*command, "--overwrite", "--ties", "rank"]) == 0
    assert len(asked(tmp_path)) == 6


def test_a_reranker_of_whole_lists_is_a_step_of_a_pipeline(tiny: Tiny, command: list[str], tmp_path: Path):
    index.run(index.Config(collection=str(tiny.collection), out=tmp_path / "words"))
    steps = {"words": {"find": "bm25", "index": str(tmp_path / "words")}, "turned": {"rank": "toy", "depth": 3}}
    pipeline = Pipeline.load(str(tiny.collection), pipeline={"steps": steps})
    found = [result.document.doc_id for result in pipeline.search(QUERIES[0].text, k=5, rerank=False)]
    turned = [result.document.doc_id for result in pipeline.search(QUERIES[0].text, k=5)]
    assert len(found) > 3
    assert turned == [found[1], found[0], *found[2:]]  # it leaves out the last of the three
