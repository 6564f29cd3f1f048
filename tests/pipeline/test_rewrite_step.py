from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny import QUERIES, Tiny

from shortlist import Pipeline, search
from shortlist.data.manifest import read_manifest
from shortlist.data.runs import read_run
from shortlist.errors import UserError
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.rewriting import REWRITINGS
from shortlist.pipeline.spec import parse_description, written
from shortlist.records import Document, Query
from shortlist.rerankers.models import RawAnswer
from shortlist.text.prompts import named_prompt


class Speaker:
    """Writes about goats whatever is asked, and nothing about the apple."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def keys(self, asked):
        return [documents[0].text for _, documents in asked]

    def replies(self, asked):
        for place, (_, [document]) in enumerate(asked):
            self.asked.append(document.text)
            answer = "" if "apple" in document.text else "<think>so</think> the goat\nhas a price"
            yield {place: RawAnswer(answer, 7, 3)}


@pytest.fixture
def speaker(monkeypatch: pytest.MonkeyPatch) -> Speaker:
    speaker = Speaker()
    monkeypatch.setattr("shortlist.pipeline.shortening.open_language_model", lambda **_: (speaker, {"model": "m"}))
    return speaker


def steps(tiny: Tiny, built: Path, method: str, first: str) -> dict[str, Any]:
    dense = {"find": "dense", "model": str(tiny.retriever), "vectors": str(built / "vectors")}
    finds = {"words": {"find": "bm25", "index": str(built / "words")}, "dense": dense}
    return {
        "collection": str(tiny.collection),
        "steps": {first: finds[first], "more": {"rewrite": method, "model": str(tiny.speaker)}},
    }


def found(pipeline: Pipeline, queries: Sequence[Any]) -> dict[str, list[tuple[str, float]]]:
    trace = pipeline.trace(queries, 5)
    assert list(trace.found) == ["more"]  # the first stage is not searched for nothing
    return {
        name: [(hit.doc_id, pytest.approx(hit.score, rel=1e-5)) for hit in hits]
        for name, hits in trace.last.run.items()
    }


def test_hyde_searches_by_the_mean_of_query_and_passage(tiny, built, speaker):
    pipeline = Pipeline.load(pipeline=steps(tiny, built, "hyde", "dense"))
    dense = pipeline.steps[0].stage
    run = found(pipeline, QUERIES[:3])
    vectors = np.array(dense.query_vectors(QUERIES[:3]))
    [passage] = dense.retriever.encode_documents([Document("", "the goat has a price")])
    vectors[1:] = (vectors[1:] + passage) / 2
    expected = dense.find_by_vectors(vectors, 5)
    assert list(run.values()) == [[*map(tuple, hits)] for hits in expected]
    found(pipeline, QUERIES[:4])
    assert speaker.asked == [query.text for query in QUERIES[:4]]  # what is known is not asked again


def test_query2doc_repeats_the_query_before_words_and_joins_it_for_models(tiny, built, speaker):
    texts = [query.text for query in QUERIES[:2]]
    words = Pipeline.load(pipeline=steps(tiny, built, "query2doc", "words"))
    longer = [texts[0], " ".join([texts[1]] * 5 + ["the goat has a price"])]
    expected = words.steps[0].stage.search(longer, 5)
    assert list(found(words, texts).values()) == [[*map(tuple, hits)] for hits in expected.values()]
    dense = Pipeline.load(pipeline=steps(tiny, built, "query2doc", "dense"))
    longer = [texts[0], f"{texts[1]} </s> the goat has a price"]
    expected = dense.steps[0].stage.search(longer, 5)
    assert list(found(dense, texts).values()) == [[*map(tuple, hits)] for hits in expected.values()]


def test_a_model_here_writes(tiny, built, monkeypatch):
    short = replace(named_prompt("passage"), most_tokens=4)
    monkeypatch.setattr("shortlist.pipeline.rewriting.named_prompt", lambda name: short)
    pipeline = Pipeline.load(pipeline=steps(tiny, built, "query2doc", "words"))
    assert pipeline.steps[1].stage.write(QUERIES[:1])[0]
    assert pipeline.trace(QUERIES[:1], 3).last.run["q0"]


def test_runs_say_which_model_wrote(tiny, built, speaker, tmp_path):
    description = tmp_path / "pipeline.yaml"
    description.write_text(yaml.safe_dump(steps(tiny, built, "query2doc", "words"), sort_keys=False))
    config = search.Config(pipeline=description, out=tmp_path / "run", k=3)
    search.run(config)
    assert read_run(tmp_path / "run").keys() == {query.query_id for query in QUERIES}
    stages = read_manifest(tmp_path / "run")["results"]["stages"]
    assert stages[0]["model"] == Opener().folder(str(tiny.speaker)).identity
    costs = {name: stages[0][name] for name in ("calls", "prompt_tokens", "answer_tokens", "malformed")}
    assert costs == {"calls": 12, "prompt_tokens": 84, "answer_tokens": 36, "malformed": 2}


def test_a_description_is_written_as_it_was_read(tiny, built):
    one = parse_description(steps(tiny, built, "hyde", "dense"), where="here")
    assert (one.steps[1].search, one.steps[1].of) == ("dense", ())
    assert parse_description(written(one), where="here") == one
    with pytest.raises(UserError, match=r"steps.more: search is missing: .*come from no step"):
        parse_description({"steps": {"more": {"rewrite": "hyde", "model": "m"}}}, where="here")


def test_what_cannot_be_rewritten_is_refused(tiny, built, speaker):
    with pytest.raises(UserError, match=r"step 'more': `rewrite: hyde` needs a first stage .*'words' does not"):
        Pipeline.load(pipeline=steps(tiny, built, "hyde", "words"))
    with pytest.raises(UserError, match="'first' does not ask for a text; the prompt `passage` does"):
        REWRITINGS["hyde"](Opener(), model=str(tiny.speaker), prompt="first")
    with pytest.raises(UserError, match="--model-name is missing"):
        REWRITINGS["hyde"](Opener(), model="http://localhost:1")


def test_nothing_is_written_about_a_query_without_text(tiny, built, speaker):
    words = Pipeline.load(pipeline=steps(tiny, built, "query2doc", "words"))
    assert found(words, [Query("blank", " "), Query("empty", "")]) == {"blank": [], "empty": []}
    assert speaker.asked == []
