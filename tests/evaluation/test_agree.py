import json
from pathlib import Path

import numpy as np
import pytest

from shortlist.data.formats import read_qrels, write_qrels
from shortlist.data.runs import read_run_columns, write_run
from shortlist.errors import UserError
from shortlist.evaluation import agree
from shortlist.evaluation.measure import per_query
from shortlist.records import Hit

PEOPLE = {"q1": {"a": 2, "b": 0, "c": 1, "d": 0}, "q2": {"a": 0, "b": 2}, "alone": {"a": 1}}
MACHINE = {"q1": {"a": 2, "b": 1, "c": 1, "e": 0}, "q2": {"a": 0, "b": 2}}

DL19 = {
    "four-prompts": (0.877, 0.333, 0.124, 0.213, 397, 82, 10),
    "generated-query": (0.748, 0.422, 0.124, 0.190, 382, 97, 23),
    "direct-then-decomposed": (0.868, 0.822, 0.169, 0.281, 378, 101, 12),
    "four-prompts-flan-t5-large": (0.904, 0.511, 0.227, 0.322, 464, 15, 35),
    "four-prompts-llama-70b": (0.868, 0.733, 0.167, 0.388, 457, 22, 42),
    "baseline-3210": (0.891, 0.494, 0.128, 0.272, 414, 65, 5),
    "direct-flan-t5-large": (0.925, 0.733, 0.187, 0.401, 460, 19, 33),
}
"""Of each machine judge: tau over all runs and over the best 10, kappa of 4 grades and of 2, pairs of runs that differ
by a paired t-test without correction under both, people alone, the machine alone."""


@pytest.fixture
def files(tmp_path: Path) -> dict:
    write_qrels(tmp_path / "people.tsv", PEOPLE)
    write_qrels(tmp_path / "machine.tsv", MACHINE)
    runs = []
    for name, order in {"one": "abc", "two": "bca", "three": "cba"}.items():
        run = {query_id: [Hit(doc_id, -float(rank)) for rank, doc_id in enumerate(order)] for query_id in ("q1", "q2")}
        write_run(tmp_path / f"{name}.trec", run)
        runs.append(tmp_path / f"{name}.trec")
    return {"judgements": (tmp_path / "people.tsv", tmp_path / "machine.tsv"), "runs": tuple(runs), "resamples": 100}


def found(capsys: pytest.CaptureFixture[str], **settings) -> dict:
    agree.run(agree.Config(**settings, json=True))
    return json.loads(capsys.readouterr().out)


def test_judgements_are_compared_where_both_judged():
    row = agree.compare_judgements(PEOPLE, MACHINE, level=2)
    assert (row["pairs"], row["queries"], row["only_reference"], row["only_other"]) == (5, 2, 2, 1)
    assert row["grades"] == [0, 1, 2]
    assert row["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 0, 2]]
    assert row["mean_grades"] == pytest.approx([1.0, 1.2])
    assert row["kappa"] == pytest.approx((4 / 5 - (2 * 1 + 1 * 2 + 2 * 2) / 25) / (1 - 8 / 25))
    assert row["kappa_binary"] == 1.0
    assert row["by_query"]["q2"] == {"kappa": 1.0, "kappa_binary": 1.0}
    assert row["by_query"]["q1"]["kappa"] == pytest.approx((2 / 3 - 3 / 9) / (1 - 3 / 9))


def test_a_level_that_divides_nothing_has_no_binary_kappa():
    for level in (0, 3):
        assert agree.compare_judgements(PEOPLE, MACHINE, level=level)["kappa_binary"] is None


def test_runs_are_ordered_by_both_sets_and_counted_in_four_cells():
    rng = np.random.default_rng(0)
    reference = rng.normal(0, 0.02, (4, 30)) + np.array([[0.4], [0.3], [0.2], [0.2]])
    other = rng.normal(0, 0.02, (4, 30)) + np.array([[0.3], [0.4], [0.2], [0.1]])
    cells = agree.significance_cells(reference, other, resamples=100)
    expected = {"both": 4, "missed": 0, "false": 1, "neither": 0, "opposite": 1}
    assert cells == dict.fromkeys(agree.SYSTEM_TESTS, expected)
    back = agree.significance_cells(other, reference, resamples=100)["t_test"]
    assert back == expected | {"missed": 1, "false": 0}
    row = agree.compare_runs(reference, other, list("abcd"), top=2, resamples=100)
    assert row["tau_top"] == -1.0
    assert {move["run"] for move in row["moves"][:2]} == {"a", "b"}


def test_the_command_prints_and_writes_the_same(files: dict, tmp_path: Path, capsys):
    told = found(capsys, **files, relevance_level=2, out=tmp_path / "agreement.json")
    assert json.loads((tmp_path / "agreement.json").read_text()) == told
    [row] = told["rows"]
    assert row["runs"]["tau"] == 1.0  # one before the others, by both
    assert sum(row["runs"]["significance"]["t_test"].values()) == 3
    agree.run(agree.Config(**files, relevance_level=2, out=tmp_path / "agreement.json", details=True))
    printed = capsys.readouterr().out
    assert "0.706" in printed
    assert "paired t-test, Holm-corrected" in printed
    assert "the runs that move most" in printed


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"judgements": ()}, "--judgements names 0 file"),
        ({"runs": (Path("one.trec"),)}, "--runs names 1 file"),
        ({"top": 1}, "--top is 1; expected 2 or more"),
        ({"measure": "nDGC"}, "unknown measure 'nDGC'"),
    ],
)
def test_wrong_settings_are_refused(files: dict, settings: dict, words: str):
    with pytest.raises(UserError, match=words):
        agree.run(agree.Config(**files | settings))


def test_judgements_of_another_collection_and_other_runs_are_refused(files: dict, tmp_path: Path):
    write_qrels(tmp_path / "other.tsv", {"q1": {"z": 1}})
    with pytest.raises(UserError, match=r"other.tsv: judges no document that .*people.tsv judges"):
        agree.run(agree.Config(**files | {"judgements": (files["judgements"][0], tmp_path / "other.tsv")}))
    write_run(tmp_path / "other.trec", {"x": [Hit("a", 1.0)]})
    with pytest.raises(UserError, match=r"other.trec: none of its query ids \(first 'x'\) is judged"):
        agree.run(agree.Config(**files | {"runs": (*files["runs"], tmp_path / "other.trec")}))


@pytest.mark.slow
def test_seven_machine_judges_of_dl19_agree_with_people_as_measured_before(shared_data: Path):
    people = read_qrels(shared_data / "trec-dl/qrels/qrels.dl19-passage.txt")
    folder = shared_data / "dl19-judges"
    machines = {name: read_qrels(folder / f"{name}.qrels") for name in DL19}
    runs = [read_run_columns(path) for path in sorted((folder / "runs").iterdir())]
    assert len(runs) == 37
    sides = {
        name: np.array([list(per_query(run, qrels, "nDCG@10", complete=True)["nDCG@10"].values()) for run in runs])
        for name, qrels in {"people": people, **{name: {q: machines[name][q] for q in people} for name in DL19}}.items()
    }
    for name, expected in DL19.items():
        judges = agree.compare_judgements(people, machines[name], level=2)
        orders = agree.compare_runs(sides["people"], sides[name], list(map(str, range(37))), resamples=100)
        cells = orders["significance"]["t_test"]
        kappas = (judges["kappa"], judges["kappa_binary"])
        assert (orders["tau"], orders["tau_top"], *kappas) == pytest.approx(expected[:4], abs=0.0005), name
        assert (cells["both"], cells["missed"], cells["false"]) == expected[4:], name
        assert cells["opposite"] == 0
