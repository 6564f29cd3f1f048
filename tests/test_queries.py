import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
from replying import chat, serving

from shortlist import queries
from shortlist.data.answers import AnswerLog
from shortlist.data.collections import open_collection
from shortlist.data.formats import write_corpus
from shortlist.data.manifest import read_manifest
from shortlist.data.runs import write_run
from shortlist.errors import UserError
from shortlist.evaluation import evaluate
from shortlist.models.server import KEYS
from shortlist.queries import ask_for_queries, choose_documents, divide_by_document, keep_queries
from shortlist.records import Document, Hit, Query
from shortlist.rerankers.models import RawAnswer
from shortlist.text.answers import queries_in

ANIMALS = ["otter", "badger", "heron", "newt", "vole", "stoat", "lapwing", "curlew", "marten", "adder"]
DOCUMENTS = [
    Document(f"d{i}#0", f"the {name} lives beside a quiet river in the north") for i, name in enumerate(ANIMALS)
]


class Writer:
    """Writes the same kind of answer about every document, and counts what it is asked."""

    def __init__(self, answer: str = "1. where does the {} live\n2. food of the {}") -> None:
        self.answer, self.asked = answer, 0

    def keys(self, asked):
        return [[document.text for document in documents] for _, documents in asked]

    def replies(self, asked):
        for place, (_, [document]) in enumerate(asked):
            self.asked += 1
            name = document.text.split()[1]
            yield {place: RawAnswer(self.answer.format(name, name), 7, 3)}


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Writer:
    writer = Writer()
    monkeypatch.setattr(queries, "how_to_open", lambda model: {"folder": None, "url": "u", "model_name": "m"})
    monkeypatch.setattr("shortlist.rerankers.opening.open_language_model", lambda **_: (writer, {"model": "m"}))
    return writer


def config(tmp_path: Path, **settings) -> queries.Config:
    write_corpus(tmp_path / "corpus.jsonl", DOCUMENTS)
    given = {"collection": str(tmp_path), "writer": "m", "min_words": 3, "split": ("train=.6", "test=.4"), "top": 2}
    return queries.Config(out=tmp_path / "made", **given | settings)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("1. how to swim\n2) what is a river?", ["how to swim", "what is a river?"]),
        ('- "how to swim"\n\n* how to swim\n• 3 rivers', ["how to swim", "3 rivers"]),
        ("<think>1. no\n</think>\n(1) yes", ["yes"]),
        ("...\n---", []),
        ("2024 budget", ["2024 budget"]),
    ],
)
def test_the_lines_of_an_answer_are_queries(answer: str, expected: list[str]):
    assert queries_in(answer) == expected


def test_a_sample_hardly_changes_when_documents_come_and_go():
    many = [Document(str(i), "some words") for i in range(200)]
    first = choose_documents(many, 50)
    second = choose_documents([*many[1:], Document("new", "some words")], 50)
    assert len({d.doc_id for d in first} & {d.doc_id for d in second}) >= 48
    assert [int(d.doc_id) for d in first] == sorted(int(d.doc_id) for d in first)
    assert choose_documents(many, 50, seed=1) != first


def test_documents_with_few_words_get_no_queries():
    assert choose_documents([Document("a", "one two"), Document("b", "one two", "three")], 9, min_words=3) == [
        Document("b", "one two", "three")
    ]


def test_what_is_known_is_not_asked_again(tmp_path: Path):
    log, writer = AnswerLog(tmp_path / "log"), Writer()
    some = list(ask_for_queries(writer, DOCUMENTS, log, shared="m", max_calls=4))
    assert (len(some), writer.asked) == (4, 4)
    assert len(list(ask_for_queries(writer, DOCUMENTS, AnswerLog(tmp_path / "log"), shared="m"))) == len(DOCUMENTS)
    assert writer.asked == len(DOCUMENTS)


def test_a_query_has_to_find_its_document_and_be_unlike_others():
    answers = [(DOCUMENTS[0], "where is the otter\nthe otter, where?"), (DOCUMENTS[1], "rivers\n"), (DOCUMENTS[2], "?")]
    answers.append((DOCUMENTS[3], "newt " * 33))

    def search(asked: list[Query], k: int):
        return {query.query_id: [Hit("other", 2.0), Hit("d0#0", 1.0)][:k] for query in asked}

    kept = keep_queries(answers, search, per_document=3, top=2)
    assert [(query.text, doc_id) for query, doc_id in kept.queries] == [("where is the otter", "d0#0")]
    assert kept.left_out == {"unread": 1, "long": 1, "alike": 1, "not_found": 1}
    assert len(keep_queries(answers, search, per_document=3, top=1).queries) == 0
    assert len(keep_queries(answers, None, per_document=3, top=0).queries) == 2


def test_chunks_of_a_document_are_in_one_split():
    written = [queries.WrittenQuery(Query(f"q{i}-{n}", "a"), f"d{i}#{n}") for i in range(40) for n in range(3)]
    judged = divide_by_document(written, {"train": 0.5, "test": 0.5})
    split_of = {query_id: split for split, qrels in judged.items() for query_id in qrels}
    assert all(len({split_of[f"q{i}-{n}"] for n in range(3)}) == 1 for i in range(40))
    assert set(split_of.values()) == {"train", "test"}


def test_what_is_written_is_a_collection_and_says_that_a_machine_made_it(tmp_path: Path, writer: Writer, capsys):
    queries.run(config(tmp_path))
    made = open_collection(tmp_path / "made")
    assert list(made.corpus()) == DOCUMENTS
    texts = {query.query_id: query.text for split in ("train", "test") for query in made.queries(split)}
    qrels = made.qrels("train") | made.qrels("test")
    assert qrels.keys() == texts.keys()
    for query_id, judged in qrels.items():
        [(doc_id, grade)] = judged.items()
        assert ANIMALS[int(re.sub(r"\D|0$", "", doc_id) or 0)] in texts[query_id]
        assert grade == 1
    results = (read_manifest(tmp_path / "made") or {})["results"]
    assert (results["machine_made"], results["prompt_tokens"], results["kept"]) == ("u m", 70, len(texts))
    write_run(tmp_path / "run.trec", {query_id: [Hit("d0#0", 1.0)] for query_id in made.qrels("test")})
    capsys.readouterr()
    evaluate.run(evaluate.Config(runs=(tmp_path / "run.trec",), collection=str(tmp_path / "made")))
    assert "queries and judgements were made by a machine" in " ".join(capsys.readouterr().out.split())


def test_an_interrupted_command_goes_on_and_a_finished_one_asks_nothing(tmp_path: Path, writer: Writer, capsys):
    queries.run(config(tmp_path, max_calls=3))
    assert not (tmp_path / "made" / "queries.jsonl").exists()
    assert "7 documents are left; the same command goes on" in capsys.readouterr().err
    queries.run(config(tmp_path))
    assert writer.asked == len(DOCUMENTS)
    before = (tmp_path / "made" / "queries.jsonl").read_bytes()
    queries.run(config(tmp_path))
    assert "already done" in capsys.readouterr().err
    queries.run(config(tmp_path, top=0, overwrite=True))
    assert len((tmp_path / "made" / "queries.jsonl").read_bytes()) >= len(before)


def test_a_server_writes_as_many_as_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    with serving() as server:
        server.answer = lambda body: chat(f"1. where does the {name_in(body)} live\n2. rivers of the {name_in(body)}")
        given = {"writer": server.url, "writer_name": "m", "per_document": 2, "top": 0, "documents": 4}
        queries.run(config(tmp_path, **given, split=("test",)))
        assert len(open_collection(tmp_path / "made").queries("test")) == 8
        assert all("Write 2 search queries" in body["messages"][-1]["content"] for body in server.bodies)
        (tmp_path / "made" / "queries.jsonl").unlink()
        queries.run(config(tmp_path, **given, split=("test",), overwrite=True))
        assert len(server.bodies) == 4  # nothing is asked twice


def name_in(body: dict) -> str:
    said = json.dumps(body)
    return next((name for name in ANIMALS if name in said), "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top": 0, "index": (Path("words"),)}, "--index says how to search, and with --top 0 nothing is searched"),
        ({"per_document": 0}, "--per-document is 0; expected at least 1"),
        ({"writer_prompt": "prp"}, "'prp' does not ask for queries; the prompt `queries` does"),
        ({"min_words": 99}, "no document has 99 words"),
        ({"split": ("train=.999", "test=.001")}, "none of .* kept queries falls to 'test'"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(tmp_path: Path, writer: Writer, settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        queries.run(config(tmp_path, **settings))


def test_a_language_model_on_disk_is_asked(tmp_path: Path, tiny):
    write_corpus(tmp_path / "corpus.jsonl", DOCUMENTS)
    given = {"collection": str(tmp_path), "writer": str(tiny.speaker), "documents": 3, "top": 0, "split": ("test",)}
    with suppress(UserError):  # an untrained model may write nothing that is a query
        queries.run(queries.Config(out=tmp_path / "made", min_words=3, **given))
    assert json.loads((tmp_path / "made" / "manifest.json").read_text())["stage"] == "queries"
    assert len(AnswerLog(tmp_path / "made" / queries.ANSWERS)) == 3
