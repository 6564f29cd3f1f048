"""Steps that shorten documents for later ones: extracts, summaries, facts."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import DOCUMENTS, QUERIES, Tiny

from shortlist import search
from shortlist.cli import main
from shortlist.data.manifest import stages
from shortlist.data.runs import read_run
from shortlist.errors import UserError
from shortlist.evaluation.costs import costs, quality_per_token
from shortlist.pipeline import Pipeline
from shortlist.pipeline.opening import say_what_is_unread
from shortlist.pipeline.shortening import Extracts, Facts, Summaries, Writer, word_spans
from shortlist.pipeline.spec import parse_description
from shortlist.pipeline.steps import STEPS, Step
from shortlist.records import Document, Query
from shortlist.rerankers import Candidates
from shortlist.rerankers.models import RawAnswer
from shortlist.text.rendering import QueryAndShown

OTTERS = Document("o", "Goats climb hills. Otters live in rivers. Rivers are wet and long.", title="Animals")
GOATS = Document("g", "Goats eat grass. Nobody asks a goat. Goats climb hills with ease.")


def steps(tiny: Tiny, built: Path, *more: dict[str, Any]) -> dict[str, Any]:
    words = {"find": "bm25", "index": str(built / "words"), "depth": 8}
    listed = {f"s{place}": step for place, step in enumerate(more)}
    return {"collection": str(tiny.collection), "steps": {"words": words, **listed}}


class Speaks:
    """A language model whose answers are known, and which remembers what it was asked."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked = list(answers), list[str]()

    def keys(self, asked: Sequence[QueryAndShown]) -> list[Any]:
        return [[query.text, *(document.text for document in documents)] for query, documents in asked]

    def replies(self, asked: Sequence[QueryAndShown]) -> Iterator[dict[int, RawAnswer]]:
        for place, (_, documents) in enumerate(asked):
            self.asked.append(documents[0].text)
            yield {place: RawAnswer(self.answers.pop(0), 10, 3)}


def test_an_extract_is_the_sentence_with_most_of_the_querys_words():
    lists = [Candidates(Query("1", "where do otters live"), [OTTERS, GOATS])]
    [[otters, goats]] = Extracts(room=4).shorten(lists)
    assert otters == OTTERS._replace(text="Otters live in rivers.")  # the title stays
    assert goats.text == "Goats eat grass. Nobody"  # no word of the query: what is left is the beginning
    assert Extracts(room=100).shorten(lists) == [[OTTERS, GOATS]]


def test_words_of_scripts_without_spaces_are_letters():
    assert [text[slice(*span)] for text in ["ab 漢字c."] for span in word_spans(text)] == ["ab", "漢", "字", "c."]


def test_tokens_are_those_of_a_model(tiny: Tiny, built: Path):
    pipeline = Pipeline.load(
        pipeline=steps(tiny, built, {"compress": "extract", "tokens": 4, "model": str(tiny.retriever)})
    )
    stage = pipeline.steps[-1].stage
    [shorter] = stage.shorten([Candidates(QUERIES[0], DOCUMENTS[:3])])
    assert [len(stage.tokenizer(one.text, add_special_tokens=False)["input_ids"]) for one in shorter] == [4, 4, 4]


def test_later_steps_read_what_is_shorter_for_their_own_query_and_the_answer_is_whole(tiny: Tiny, built: Path):
    pipeline = Pipeline.load(pipeline=steps(tiny, built, {"compress": "extract", "words": 2, "depth": 3}))
    read: dict[str, list[str]] = {}

    class Reads:
        def score(self, query: Query, documents: Sequence[Document]) -> Any:
            read[query.query_id] = [document.text for document in documents]
            return np.arange(len(documents), dtype=float)

    short = Step("short", STEPS["compress"], Extracts(room=2), ("words",), 3)
    pipeline = Pipeline(
        pipeline.collection, [pipeline.steps[0], short, Step("reads", STEPS["rank"], Reads(), ("short",), 5)]
    )
    trace = pipeline.trace(QUERIES[:2], 5)
    assert trace.found["short"].run == trace.found["words"].run
    for texts in read.values():
        assert [len(text.split()) for text in texts[:3]] == [2, 2, 2]
        assert all(len(text.split()) > 2 for text in texts[3:])
    [answer] = pipeline.answer([QUERIES[0]], 5)
    assert all(result.document in DOCUMENTS and "short" not in result.places for result in answer.results)


def test_the_same_document_is_shortened_for_each_query_by_itself():
    queries = [Query("1", "where do otters live"), Query("2", "who climbs hills")]
    found = Extracts(room=4).shorten([Candidates(query, [OTTERS]) for query in queries])
    texts = [document.text for [document] in found]
    assert texts == ["Otters live in rivers.", "Goats climb hills. Otters"]


def test_what_a_reranker_reads_of_shorter_texts_is_what_a_run_costs(tiny: Tiny, built: Path, tmp_path: Path):
    pairs = {"rank": "pointwise", "model": str(tiny.reranker), "depth": 4}
    read = []
    for name, before in (("whole", []), ("short", [{"compress": "extract", "words": 3, "depth": 4}])):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(steps(tiny, built, *before, pairs)))
        search.run(search.Config(pipeline=tmp_path / f"{name}.yaml", out=tmp_path / f"{name}.trec", k=4))
        made_by = stages(tmp_path / f"{name}.trec")
        found = costs(made_by)
        assert made_by[-1]["tokens_per_query"] == found["tokens_per_query"]
        assert quality_per_token(0.5, found) == {"quality_per_token": round(500 / found["tokens_per_query"], 6)}
        read.append(found["tokens_per_query"])
    assert 0 < read[1] < read[0]
    assert all(len(hits) == 4 for hits in read_run(tmp_path / "short.trec").values())


def test_a_summary_stands_for_its_text_and_what_cannot_be_read_keeps_it(capsys: pytest.CaptureFixture[str]):
    model = Speaks('"Otters  live in rivers."', "<think>", "I am sorry, I cannot", "long " * 99)
    documents = [OTTERS, GOATS, GOATS._replace(text="x " * 9), OTTERS._replace(text="y " * 9), Document("s", "a b")]
    stage = Summaries(Writer(model, {}), most=4)
    lists = [Candidates(Query("1", "q"), documents[:2]), Candidates(Query("2", "q"), documents[2:])]
    [[first, second], rest] = stage.shorten(lists)
    assert first == OTTERS._replace(text="Otters live in rivers.")
    assert [second, *rest] == documents[1:]  # unread, refused, longer than the text, short enough
    assert len(model.asked) == 4
    assert stage.costs() == {"calls": 4, "prompt_tokens": 40, "answer_tokens": 12, "malformed": 2}
    assert "texts that a language model wrote could not be read (said once)" in capsys.readouterr().err
    assert stage.shorten(lists[:1]) == [[first, second]]  # nothing is asked twice
    assert stage.costs()["calls"] == 4


def test_a_language_model_here_writes_summaries(tiny: Tiny, built: Path, language_model: Path, tmp_path: Path):
    description = steps(
        tiny,
        built,
        {"compress": "summary", "model": str(language_model), "words": 3, "depth": 1},
        {"rank": "likelihood", "model": str(language_model), "depth": 1},
    )
    (tmp_path / "p.yaml").write_text(json.dumps(description))
    search.run(search.Config(pipeline=tmp_path / "p.yaml", out=tmp_path / "out.trec", k=3))
    written = next(stage for stage in stages(tmp_path / "out.trec") if stage["stage"] == "s0")
    assert written["calls"] > 0
    assert written["prompt_tokens"] > written["answer_tokens"] >= 0
    assert "model" in written
    ranked = next(stage for stage in stages(tmp_path / "out.trec") if stage["stage"] == "s1")
    assert ranked["calls"] == 12  # the first query's too, which was asked before the time was taken
    assert ranked["tokens_per_query"] == round(ranked["prompt_tokens"] / 12, 1)
    assert "tokens_per_query" not in written


def test_facts_that_are_best_are_kept_in_their_order_and_variety_counts_by_vectors():
    worth = {"a": 0.9, "b": 0.1, "c": 0.8, "d": 0.5}
    vectors = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [1.0, 0.0], "d": [0.0, 1.0]}
    asked: list[str] = []

    def score(query: Query, facts: Sequence[str]) -> Any:
        asked.append(query.text)
        return np.array([worth[fact] for fact in facts]), np.array([vectors[fact] for fact in facts])

    documents = [Document("1", "b\na\n\nc\nd"), Document("2", "a\nb")]
    lists = [Candidates(Query("q", "who"), documents)]
    how: dict[str, Any] = {"split": str.splitlines, "between": "\n", "keep": 2}
    assert Facts(score, **how).shorten(lists) == [[Document("1", "a\nc"), documents[1]]]
    varied = Facts(score, **how, share=0.5)  # c is as a: 0.5 * 0.8 - 0.5 is below 0.5 * 0.5 - 0
    assert varied.shorten(lists) == [[Document("1", "a\nd"), documents[1]]]
    drafted = Facts(score, **how, writer=Writer(Speaks("An otter."), {}))
    assert drafted.shorten(lists)[0][0].text == "a\nc"
    assert asked == ["who", "who", "who An otter."]
    assert drafted.costs()["calls"] == 1


def test_texts_that_are_not_divided_are_said_once(capsys: pytest.CaptureFixture[str]):
    facts = Facts(lambda query, found: (np.zeros(len(found)), None), split=lambda text: [text], between=" ", keep=1)
    long, query = Document("d", "word " * 60), Query("q", "word")
    for _ in range(2):
        assert facts.shorten([Candidates(query, [long, long])]) == [[long, long]]
    assert capsys.readouterr().err.count("all 2 documents of a query are one fact each") == 1
    facts.shorten([Candidates(query, [])])


@pytest.mark.parametrize("by", ["vectors", "pairs"])
def test_facts_are_scored_by_a_retriever_or_a_reranker(tiny: Tiny, built: Path, by: str):
    model = str(tiny.retriever if by == "vectors" else tiny.reranker)
    pipeline = Pipeline.load(
        pipeline=steps(tiny, built, {"compress": "facts", "model": model, "by": by, "keep": 1, "split": "lines"})
    )
    text = "the apple has a colour\nthe boat has a weight\nthe cello has a price"
    [[shorter]] = pipeline.steps[-1].stage.shorten([Candidates(QUERIES[0], [Document("d", text)])])
    scores, _ = pipeline.steps[-1].stage.score(QUERIES[0], text.splitlines())
    assert shorter.text == text.splitlines()[scores.argmax()]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"compress": "extrakt"}, "unknown compress 'extrakt': perhaps 'extract'"),
        ({"compress": "extract", "words": 3, "tokens": 4}, "with words and tokens; give one of them"),
        ({"compress": "extract", "tokens": 4}, "takes tokens together with the model whose tokens they are"),
        ({"compress": "extract", "words": 0}, "with words 0 and decay 0.5; expected 1 or more, and 0 to 1"),
        ({"compress": "summary"}, "needs a model: a language model's folder or hub name, or a server"),
        ({"compress": "summary", "model": "http://x", "model_name": "m", "prompt": "graded"}, "asks for a grade; a"),
        ({"compress": "summary", "model": "http://x", "model_name": "m", "answers": "logits"}, "always generated"),
        ({"compress": "summary", "model": "http://x", "model_name": "m", "words": 0}, "with words 0; expected 1"),
        ({"compress": "facts"}, "needs a model: a retriever's, or with `by: pairs` a reranker's"),
        ({"compress": "facts", "model": "m", "keep": 0}, "with keep 0 and lambda 1; expected 1 or more"),
        ({"compress": "facts", "model": "m", "by": "pairs", "lambda": 0.5}, "has no vectors to compare facts by"),
        ({"compress": "facts", "model": "m", "prompt": "p"}, "with a prompt or writer_name and no writer"),
        ({"compress": "extract", "share": 0.5}, "unknown setting of `compress: extract` 'share'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tiny: Tiny, built: Path, step: dict[str, Any], words: str):
    with pytest.raises(UserError) as caught:
        Pipeline.open(parse_description(steps(tiny, built, step), where="here", collection=None))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shorter_texts_that_nothing_reads_are_said(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    index = tmp_path / "words"
    assert not main(["index", "--collection", str(tiny.collection), "--out", str(index)])
    steps = {"words": {"find": "bm25", "index": str(index)}, "short": {"compress": "extract", "words": 3}}
    Pipeline.load(pipeline={"collection": str(tiny.collection), "steps": steps})
    assert "step 'short': no step behind it reads the shorter texts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("step", "is_read"),
    [
        ({"rank": "embedding", "window": 0}, True),
        ({"rank": "embedding", "vectors": "v"}, True),  # the prompt shows the first texts
        ({"rank": "embedding", "vectors": "v", "window": 0}, False),
        ({"rank": "late", "vectors": "v"}, False),
        ({"rank": "late"}, True),
    ],
)
def test_shorter_texts_before_stored_vectors_of_whole_documents_are_said(
    step: dict[str, Any], is_read: bool, capsys: pytest.CaptureFixture[str]
):
    steps = {"words": {"find": "bm25"}, "short": {"compress": "extract"}, "again": step | {"model": "m"}}
    say_what_is_unread(parse_description({"steps": steps}, where="here", collection="c").steps)
    said = "step 'short': 'again' behind it compares stored vectors of whole documents, so the shorter texts change"
    assert (said in capsys.readouterr().err) != is_read
    steps["pairs"] = {"rank": "pointwise", "model": "m"}
    say_what_is_unread(parse_description({"steps": steps}, where="here", collection="c").steps)
    assert capsys.readouterr().err == ""
