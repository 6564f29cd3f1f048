import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import rankdata

import shortlist.select as select
from shortlist.data.collections import open_collection
from shortlist.data.exclusions import find_excluded
from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.data.groups import read_groups, write_groups
from shortlist.data.manifest import read_manifest
from shortlist.errors import UserError
from shortlist.math.importance import best_numbers, divergence
from shortlist.records import Document, Group, Query

FRUIT = ["ripe apple and pear", "a pear tree", "green apple"]
BOATS = ["the sail of a boat", "boat and harbour", "a mast"]


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Documents and queries of two sorts, and a document without words; even ones are about fruit."""
    folder = tmp_path / "pool"
    (folder / "qrels").mkdir(parents=True)
    texts = [(FRUIT, BOATS)[number % 2][number % 3] for number in range(12)] + [""]
    write_corpus(folder / "corpus.jsonl", [Document(f"d{n}", text) for n, text in enumerate(texts)])
    write_queries(folder / "queries.jsonl", [Query(f"q{n}", text) for n, text in enumerate(texts[:6])])
    write_qrels(folder / "qrels" / "train.tsv", {f"q{n}": {f"d{n}": 1, f"d{n + 6}": 0} for n in range(6)})
    (tmp_path / "like.txt").write_text("an apple\n\nthe pear and the apple\npear tree\n")
    return folder


def config(pool: Path, **change) -> select.Config:
    given = {"pool": str(pool), "like": str(pool.with_name("like.txt")), "size": 6, "out": pool.with_name("out")}
    return select.Config(**(given | change))


def test_documents_that_look_alike_are_kept_with_the_judgements_that_are_left(
    pool: Path, capsys: pytest.CaptureFixture[str]
):
    select.run(config(pool))
    out = pool.with_name("out")
    kept = open_collection(out)
    assert [document.doc_id for document in kept.corpus()] == ["d0", "d2", "d4", "d6", "d8", "d10"]
    assert kept.qrels("train") == {f"q{n}": {f"d{n}": 1, f"d{n + 6}": 0} for n in (0, 2, 4)}
    assert [query.query_id for query in kept.queries("train")] == ["q0", "q2", "q4"]
    weights = [line.split("\t") for line in (out / "weights.tsv").read_text().splitlines()]
    assert [name for name, _ in weights] == ["d0", "d2", "d4", "d6", "d8", "d10"]
    assert not list(out.glob("part-*"))
    assert capsys.readouterr().out.startswith("kept 6 of 13 documents, of weight ")
    results = (read_manifest(out) or {})["results"]
    assert results["without_words"] == 1
    assert results["divergence"].keys() == {"pool", "random", "kept"}


def test_queries_that_look_alike_are_kept_with_their_groups(pool: Path, capsys: pytest.CaptureFixture[str]):
    write_groups(pool.with_name("groups.jsonl"), [Group(f"q{n}", (f"d{n}",)) for n in range(6)])
    select.run(config(pool, size=3, what="queries", groups=pool.with_name("groups.jsonl"), json=True))
    out = pool.with_name("out")
    assert [query.query_id for query in open_collection(out).queries("train")] == ["q0", "q2", "q4"]
    assert open_collection(out).num_docs() == 13
    assert [group.query_id for group in read_groups(out / "groups.jsonl")] == ["q0", "q2", "q4"]
    assert json.loads(capsys.readouterr().out)["kept"] == 3


@pytest.mark.parametrize("what", ["documents", "queries"])
def test_a_selection_keeps_the_list_of_what_queries_may_not_find(pool: Path, what: Any):
    (pool / "exclude").mkdir()
    (pool / "exclude" / "train.tsv").write_text("q0 d2\n")
    select.run(config(pool, what=what, size=3))
    assert find_excluded(None, str(pool.with_name("out")), "train").by_query == {"q0": frozenset({"d2"})}
    (pool / "exclude" / "train.tsv").write_text("q0 d4\n")
    with pytest.raises(UserError, match="another job"):
        select.run(config(pool, what=what, size=3))


def test_an_interrupted_run_does_not_weigh_again(pool: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(select, "_PART", 5)
    write, weigh, weighed = select._WRITERS["documents"], select.weigh, []
    monkeypatch.setattr(select, "weigh", lambda *given, **named: weighed.append(1) or weigh(*given, **named))
    monkeypatch.setitem(select._WRITERS, "documents", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        select.run(config(pool))
    monkeypatch.setitem(select._WRITERS, "documents", write)
    monkeypatch.setattr(select, "bucket_counts", lambda *_: (np.zeros(10_000, np.int64), 0))
    select.run(config(pool))
    assert len(weighed) == 3  # 13 texts in parts of 5
    assert open_collection(pool.with_name("out")).num_docs() == 6


def test_a_sample_follows_its_seed(pool: Path):
    for number, seed in enumerate((0, 0, 1)):
        select.run(config(pool, out=pool.with_name(f"out{number}"), sample=5.0, seed=seed))
    first, again, other = (pool.with_name(f"out{number}") / "weights.tsv" for number in range(3))
    assert first.read_text() == again.read_text() != other.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "--size is 0"),
        ({"size": 12}, "--size is 12; .* has 12 documents with words, so expected fewer"),
        ({"smoothing": -1.0}, "--smoothing is -1"),
        ({"sample": 0.0}, "--sample is 0"),
        ({"buckets": 1}, "--buckets is 1"),
        ({"groups": Path("x")}, "--groups is for --what queries"),
        ({"like_split": "dev"}, "--like-split is for --what queries"),
        ({"like": "nowhere"}, "nowhere: no such collection"),
        ({"like": "nowhere.txt"}, "nowhere.txt: no such file"),
    ],
)
def test_what_cannot_be_selected_is_refused(pool: Path, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        select.run(config(pool, **change))


def test_a_target_without_words_and_groups_of_other_queries_are_refused(pool: Path):
    pool.with_name("empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="none of its 0 texts holds a word"):
        select.run(config(pool, like=str(pool.with_name("empty.txt"))))
    write_groups(pool.with_name("groups.jsonl"), [Group("other", ("d0",))])
    with pytest.raises(UserError, match="holds no group of a kept query"):
        select.run(config(pool, size=3, what="queries", groups=pool.with_name("groups.jsonl"), overwrite=True))


@pytest.fixture(scope="module")
def abstracts_and_passages(shared_data: Path) -> tuple[list[str], np.ndarray, list[str]]:
    """A pool of 2,000 SciFact abstracts and 2,000 MS MARCO passages, and 500 other abstracts."""
    abstracts = [f"{document.title} {document.text}" for document in open_collection(shared_data / "scifact").corpus()]
    passages = [document.text for document in open_collection(shared_data / "msmarco-dl19").corpus()]
    return abstracts[:2000] + passages[:2000], np.arange(4000) < 2000, abstracts[3000:3500]


def area(weights: np.ndarray, right: np.ndarray) -> float:
    """The area under the ROC curve."""
    num = int(right.sum())
    return float((rankdata(weights)[right].sum() - num * (num + 1) / 2) / (num * (len(right) - num)))


def area_of(pool: list[str], right: np.ndarray, target: list[str], *, buckets: int = 10_000, **how) -> float:
    bags = select.Bags(select.bucket_counts(target, buckets)[0], select.bucket_counts(pool, buckets)[0])
    return area(select.weigh(pool, bags, **how), right)


def test_whole_texts_are_told_apart_by_the_mean_and_not_by_the_sum(abstracts_and_passages):
    pool, right, target = abstracts_and_passages
    assert area_of(pool, right, target[:50], by="sum") < 0.25  # worse than chance: abstracts are longer
    assert 0.55 < area_of(pool, right, target, by="sum") < 0.7
    assert 0.75 < area_of(pool, right, target[:50]) < 0.85
    assert 0.95 < area_of(pool, right, target) < 0.98


def test_what_is_kept_diverges_less_from_the_target_than_the_pool(abstracts_and_passages):
    pool, right, target = abstracts_and_passages
    bags = select.Bags(select.bucket_counts(target, 10_000)[0], select.bucket_counts(pool, 10_000)[0])
    kept = best_numbers(select.weigh(pool, bags), 1000)
    counts, _ = select.bucket_counts([pool[number] for number in kept], 10_000)
    assert right[kept].mean() > 0.95
    assert divergence(bags.target, counts, smoothing=1.0) < divergence(bags.target, bags.pool, smoothing=1.0)


def test_smoothing_and_fewer_buckets_help_on_texts_of_50_words(abstracts_and_passages):
    def pieces(texts: list[str]) -> list[str]:
        return [" ".join(text.split()[:50]) for text in texts]

    pool, right, target = abstracts_and_passages
    long = np.array([len(text.split()) >= 50 for text in pool])
    texts, right = pieces([text for text, keep in zip(pool, long, strict=True) if keep]), right[long]
    assert area_of(texts, right, pieces(target), smoothing=0.0) == pytest.approx(0.89, abs=0.02)
    assert area_of(texts, right, pieces(target)) == pytest.approx(0.975, abs=0.01)
    assert area_of(texts, right, pieces(target), buckets=1000) == pytest.approx(0.93, abs=0.02)
