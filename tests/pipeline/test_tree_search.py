import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import Oracle
from tiny import DOCUMENTS, QUERIES, Tiny, write_collection

from shortlist import Pipeline, encode, index, search
from shortlist.data.formats import write_corpus
from shortlist.data.manifest import stages
from shortlist.data.runs import read_run
from shortlist.errors import UserError
from shortlist.rerankers import asking, opening
from shortlist.rerankers.models import RawAnswer
from shortlist.rerankers.reranker import Reranker
from shortlist.settings.encode import Config as EncodeConfig


@pytest.fixture(scope="module")
def made(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of the retriever, a tree over them, and an index of words."""
    folder = tmp_path_factory.mktemp("tree")
    encode.run(EncodeConfig(model=str(tiny.retriever), collection=str(tiny.collection), out=folder / "vectors"))
    index.run(index.Config(kind="tree", vectors=folder / "vectors", set=("branch=4",), out=folder / "tree"))
    index.run(index.Config(collection=str(tiny.collection), out=folder / "words"))
    return folder


@pytest.fixture
def oracles(monkeypatch: pytest.MonkeyPatch) -> list[Oracle]:
    """The oracles that were opened in place of language models."""
    opened: list[Oracle] = []

    def open_oracle(*, prompt: Any, reads: str, **given: Any) -> tuple[Oracle, dict[str, Any]]:
        opened.append(Oracle(prompt, reads))
        return opened[-1], {"model": "oracle"}

    monkeypatch.setattr(opening, "open_language_model", open_oracle)
    return opened


def step(tiny: Tiny, made: Path, walker: str | None = None, **changes: Any) -> dict[str, Any]:
    models = {"pointwise": tiny.reranker, "listwise": tiny.speaker}
    given = {"find": "tree", "index": str(made / "tree"), "model": str(models.get(str(walker), tiny.retriever))}
    given |= {"walker": walker} | changes
    return {"steps": {"tree": {name: value for name, value in given.items() if value is not None}}}


def found(tiny: Tiny, described: dict[str, Any], queries: int = 4) -> list[list[tuple[str, float]]]:
    pipeline = Pipeline.load(str(tiny.collection), pipeline=described)
    return [
        [(hit.document.doc_id, hit.score) for hit in pipeline.search(query.text, 12)] for query in QUERIES[:queries]
    ]


def test_by_vectors_with_a_wide_beam_it_is_exact_search_however_it_is_named(tiny: Tiny, made: Path):
    exact = {"find": "dense", "vectors": str(made / "vectors"), "model": str(tiny.retriever)}
    dense = {"find": "dense", "index": str(made / "tree"), "model": str(tiny.retriever), "effort": 99}
    plain = found(tiny, {"steps": {"dense": exact}})
    for described in (step(tiny, made, beam=99), {"steps": {"dense": dense}}):
        for hits, expected in zip(found(tiny, described), plain, strict=True):
            assert [doc_id for doc_id, _ in hits] == [doc_id for doc_id, _ in expected]
            np.testing.assert_allclose([score for _, score in hits], [score for _, score in expected], atol=1e-6)


def test_by_a_reranker_with_budget_for_all_it_is_the_rerankers_order(tiny: Tiny, made: Path):
    scores = Reranker.load(str(tiny.reranker)).score(QUERIES[0], DOCUMENTS)
    hits = found(tiny, step(tiny, made, "pointwise", budget=99))[0]
    assert [doc_id for doc_id, _ in hits] == [f"d{place}" for place in np.argsort(-scores)]
    np.testing.assert_allclose([score for _, score in hits], np.sort(scores)[::-1], atol=1e-5)


def test_a_run_counts_what_was_read_asked_and_answered_and_the_log_serves_the_next(
    tiny: Tiny, made: Path, tmp_path: Path, oracles: list[Oracle]
):
    described = step(tiny, made, "listwise", iterations=3, beam=1, log=str(tmp_path / "answers.sqlite"))
    (tmp_path / "tree.yaml").write_text(json.dumps({"collection": str(tiny.collection), **described}))
    search.run(search.Config(pipeline=tmp_path / "tree.yaml", k=5, out=tmp_path / "run"))
    run = read_run(tmp_path / "run")
    assert all(0 < len(hits) <= 5 for hits in run.values())
    [cost] = stages(tmp_path / "run")
    assert cost["calls"] == len(oracles[0].asked) == 3 * 12
    shown = sum(len(asked) - 1 for asked in oracles[0].asked)
    assert cost["prompt_tokens"] == 10 * shown
    assert cost["pairs_per_query"] == round(shown / 12, 1)
    search.run(search.Config(pipeline=tmp_path / "tree.yaml", k=5, out=tmp_path / "again"))
    assert read_run(tmp_path / "again") == run
    assert oracles[1].asked == []


@pytest.mark.parametrize("logged", [False, True])
def test_answers_that_cannot_be_read_are_reported_with_a_log_too(
    tiny: Tiny, made: Path, oracles: list[Oracle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, logged: bool
):
    monkeypatch.setattr(asking, "FEWEST", 1)
    monkeypatch.setattr(
        Oracle, "replies", lambda _, asked: iter([{n: RawAnswer("?", 1, 1) for n in range(len(asked))}])
    )
    log = {"log": str(tmp_path / "answers.sqlite")} if logged else {}
    found(tiny, step(tiny, made, "listwise", iterations=2, **log), 2)
    assert oracles
    assert capsys.readouterr().err.count("answers are malformed") == 1


def test_a_prompt_that_asks_for_an_order_walks_too(tiny: Tiny, made: Path, oracles: list[Oracle]):
    settings = {"prompt": "rankgpt", "iterations": 4, "alpha": 0.3, "calibration": 2, "tau": 2.0, "lambda": 0.5}
    [hits] = found(tiny, step(tiny, made, "listwise", **settings), 1)
    assert len(hits) == 12
    assert oracles[0].prompt.name == "rankgpt"


def test_a_tiny_language_model_walks(tiny: Tiny, made: Path):
    [hits] = found(tiny, step(tiny, made, "listwise", prompt="rankgpt", iterations=2, beam=1), 1)
    assert hits


def test_a_filter_is_kept(tiny: Tiny, tmp_path: Path):
    documents = [one._replace(metadata={"even": not number % 2}) for number, one in enumerate(DOCUMENTS)]
    folder = write_collection(tmp_path / "data")
    write_corpus(folder / "corpus.jsonl", documents)
    encode.run(EncodeConfig(model=str(tiny.retriever), collection=str(folder), out=tmp_path / "vectors"))
    index.run(index.Config(kind="tree", vectors=tmp_path / "vectors", set=("branch=4",), out=tmp_path / "tree"))
    pipeline = Pipeline.load(str(folder), pipeline=step(tiny, tmp_path, "pointwise"))
    hits = pipeline.search("which colour has the apple", 12, where="even = true")
    assert {hit.document.doc_id for hit in hits} == {f"d{number}" for number in range(0, 12, 2)}


@pytest.mark.parametrize(
    ("walker", "changes", "message"),
    [
        ("vectors", {"budget": 3}, "by vectors has no budget"),
        ("vectors", {"alpha": 0.3}, "by vectors has no alpha"),
        ("pointwise", {"iterations": 3}, "by pointwise has no iterations"),
        ("listwise", {"contract": "e5"}, "by listwise has no contract"),
        ("listwise", {"alpha": 1.5}, "alpha 1.5; expected 0 to 1"),
        ("listwise", {"lambda": -1.0}, "lambda -1; expected 0 to 1"),
        ("pointwise", {"budget": 0}, "budget 0; expected above 0"),
        ("listwise", {"prompt": "setwise"}, "asks for the best one; a walk takes grades, or an order"),
        ("vectors", {"index": "words"}, "words: an index of kind bm25; `find: tree` walks one of kind tree"),
        ("steps", {}, "unknown value 'steps'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tiny: Tiny, made: Path, walker: str, changes: dict[str, Any], message: str
):
    changes = {name: str(made / value) if name == "index" else value for name, value in changes.items()}
    with pytest.raises(UserError, match=message):
        Pipeline.load(str(tiny.collection), pipeline=step(tiny, made, walker, **changes))


def test_another_collections_tree_is_refused(tiny: Tiny, made: Path, tmp_path: Path):
    folder = write_collection(tmp_path / "data")
    write_corpus(folder / "corpus.jsonl", [*DOCUMENTS[:-1], DOCUMENTS[-1]._replace(text="another text")])
    with pytest.raises(UserError, match=r"holds a tree of other documents than .*data has now"):
        Pipeline.load(str(folder), pipeline=step(tiny, made))
