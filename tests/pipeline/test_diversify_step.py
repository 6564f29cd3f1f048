from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import Tiny

from shortlist import diversify
from shortlist.data.allowed import Allowed
from shortlist.data.formats import read_queries, write_queries
from shortlist.data.runs import read_run, write_run
from shortlist.data.stores.vectors import VectorWriter
from shortlist.errors import UserError
from shortlist.index.opening import open_index
from shortlist.pipeline import Pipeline
from shortlist.pipeline.diversifiers import SubQueries, varied_by_mmr
from shortlist.pipeline.feedback import SearchedAgain
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.opening import open_steps
from shortlist.pipeline.simulation import Simulation
from shortlist.pipeline.spec import Description, parse_description, written
from shortlist.pipeline.steps import STEPS, Found, Step
from shortlist.records import Hit, Query, Run

RUN = {"q1": [Hit("a", 9.0), Hit("twin", 8.5), Hit("b", 8.0), Hit("c", 5.0)], "q2": []}


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    rows = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    VectorWriter(tmp_path / "vectors", 3).write_shard(0, ["a", "twin", "b", "c"], rows)
    return tmp_path / "vectors"


def described(**step) -> Description:
    steps = {"words": {"find": "index", "index": "index"}, "varied": step}
    return parse_description({"collection": "c", "steps": steps}, where="here")


def found(most: int, depth: int | None = None, **step) -> Found:
    [_, part] = described(**step).steps
    stage = STEPS["diversify"].open(STEPS["diversify"].methods()[part.method], Opener(), part.settings)
    opened = Step("varied", STEPS["diversify"], stage, ("words",), part.depth or depth)
    queries = [Query(name, name) for name in ("q1", "q2")]
    return STEPS["diversify"].run(opened, queries, {"words": RUN}, lambda doc_ids: {}, most)


def order(result: Found) -> str:
    return " ".join(hit.doc_id for hit in result.run["q1"])


def test_the_step_chooses_as_many_as_are_wanted(vectors: Path):
    how = {"diversify": "mmr", "vectors": str(vectors), "lambda": 0.5}
    result = found(3, **how)
    assert (order(result), result.num_placed, result.run["q2"]) == ("a b c twin", {"q1": 3, "q2": 0}, [])
    assert [hit.score for hit in result.run["q1"]] == [4, 3, 2, 1]
    assert order(found(4, **how, k=2)) == "a b twin c"
    assert order(found(4, **how, depth=3)) == "a b twin c"
    assert order(found(4, **how | {"lambda": 1})) == "a twin b c"


@pytest.mark.parametrize("cut", [{"cut": "ratio", "at": 0.5}, {"cut": "score", "at": 2}, {"cut": "rule"}])
def test_what_only_counts_down_is_cut_by_rank_alone(cut: dict, vectors: Path, tmp_path: Path):
    (tmp_path / "rule.json").write_text('{"by": "ratio", "at": 0.5}')
    cut = cut | ({"rule": str(tmp_path / "rule.json")} if cut["cut"] == "rule" else {})
    words, varied = {"find": "index", "index": "index"}, {"diversify": "mmr", "vectors": str(vectors)}
    few = {"cut": "rank", "at": 9}
    with pytest.raises(UserError, match=rf"steps.short: `cut: {cut['cut']}` looks at scores.* of varied .*only count"):
        parse_description({"steps": {"words": words, "varied": varied, "few": few, "short": cut}}, where="here")
    for steps in ({"varied": varied, "few": few}, {"short": cut, "varied": varied}):
        parse_description({"steps": {"words": words} | steps}, where="here")
    (tmp_path / "rule.json").write_text('{"by": "rank", "at": 5}')
    by_rank = {"cut": "rule", "rule": str(tmp_path / "rule.json")}
    parse_description({"steps": {"words": words, "varied": varied, "short": by_rank}}, where="here")


def test_a_description_is_written_as_it_was_read(vectors: Path):
    one = described(diversify="mmr", vectors=str(vectors), k=5, **{"lambda": 0.3})
    assert parse_description(written(one), where="here") == one
    assert written(one)["steps"]["varied"]["lambda"] == 0.3


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"diversify": "mmr"}, "vectors is missing; `diversify: mmr` takes it"),
        ({"diversify": "mmr", "vectors": "v", "lamda": 0.5}, "unknown setting of `diversify: mmr` 'lamda'"),
        ({"diversify": "mmr", "vectors": "v", "lambda": "much"}, "expected a number"),
    ],
)
def test_what_is_no_such_step_is_refused(step: dict, words: str):
    with pytest.raises(UserError, match=words):
        described(**step)


@pytest.mark.parametrize("more", [{"lambda": 2}, {"k": 0}])
def test_numbers_out_of_range_are_refused(vectors: Path, more: dict):
    with pytest.raises(UserError, match="expected 0 to 1, and 1 or more documents"):
        found(3, diversify="mmr", vectors=str(vectors), **more)


def test_a_list_without_any_vector_stays_as_it_is_which_is_said_once(
    vectors: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    new = [Hit("new", 3.0), Hit("newer", 2.0)]
    monkeypatch.setitem(RUN, "q1", new)
    choose = varied_by_mmr(Opener(), vectors=vectors)
    queries = [Query(name, name) for name in ("q1", "q2")]
    for lists in ([new, []], [RUN["q1"], [Hit("a", 1.0)]]):
        assert choose(queries, lists, 3, lambda queries: {})[0] == []
    assert capsys.readouterr().err.count("no document found for query 'q1' has a vector") == 1


def test_vectors_of_another_collection_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    VectorWriter(tmp_path / "others", 2).write_shard(0, ["x"], np.ones((1, 2), dtype=np.float32))
    monkeypatch.setitem(RUN, "q2", [Hit("b", 1.0)])
    with pytest.raises(UserError, match="has no vector of any document of the step before"):
        found(3, diversify="mmr", vectors=str(tmp_path / "others"))
    steps = {"words": {"find": "bm25", "index": str(tmp_path)}, "varied": {"diversify": "mmr", "vectors": "nowhere"}}
    description = parse_description({"steps": steps}, where="here")
    with pytest.raises(UserError, match="no such file or folder; step 'varied' reads it"):
        open_steps(description)


@pytest.fixture
def sub_queries(tmp_path: Path) -> Path:
    """Sub-queries of two tiny queries, one of which stands for itself."""
    folder = tmp_path / "aspects"
    folder.mkdir()
    texts = {"q0#0": "how do cats sleep", "q0#a": "dogs and birds", "q0#b": "the weather", "q1#x": "ships", "odd": "e"}
    write_queries(folder / "queries.jsonl", [Query(name, text) for name, text in texts.items()])
    return folder


def test_sub_queries_are_found_by_the_text_of_their_query_before_its_id(sub_queries: Path):
    aspects = SubQueries(sub_queries)
    names = [query.query_id for query in aspects.of(Query("0", "how do cats sleep"))]
    assert names == ["q0#0", "q0#a", "q0#b"]
    assert aspects.of(Query("q0", "how do cats sleep")) == aspects.of(Query("0", "how do cats sleep"))
    assert aspects.of(Query("q0", "another text of a query")) == []
    assert [query.query_id for query in aspects.of(Query("q1", "any text"))] == ["q1#x"]
    assert aspects.of(Query("7", "any text")) == []


SUB_QUERIES = {"q0#0": "which colour has the apple", "q0#a": "the boat and the lamp", "q0#b": "zebra", "q1#x": "kettle"}
COVERAGE = {"diversify": "coverage", "lambda": 0.3, "alpha": 0.8, "k": 4, "depth": 8}


@pytest.fixture
def covering(tiny: Tiny, built: Path, tmp_path: Path) -> dict:
    """A pipeline that covers sub-queries of two of the queries; one of them finds nothing."""
    write_queries(tmp_path / "aspects.jsonl", [Query(name, text) for name, text in SUB_QUERIES.items()])
    words = {"find": "bm25", "index": str(built / "words"), "depth": 8}
    steps = {"words": words, "varied": COVERAGE | {"aspects": str(tmp_path / "aspects.jsonl")}}
    return {"collection": str(tiny.collection), "steps": steps}


def test_coverage_gives_what_the_stage_gives_for_the_same_runs(
    covering: dict, tiny: Tiny, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    queries = read_queries(tiny.collection / "queries.jsonl")
    trace = Pipeline.load(pipeline=covering).trace(queries, 8)
    assert "aspects.jsonl has no sub-queries of query 'q2' (which price has the cello); its list stays" in (
        capsys.readouterr().err
    )
    words = open_index(built / "words")
    write_run(tmp_path / "run.trec", trace.found["words"].run)
    write_run(tmp_path / "aspects.trec", words.search(read_queries(tmp_path / "aspects.jsonl"), 8))
    diversify.run(
        diversify.Config(
            run=tmp_path / "run.trec",
            out=tmp_path / "varied.trec",
            method="coverage",
            aspects=tmp_path / "aspects.trec",
            lambda_=0.3,
            alpha=0.8,
            k=4,
            depth=8,
        )
    )
    assert {name: hits for name, hits in trace.last.run.items() if hits} == read_run(tmp_path / "varied.trec")
    orders = [[hit.doc_id for hit in found.run["q0"]] for found in trace.found.values()]
    assert orders[0] != orders[1]


def test_a_live_query_is_known_by_its_text(covering: dict):
    pipeline = Pipeline.load(pipeline=covering)
    by_id = pipeline.trace(Query("q0", SUB_QUERIES["q0#0"]), 8).last.run["q0"]
    assert [result.document.doc_id for result in pipeline.search(SUB_QUERIES["q0#0"], 8)] == [
        hit.doc_id for hit in by_id
    ]


def test_sub_queries_obey_the_filter_of_the_search(covering: dict):
    pipeline, asked = Pipeline.load(pipeline=covering), list[tuple[int, object]]()
    words, varied = pipeline.steps

    def search(queries: list[Query], k: int, allowed: Allowed | None = None) -> Run:
        asked.append((k, allowed))
        return words.stage.search(queries, k, allowed=allowed)

    noted = words._replace(stage=SimpleNamespace(search=search))
    pipeline.steps, few = [noted, varied._replace(searched=SearchedAgain("words", noted.stage))], Allowed(["d0", "d1"])
    pipeline.__dict__["metadata"] = SimpleNamespace(allowed=lambda where: few)
    pipeline.trace(Query("q0", SUB_QUERIES["q0#0"]), 3, where="year > 1")
    assert asked == [(8, few), (8, few)]


def test_coverage_searches_the_first_stage_that_its_run_came_from_or_the_one_named(covering: dict):
    words, varied = covering["steps"]["words"], covering["steps"]["varied"]

    def search(given: dict, **steps: dict) -> str | None:
        return parse_description({"steps": {"words": words, **steps, "varied": given}}, where="here").steps[-1].search

    cut = {"cut": "rank", "at": 5}
    assert search(varied, short=cut) == "words"
    assert search(varied, again={"feedback": "rm3"}) == "words"
    assert search(varied, more={"rewrite": "query2doc", "model": "m"}) == "words"
    assert search(varied, first=varied, again={"feedback": "rm3"}) == "words"
    both = {"more": words, "both": {"fuse": "rrf"}}
    with pytest.raises(UserError, match=r"steps.varied: search is missing: its documents come from words and more"):
        search(varied, **both)
    with pytest.raises(UserError, match=r"steps.varied: search: unknown earlier step that finds documents 'both'"):
        search(varied | {"search": "both"}, **both)
    assert search(varied | {"search": "more"}, **both) == "more"
    with pytest.raises(UserError, match="unknown setting of `diversify: mmr` 'search'"):
        search({"diversify": "mmr", "vectors": "v", "search": "words"})


def test_other_numbers_before_coverage_are_tried(covering: dict, tiny: Tiny):
    description = parse_description(covering, where="here")
    simulation, queries = Simulation(description, Opener()), read_queries(tiny.collection / "queries.jsonl")
    for depth in (3, 8):
        steps = covering["steps"] | {"words": covering["steps"]["words"] | {"depth": depth}}
        expected = Pipeline.load(pipeline=covering | {"steps": steps}).trace(queries, 8).last.run
        assert simulation.run(queries, 8, {"words.depth": depth}).run == expected
        assert simulation.real({"words.depth": depth}).trace(queries, 8).last.run == expected


def test_queries_that_are_no_sub_queries_are_refused(covering: dict, tiny: Tiny):
    covering["steps"]["varied"]["aspects"] = str(tiny.collection)
    with pytest.raises(UserError, match=r"no query id \(first 'q0'\) has #ASPECT behind the id"):
        Pipeline.load(pipeline=covering)
