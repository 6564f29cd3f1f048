import json
import math
from pathlib import Path

import pytest
from replying import chat, serving
from tiny import DOCUMENTS, QUERIES, Tiny, write_collection

from shortlist import judge
from shortlist.data.collections import open_collection
from shortlist.data.formats import read_qrels, write_corpus, write_queries
from shortlist.data.manifest import read_manifest
from shortlist.data.runs import write_run
from shortlist.errors import UserError
from shortlist.evaluation import evaluate
from shortlist.models.server import KEYS
from shortlist.records import Document, Hit
from shortlist.rerankers.models import RawAnswer
from shortlist.text.prompts import named_prompt

PROMPT = named_prompt("judge")


class Judge:
    """Gives each document the grade that its number says, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked, self.odd = 0, ""

    def keys(self, asked):
        return [[query.query_id, document.doc_id] for query, [document] in asked]

    def cut(self, asked):
        return [document.doc_id == "d5" for _, [document] in asked]

    def replies(self, asked):
        for place, (_, [document]) in enumerate(asked):
            self.asked += 1
            said = self.odd if document.doc_id in ("d2", "d3") and self.odd else str(int(document.doc_id[1:]) % 4)
            yield {place: RawAnswer(said, 5, 1)}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Judge:
    machine = Judge()
    monkeypatch.setattr(judge, "how_to_open", lambda model: {"folder": None, "url": "u", "model_name": "m"})
    monkeypatch.setattr("shortlist.rerankers.opening.open_language_model", lambda **_: (machine, {"model": "m"}))
    return machine


def config(tmp_path: Path, **settings) -> judge.Config:
    if not (tmp_path / "collection").exists():
        write_collection(tmp_path / "collection")
        run = {f"q{i}": [Hit(f"d{(i + n) % 12}", -float(n)) for n in range(4)] for i in range(3)}
        write_run(tmp_path / "run.trec", run)
    given = {"model": "m", "collection": str(tmp_path / "collection"), "runs": (tmp_path / "run.trec",), "depth": 3}
    return judge.Config(out=tmp_path / "machine.tsv", **given | settings)


def results(tmp_path: Path) -> dict:
    return (read_manifest(tmp_path / "machine.tsv") or {})["results"]


def test_the_grade_is_the_likeliest_one_and_the_expected_grade_is_a_mean():
    numbers = [math.log(share) for share in (0.1, 0.2, 0.4, 0.3)]
    for shift in (0.0, 7.0):  # logits mean the same whatever is added to all
        graded = judge.read_grade([number + shift for number in numbers], PROMPT)
        assert (graded.grade, graded.faults) == (2, ())
        assert graded.expected == pytest.approx(0.2 + 0.8 + 0.9)
    assert judge.read_grade([math.nan, -0.1, math.nan, math.nan], PROMPT) == judge.Graded(1, 1.0, ())


@pytest.mark.parametrize("answer", ["", "no idea", "2 or 3", "7", "2.5", "I'm sorry, I can't", [math.nan] * 4])
def test_what_cannot_be_read_has_no_grade(answer: str | list[float]):
    graded = judge.read_grade(answer, PROMPT)
    assert graded.grade is None
    assert graded.faults


def test_a_server_that_would_rather_say_something_has_given_no_grade():
    unlikely = [math.log(0.1)] * 4
    assert judge.read_grade(unlikely, PROMPT, is_of_server=True).grade is None
    assert judge.read_grade(unlikely, PROMPT).grade == 0
    assert judge.read_grade([math.log(0.6), *[math.nan] * 3], PROMPT, is_of_server=True).grade == 0


def test_holes_are_what_runs_found_and_nobody_judged():
    runs = [{"q1": ["a", "b"], "q2": ["c"]}, {"q1": ["d", "a"], "q3": ["e"]}]
    assert judge.holes(runs, {"q1": {"b": 0}, "q2": {"c": 1}}) == {"q1": ["a", "d"], "q3": ["e"]}


def test_only_holes_are_judged_and_the_output_says_that_a_machine_did_it(tmp_path: Path, machine: Judge, capsys):
    judge.run(config(tmp_path, json=True, details=tmp_path / "details.jsonl"))
    told = json.loads(capsys.readouterr().out)
    expected = {"q0": {"d1": 1, "d2": 2}, "q1": {"d2": 2, "d3": 3}, "q2": {"d3": 3, "d4": 0}}
    assert read_qrels(tmp_path / "machine.tsv") == expected
    assert (told["machine_made"], told["machine_pairs"], told["left_out"]) == ("u m", 6, {})
    assert told["grades"] == {"0": 1, "1": 1, "2": 2, "3": 2}
    lines = [json.loads(line) for line in (tmp_path / "details.jsonl").read_text().splitlines()]
    assert lines[0] == {"query_id": "q0", "doc_id": "d1", "grade": 1, "model": "u m", "prompt": "judge"}
    assert results(tmp_path)["prompt_digest"] == PROMPT.digest()


def test_what_a_collection_excludes_is_not_judged_and_takes_no_place(tmp_path: Path, machine: Judge):
    settings = config(tmp_path)
    (tmp_path / "collection" / "exclude").mkdir()
    (tmp_path / "collection" / "exclude" / "test.tsv").write_text("q0 d1\nq1 d4\n")
    judge.run(settings)
    expected = {"q0": {"d2": 2, "d3": 3}, "q1": {"d2": 2, "d3": 3}, "q2": {"d3": 3, "d4": 0}}
    assert read_qrels(tmp_path / "machine.tsv") == expected


def test_judgements_that_are_there_keep_their_grades(tmp_path: Path, machine: Judge, capsys):
    judge.run(config(tmp_path, again=True, join=True))
    written = read_qrels(tmp_path / "machine.tsv")
    assert (written["q0"], written["q9"]) == ({"d0": 1, "d1": 1, "d2": 2}, {"d9": 1})
    assert machine.asked == 9
    assert "6 judgements by u m" in (said := capsys.readouterr().out)
    assert "written with 12 that were there" in said


def test_evaluate_says_how_many_judgements_a_machine_made(tmp_path: Path, machine: Judge, capsys):
    judge.run(config(tmp_path, join=True))
    how = {"runs": (tmp_path / "run.trec",), "qrels": tmp_path / "machine.tsv", "resamples": 100}
    evaluate.run(evaluate.Config(**how))
    assert "6 of 18 judgements were made by a machine" in " ".join(capsys.readouterr().out.split())
    evaluate.run(evaluate.Config(**how, json=True))
    said = capsys.readouterr()
    assert json.loads(said.out)["machine_part"] == "6 of 18 judgements"
    assert "were made by a machine (u m)" in said.err


def test_a_split_that_a_machine_judged_says_so_too(tmp_path: Path, machine: Judge, capsys):
    settings = config(tmp_path)
    judge.run(judge.Config(**vars(settings) | {"out": tmp_path / "collection" / "qrels" / "machine.tsv"}))
    assert open_collection(tmp_path / "collection").splits() == ["machine", "test", "train"]
    capsys.readouterr()
    how = {"collection": str(tmp_path / "collection"), "runs": (tmp_path / "run.trec",), "resamples": 100}
    evaluate.run(evaluate.Config(**how, split="machine"))
    assert "; judgements were made by a machine" in " ".join(capsys.readouterr().out.split())
    evaluate.run(evaluate.Config(**how))
    assert "by a machine" not in capsys.readouterr().out


def test_unreadable_cut_and_missing_ones_are_counted_and_get_no_grade(tmp_path: Path, machine: Judge, capsys):
    machine.odd = "no idea"
    settings = config(tmp_path, max_malformed=0.9)
    write_corpus(tmp_path / "collection" / "corpus.jsonl", [*DOCUMENTS[:11], Document("d11", " ")])
    run = {"q0": [Hit(f"d{n}", -float(n)) for n in (1, 2, 3, 5, 11)] + [Hit("gone", -20.0)], "q99": [Hit("d1", 1.0)]}
    write_run(tmp_path / "run.trec", run)
    judge.run(judge.Config(**vars(settings) | {"depth": 9}))
    assert read_qrels(tmp_path / "machine.tsv") == {"q0": {"d1": 1}}
    assert results(tmp_path)["left_out"] == {"unread": 2, "too_long": 1, "no_text": 2, "no_query": 1}
    assert "1: the document is too long to be read whole (--long cut" in capsys.readouterr().out
    judge.run(judge.Config(**vars(settings) | {"depth": 9, "long": "cut", "overwrite": True}))
    assert read_qrels(tmp_path / "machine.tsv") == {"q0": {"d1": 1, "d5": 1}}


def test_an_interrupted_command_goes_on_and_asks_nothing_twice(tmp_path: Path, machine: Judge, capsys):
    judge.run(config(tmp_path, max_calls=4))
    assert results(tmp_path)["left_out"] == {"not_reached": 2}
    assert "2: not reached yet; the same command goes on" in capsys.readouterr().out
    judge.run(config(tmp_path))
    assert (machine.asked, results(tmp_path)["machine_pairs"], results(tmp_path)["left_out"]) == (6, 6, {})
    judge.run(config(tmp_path))
    assert "already done" in capsys.readouterr().err


def test_details_are_written_of_finished_judgements_too(tmp_path: Path, machine: Judge):
    judge.run(config(tmp_path))
    asked = machine.asked
    judge.run(config(tmp_path, details=tmp_path / "details.jsonl"))
    assert len((tmp_path / "details.jsonl").read_text().splitlines()) == results(tmp_path)["machine_pairs"]
    assert machine.asked == asked


def test_grades_that_give_way_to_a_persons_are_not_counted(tmp_path: Path, machine: Judge):
    judge.run(config(tmp_path, again=True, join=True))
    found = results(tmp_path)
    assert found["machine_pairs"] == sum(found["grades"].values()) == found["num_pairs"] - 12


def test_a_collection_without_judgements_has_holes_everywhere(tmp_path: Path, machine: Judge):
    config(tmp_path)
    write_corpus(tmp_path / "bare" / "corpus.jsonl", DOCUMENTS)
    write_queries(tmp_path / "bare" / "queries.jsonl", QUERIES)
    judge.run(config(tmp_path, collection=str(tmp_path / "bare"), split="all"))
    assert sum(map(len, read_qrels(tmp_path / "machine.tsv").values())) == 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runs": ()}, "--runs is missing"),
        ({"depth": 0}, "--depth is 0; expected at least 1"),
        ({"max_malformed": 2.0}, "--max-malformed is 2; expected a share"),
        ({"prompt": "prp"}, "'prp' does not ask for a grade; the prompts `judge`"),
        ({"depth": 1}, "all first 1 documents are judged; raise --depth, or judge --again"),
        ({"split": "train", "collection": "other"}, "none of its 6 pairs has a query and a text in"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(tmp_path: Path, machine: Judge, settings: dict, message: str):
    made = config(tmp_path)
    if settings.get("collection") == "other":
        folder = write_collection(tmp_path / "other")
        write_corpus(folder / "corpus.jsonl", [Document("x", "of another collection")])
        settings = settings | {"collection": str(folder)}
    with pytest.raises(UserError, match=message):
        judge.run(judge.Config(**vars(made) | settings))


def test_a_server_that_answers_nonsense_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    with serving() as server:
        server.answer = lambda body: chat("bananas")
        settings = config(tmp_path, model=server.url, model_name="m", answers="text")
        with pytest.raises(
            UserError, match=r"no grade can be read from 6 of 6 answers \(6x nothing could be read.*--max-m"
        ):
            judge.run(settings)
        assert not (tmp_path / "machine.tsv").exists()
        with pytest.raises(UserError, match="6 of 6 answers"):  # asked again, as there was nothing to keep
            judge.run(settings)
        assert len(server.bodies) == 12
        with pytest.raises(UserError, match=r"no document got a grade \(6: no grade could be read"):
            judge.run(judge.Config(**vars(settings) | {"max_malformed": 1.0}))
        server.answer = lambda body: chat("<answer>3</answer>")
        judge.run(judge.Config(**vars(settings) | {"prompt": "judge-steps", "answers": None}))
        assert {g for judged in read_qrels(tmp_path / "machine.tsv").values() for g in judged.values()} == {3}
        assert "sentence" in server.bodies[-1]["messages"][-1]["content"]


def test_a_language_model_on_disk_gives_the_same_grades_again(tmp_path: Path, tiny: Tiny):
    settings = config(tmp_path, model=str(tiny.speaker), details=tmp_path / "details.jsonl", depth=2)
    judge.run(settings)
    first = (tmp_path / "details.jsonl").read_text()
    assert len(first.splitlines()) == 3
    for line in map(json.loads, first.splitlines()):
        assert line["grade"] in range(4)
        assert 0 < line["expected"] < 3
    (tmp_path / "machine.tsv.answers").unlink()
    judge.run(judge.Config(**vars(settings) | {"overwrite": True, "token_budget": 64}))
    (tmp_path / "machine.tsv").unlink()
    (tmp_path / "machine.tsv.manifest.json").unlink()
    judge.run(settings)
    assert (tmp_path / "details.jsonl").read_text() == first


def test_documents_longer_than_the_model_reads_are_left_out(tmp_path: Path, tiny: Tiny):
    settings = config(tmp_path, model=str(tiny.speaker), depth=3)
    longer = [Document(d.doc_id, d.text + " really" * (400 * (d.doc_id == "d2"))) for d in DOCUMENTS]
    write_corpus(tmp_path / "collection" / "corpus.jsonl", longer)
    judge.run(judge.Config(**vars(settings) | {"max_length": 600}))
    assert results(tmp_path)["left_out"] == {"too_long": 2}
    assert "d2" not in read_qrels(tmp_path / "machine.tsv")["q0"]
