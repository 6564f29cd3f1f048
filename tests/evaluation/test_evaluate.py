import json
import random
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from shortlist.data.exclusions import Excluded
from shortlist.data.formats import write_qrels
from shortlist.data.runs import read_run, write_run
from shortlist.errors import UserError
from shortlist.evaluation import evaluate
from shortlist.evaluation.evaluate import difference
from shortlist.evaluation.every_pair import PAIR_TESTS, better_and_worse
from shortlist.math.concordance import rank_biased_overlap
from shortlist.math.significance import randomisation_test
from shortlist.records import Hit

QRELS = {"q1": {"a": 2, "b": 1, "c": 0}, "q2": {"a": 1}, "q3": {"b": 1}}
RUN = {"q1": [Hit("c", 3.0), Hit("a", 2.0), Hit("b", 1.0)], "q2": [Hit("a", 9.0)], "q9": [Hit("a", 1.0)]}
WORSE = {"q1": [Hit("c", 3.0), Hit("x", 2.0), Hit("b", 1.0)], "q2": [Hit("b", 9.0), Hit("a", 1.0)]}


@pytest.fixture
def files(tmp_path: Path) -> dict:
    write_run(tmp_path / "run.trec", RUN)
    write_run(tmp_path / "worse.trec", WORSE)
    write_qrels(tmp_path / "qrels.tsv", QRELS)
    return {"runs": (tmp_path / "run.trec", tmp_path / "worse.trec"), "qrels": tmp_path / "qrels.tsv"}


def printed(capsys: pytest.CaptureFixture[str], **settings) -> list[dict]:
    evaluate.run(evaluate.Config(**settings, json=True))
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_difference_is_that_of_the_queries_both_have():
    rng = random.Random(1)
    first = {f"q{i}": rng.random() for i in range(30)}
    second = {query_id: value + rng.gauss(0.05, 0.1) for query_id, value in reversed(first.items())}
    each = np.array([second[query_id] - first[query_id] for query_id in first])
    found = difference(second | {"other": 9.0}, first | {"another": 9.0}, resamples=2000)
    assert found["queries"] == 30
    assert found["mean"] == pytest.approx(each.mean())
    assert found["t_test"] == pytest.approx(stats.ttest_1samp(each, 0).pvalue)
    assert found["randomisation"] == randomisation_test(each, resamples=2000)
    assert found["interval"][0] < each.mean() < found["interval"][1]


def test_a_difference_over_one_query_or_none_has_no_tests():
    assert difference({"a": 0.5, "b": 0.1}, {"a": 0.5, "c": 0.1})["t_test"] is None
    assert difference({"b": 0.1}, {"c": 0.1})["mean"] is None


def test_differences_of_what_is_added_up_are_added_up():
    found = difference({"a": 3.0, "b": 5.0}, {"a": 1.0, "b": 3.0}, summed=True)
    assert (found["mean"], found["interval"]) == (4.0, (4.0, 4.0))


def test_json_has_one_object_per_run(files: dict, capsys: pytest.CaptureFixture[str]):
    first, second = printed(capsys, **files, measures=("MRR@10",))
    assert (first["run"], first["MRR@10"], first["queries"]) == (str(files["runs"][0]), 0.75, 2)
    assert second["MRR@10"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert "difference" not in first
    assert second["difference"]["MRR@10"]["mean"] == pytest.approx(second["MRR@10"] - 0.75)
    assert 0 < second["difference"]["MRR@10"]["t_test"] < 1
    assert (first["judged"], first["holes"], second["holes"]) == (1.0, 0, 2)


def test_every_run_is_compared_with_the_first(files: dict, capsys: pytest.CaptureFixture[str]):
    first, worse = files["runs"]
    rows = printed(capsys, runs=(first, worse, worse, first), qrels=files["qrels"], measures=("MRR@10",))
    compared = [row["difference"]["MRR@10"] for row in rows[1:]]
    assert compared[0] == compared[1]
    assert compared[0]["t_test_holm"] == pytest.approx(min(1.0, 3 * compared[0]["t_test"]))
    assert compared[2]["t_test"] == compared[2]["t_test_holm"] == 1.0


def test_flags_change_what_counts(files: dict, capsys: pytest.CaptureFixture[str]):
    settings = files | {"runs": files["runs"][:1], "measures": ("RR",)}
    assert printed(capsys, **settings, complete=True)[0]["RR"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert printed(capsys, **settings, relevance_level=2)[0]["RR"] == pytest.approx((0.5 + 0) / 2)


def test_a_collection_gives_judgements_too(files: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_qrels(tmp_path / "collection" / "qrels" / "test.tsv", QRELS)
    (tmp_path / "collection" / "corpus.jsonl").write_text('{"_id": "a", "text": "a"}\n')
    (tmp_path / "collection" / "queries.jsonl").write_text('{"_id": "q1", "text": "a"}\n')
    settings = {"runs": files["runs"], "measures": ("MRR@10",)}
    assert printed(capsys, **settings, collection=str(tmp_path / "collection")) == printed(
        capsys, **settings, qrels=files["qrels"]
    )


def test_ties_follow_trec_eval_or_the_rank_column(files: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "ties.trec").write_text("q2 Q0 a 1 5 x\nq2 Q0 b 2 5 x\n")
    settings = {"runs": (tmp_path / "ties.trec",), "qrels": files["qrels"], "measures": ("RR",)}
    assert printed(capsys, **settings, ties="rank")[0]["RR"] == 1.0
    assert printed(capsys, **settings, ties="trec")[0]["RR"] == 0.5


def test_queries_that_do_not_count_are_reported(files: dict, capsys: pytest.CaptureFixture[str]):
    evaluate.run(evaluate.Config(**files))
    err = capsys.readouterr().err
    assert "1 of 3 judged queries are not in the run: left out" in err
    assert "1 of 3 queries are not judged" in err


def test_a_run_that_meets_no_judgement_is_refused(files: dict, tmp_path: Path):
    write_run(tmp_path / "other.trec", {"Q-1": RUN["q1"]})
    with pytest.raises(UserError, match=r"'Q-1'.*'q1'"):
        evaluate.run(evaluate.Config(runs=(tmp_path / "other.trec",), qrels=files["qrels"]))


def test_documents_that_nobody_judged_are_reported(files: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_run(tmp_path / "other.trec", {"q1": [Hit("D-1", 1.0)]})
    evaluate.run(evaluate.Config(runs=(tmp_path / "other.trec",), qrels=files["qrels"]))
    assert "'D-1' in the run, 'a' judged" in capsys.readouterr().err


def test_the_table_shows_names_values_significance_and_time(files: dict, capsys: pytest.CaptureFixture[str]):
    manifest = {"job": "x", "complete": True, "stage": "search", "results": {"ms_per_query": 12.34}}
    path = files["runs"][1]
    path.with_name(path.name + ".manifest.json").write_text(json.dumps(manifest))
    evaluate.run(evaluate.Config(**files, names=("BM25", "dense"), measures=("RR@10",)))
    out = capsys.readouterr().out
    assert all(words in out for words in ("BM25", "dense", "RR@10", "0.7500", "0.4167 (p=", "ms/query", "12.3"))


def test_a_name_says_the_weights_that_were_chosen(files: dict, capsys: pytest.CaptureFixture[str]):
    manifest = {"job": "x", "complete": True, "stage": "fuse", "results": {"weights": [0.55, 0.45]}}
    path = files["runs"][1]
    with pytest.raises(UserError, match=r"worse.trec: has no weights for the name 'mixed \{weights\}'"):
        evaluate.run(evaluate.Config(**files, names=("BM25", "mixed {weights}")))
    path.with_name(path.name + ".manifest.json").write_text(json.dumps(manifest))
    evaluate.run(evaluate.Config(**files, names=("BM25", "mixed {weights}")))
    assert "mixed 0.55 : 0.45" in capsys.readouterr().out


def test_the_output_says_what_counts_as_relevant(files: dict, capsys: pytest.CaptureFixture[str]):
    evaluate.run(evaluate.Config(**files, relevance_level=2))
    assert "relevant: grade 2 and above" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"measures": ("RR@10",)}, True),
        ({"measures": ("nDCG@10",)}, False),
        ({"measures": ("RR(rel=2)@10",)}, False),
        ({"measures": ("RR@10",), "relevance_level": 2}, False),
    ],
)
def test_grades_that_a_measure_ignores_are_pointed_at(files: dict, capsys, settings: dict, expected: bool):
    evaluate.run(evaluate.Config(**files, **settings))
    assert ("grades go up to 2" in capsys.readouterr().err) == expected


def test_details_show_intervals_and_both_tests(files: dict, capsys: pytest.CaptureFixture[str]):
    evaluate.run(evaluate.Config(**files, names=("BM25", "dense"), measures=("RR@10",), details=True))
    out = capsys.readouterr().out
    assert all(words in out for words in ("p randomisation", "0.5000 to 1.0000", "-0.3333"))


@pytest.mark.parametrize("name", ["values.tsv", "values.json"])
def test_the_value_of_every_query_is_written(files: dict, tmp_path: Path, capsys, name: str):
    settings = files | {"names": ("BM25", "dense"), "measures": ("RR@10", "P@1"), "per_query": tmp_path / name}
    for _ in range(2):  # with --out it is written again, though the measuring is done
        evaluate.run(evaluate.Config(**settings, out=tmp_path / "results.json"))
        text = (tmp_path / name).read_text()
        (tmp_path / name).unlink()
    if name.endswith(".json"):
        assert json.loads(text)["dense"]["RR@10"] == {"q1": 1 / 3, "q2": 0.5}
    else:
        lines = [line.split("\t") for line in text.splitlines()]
        assert lines[0] == ["run", "measure", "query_id", "value"]
        assert ["dense", "RR@10", "q1", repr(1 / 3)] in lines
        assert len(lines) == 1 + 2 * 2 * 2


def test_results_are_written_once_and_printed_again(files: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = files | {"names": ("BM25", "dense"), "measures": ("MRR@10",), "out": tmp_path / "results.json"}
    rows = printed(capsys, **settings)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["measures"] == ["MRR@10"]
    assert results["queries"] == 3
    assert [(row["name"], row["MRR@10"]) for row in results["rows"]] == [(row["name"], row["MRR@10"]) for row in rows]
    assert printed(capsys, **settings) == rows
    with pytest.raises(UserError, match="another job"):
        evaluate.run(evaluate.Config(**(settings | {"complete": True})))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": ()}, "--runs"),
        ({"measures": ()}, "--measures"),
        ({"names": ("one",)}, "1 names for 2 runs"),
        ({"names": ("one", "one"), "per_query": Path("values.tsv")}, "tell them apart"),
        ({"resamples": 9}, "--resamples is 9"),
        ({"judged_at": 0}, "--judged-at 0"),
        ({"qrels": None}, "either --qrels"),
        ({"collection": "c"}, "not both"),
        ({"qrels": Path("absent.tsv")}, "absent.tsv"),
        ({"runs": (Path("absent.trec"),)}, "absent.trec"),
    ],
)
def test_settings_that_make_no_sense_are_refused(files: dict, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        evaluate.run(evaluate.Config(**(files | change)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ties", "expected"),
    [("repllama-1000", "rank", 0.7439), ("repllama-1000", "trec", 0.7384), ("bm25-100", "trec", 0.5058)],
)
def test_published_runs_have_their_published_values(
    shared_data: Path, capsys: pytest.CaptureFixture[str], name: str, ties: str, expected: float
):
    folder = shared_data / "msmarco-dl19"
    settings = {"runs": (folder / "runs" / f"{name}.trec",), "qrels": folder / "qrels" / "dl19.tsv"}
    (row,) = printed(capsys, **settings, measures=("nDCG@10",), ties=ties)
    assert row["nDCG@10"] == pytest.approx(expected, abs=5e-5)
    assert row["queries"] == 43


@pytest.mark.slow
def test_runs_of_any_form_have_the_same_values(shared_data: Path, tmp_path: Path, capsys):
    folder = shared_data / "msmarco-dl19"
    run = read_run(folder / "runs" / "bm25-100.trec")
    forms = {
        "scores.tsv": lambda q, hit, rank: f"{q}\t{hit.doc_id}\t{hit.score!r}\n",
        "ranks.tsv": lambda q, hit, rank: f"{q}\t{hit.doc_id}\t{rank}\n",
    }
    for name, line in forms.items():
        lines = [line(q, hit, rank) for q, hits in run.items() for rank, hit in enumerate(hits, 1)]
        (tmp_path / name).write_text("".join(lines))
    paths = (folder / "runs" / "bm25-100.trec", *(tmp_path / name for name in forms))
    rows = printed(capsys, runs=paths, qrels=folder / "qrels" / "dl19.tsv", measures=("nDCG@10", "AP"))
    assert len({(row["nDCG@10"], row["AP"], row["holes"]) for row in rows}) == 1


def test_condensed_lists_stand_beside_the_plain_measure(files: dict, capsys):
    _, worse = printed(capsys, **files, measures=("RR@10",), condensed=True)
    assert worse["RR@10"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert worse["RR(judged_only=True)@10"] == pytest.approx((1 / 2 + 1) / 2)  # x of q1 and b of q2 are dropped
    evaluate.run(evaluate.Config(**files, measures=("RR@10",), condensed=True))
    assert "RR(judged_only=True)@10" in capsys.readouterr().out


@pytest.mark.parametrize("test", PAIR_TESTS)
def test_all_pairs_of_runs_are_compared(files: dict, capsys, test: str):
    runs, names = (*files["runs"], files["runs"][0]), ("one", "worse", "same")
    settings = {"runs": runs, "names": names, "qrels": files["qrels"], "measures": ("RR@10",), "pairs": test}
    *rows, told = printed(capsys, **settings, resamples=200)
    assert len(rows) == 3
    [first, same, last] = told["pairs"]["by_measure"]["RR@10"]
    assert (first["runs"], same["runs"], last["runs"]) == (["one", "worse"], ["one", "same"], ["worse", "same"])
    assert first["difference"] == pytest.approx(0.75 - (1 / 3 + 1 / 2) / 2)
    assert (same["p"], first["p"]) == (1.0, pytest.approx(last["p"]))
    assert first["p"] < 1.0 or test == "randomisation"  # 2 queries, and Holm's correction of 3 pairs
    evaluate.run(evaluate.Config(**settings, resamples=200))
    assert "0 of 3 pairs differ" in capsys.readouterr().out


def test_runs_are_counted_as_better_worse_and_neither():
    pairs = [
        {"runs": ["a", "b"], "difference": 0.2, "p": 0.01},
        {"runs": ["a", "c"], "difference": -0.3, "p": 0.04},
        {"runs": ["b", "c"], "difference": -0.1, "p": 0.05},
    ]
    assert better_and_worse(pairs) == {"a": [1, 1, 0], "b": [0, 1, 1], "c": [1, 0, 1]}


def test_a_reproduction_is_compared_hit_by_hit_and_query_by_query(files: dict, capsys):
    first, worse = printed(capsys, **files, measures=("RR@10",), reproductions=True)
    assert "reproduction" not in first
    squares = (1 / 2 - 1 / 3) ** 2, (1 - 1 / 2) ** 2
    assert worse["reproduction"]["rmse"]["RR@10"] == pytest.approx((sum(squares) / 2) ** 0.5)
    overlaps = [rank_biased_overlap(np.array(a), np.array(b)) for a, b in (([0, 1, 2], [0, 3, 2]), ([1], [2, 1]))]
    assert worse["reproduction"]["rbo"] == pytest.approx(np.mean(overlaps))
    same = printed(capsys, **files | {"runs": files["runs"][:1] * 2, "names": ("a", "b")}, reproductions=True)[1]
    assert same["reproduction"]["rbo"] == pytest.approx(1.0)
    evaluate.run(evaluate.Config(**files, measures=("RR@10",), reproductions=True))
    assert "as reproductions of" in capsys.readouterr().out


def test_aspects_are_measured_by_judgements_with_aspects(files: dict, tmp_path: Path, capsys):
    (tmp_path / "aspects.txt").write_text("q a A 1\nq b B 1\nq c C 1\nq b D 1\nq a B 0\n")
    write_run(tmp_path / "run.trec", {"q": [Hit(doc_id, -float(rank)) for rank, doc_id in enumerate("ADEB")]})
    settings = {"runs": (tmp_path / "run.trec",), "aspects": tmp_path / "aspects.txt"}
    names = ("alpha_nDCG@5", "ERR_IA@5", "StRecall@5", "P@4", "alpha_nDCG(alpha=0)@5")
    [row] = printed(capsys, **settings, measures=names)
    assert [row[name] for name in names[:3]] == pytest.approx([0.7869, 0.3933, 2 / 3], abs=5e-5)
    assert row["P@4"] == 3 / 4
    assert row[names[4]] == pytest.approx(
        (1 + 1 / np.log2(3) + 1 / np.log2(5)) / (1 + 1 / np.log2(3) + 1 / 2 + 1 / np.log2(5))
    )


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("q 0 A 1", "its second column names no aspect"),
        ("q a A", "aspects.txt:1: expected 4 columns"),
        ("q a A 1\nq a A 0", "aspects.txt:2: document 'A' is judged twice for aspect 'a'"),
    ],
)
def test_judgements_without_aspects_are_refused(files: dict, tmp_path: Path, lines: str, words: str):
    (tmp_path / "aspects.txt").write_text(lines + "\n")
    with pytest.raises(UserError, match=words):
        evaluate.run(evaluate.Config(**files, aspects=tmp_path / "aspects.txt", measures=("ERR_IA@10",)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"measures": ("ERR_IA@10",)}, "needs judgements by aspect; name their file with --aspects"),
        ({"aspects": Path("aspects.txt")}, "--aspects without a measure that reads them"),
        ({"pairs": "tukey", "names": ("a", "a")}, "--pairs: two runs have the same name"),
    ],
)
def test_settings_that_lack_another_are_refused(files: dict, settings: dict, words: str):
    with pytest.raises(UserError, match=words):
        evaluate.run(evaluate.Config(**files | settings))


def test_all_pairs_of_one_run_are_refused(files: dict):
    with pytest.raises(UserError, match="--pairs with 1 run"):
        evaluate.run(evaluate.Config(**files | {"runs": files["runs"][:1]}, pairs="tukey"))


def test_excluded_documents_do_not_count_in_runs_or_judgements(tmp_path: Path, capsys):
    write_qrels(tmp_path / "qrels.tsv", {"q1": {"a": 1, "b": 1}, "q2": {"a": 1}})
    run = {query_id: [Hit(doc_id, -float(rank)) for rank, doc_id in enumerate("xab")] for query_id in ("q1", "q2")}
    write_run(tmp_path / "run.trec", run)
    (tmp_path / "list.jsonl").write_text(
        '{"id": "q1", "excluded_ids": ["x", "b"]}\n{"id": "q2", "excluded_ids": ["N/A"]}\n'
    )
    how = {
        "runs": (tmp_path / "run.trec",),
        "qrels": tmp_path / "qrels.tsv",
        "measures": ("RR@10", "R@10"),
        "details": True,
    }
    values = tmp_path / "values.json"
    evaluate.run(evaluate.Config(**how, exclude=tmp_path / "list.jsonl", per_query=values))
    [found] = json.loads(values.read_text()).values()
    assert found == {"RR@10": {"q1": 1.0, "q2": 0.5}, "R@10": {"q1": 1.0, "q2": 1.0}}
    assert "2 hits do not count" in capsys.readouterr().err


def test_the_list_of_a_collection_is_looked_up_once(files: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    looked_up = []
    monkeypatch.setattr(evaluate, "find_excluded", lambda *how: looked_up.append(how) or Excluded())
    evaluate.run(evaluate.Config(**files, out=tmp_path / "found.json"))
    assert len(looked_up) == 1
