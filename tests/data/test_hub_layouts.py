"""Layouts of benchmarks on the hub, on small copies made here."""

import json
from pathlib import Path

import pytest

from shortlist.data.beir import BRIGHT, parts_of
from shortlist.data.collections import open_collection
from shortlist.data.hub_layouts import CORRECTED, ORIGINAL, Named, divide_name, which_judgements
from shortlist.errors import UserError
from shortlist.records import Document, Query


def hub_files(folder: Path, configs: dict[str, dict[str, list[dict]]]) -> str:
    """Write a data set with these configurations, each with tables by split."""
    lines = []
    for config, tables in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in tables.items():
            path = folder / config / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            lines.append(f"  - {{split: {split}, path: {config}/{split}.jsonl}}")
    (folder / "README.md").write_text("\n".join(["---", "configs:", *lines, "---"]) + "\n")
    return f"hf:{folder}"


PAPERS = [
    {
        "corpusid": 11,
        "title": "Sparse terms",
        "abstract": "Words with weights.",
        "citations": [12],
        "full_paper": "...",
    },
    {"corpusid": 12, "title": "Dense vectors", "abstract": None, "citations": [], "full_paper": "..."},
    {"corpusid": 13, "title": "Trees", "abstract": "A tree.", "citations": [11, 12], "full_paper": "..."},
]
ASKED = [
    {"query_set": "inline_acl", "query": "weighted words?", "specificity": 1, "quality": 2, "corpusids": [11]},
    {"query_set": "author_iclr", "query": "all kinds?", "specificity": 0, "quality": 1, "corpusids": [11, 12]},
]


@pytest.fixture
def litsearch(hub: Path) -> str:
    return hub_files(
        hub, {"query": {"full": ASKED}, "corpus_clean": {"full": PAPERS}, "corpus_s2orc": {"full": PAPERS}}
    )


def test_litsearch_gives_titles_abstracts_and_citations(litsearch):
    collection = open_collection(litsearch)
    first, second, _ = collection.corpus()
    assert first == Document("11", "Words with weights.", "Sparse terms", metadata={"citations": ["12"]})
    assert (second.text, second.metadata) == ("", {"citations": []})
    assert collection.documents(["13"])["13"].metadata == {"citations": ["11", "12"]}


def test_litsearch_divides_its_queries_by_each_of_their_fields(litsearch):
    collection = open_collection(litsearch)
    assert collection.splits() == [
        *("quality-1", "quality-2", "query_set-author_iclr", "query_set-inline_acl"),
        *("specificity-0", "specificity-1", "test"),
    ]
    assert collection.queries("test") == [Query("0", "weighted words?"), Query("1", "all kinds?")]
    assert collection.queries("specificity-0") == [Query("1", "all kinds?")]
    assert collection.qrels("specificity-0") == {"1": {"11": 1, "12": 1}}
    assert collection.qrels("quality-2") == {"0": {"11": 1}}
    assert len(collection.identity("corpus", "queries", "qrels/test")) == 64


def bright(folder: Path, **changed) -> str:
    example = {
        "query": "why?",
        "reasoning": "as",
        "id": "7",
        "excluded_ids": ["N/A"],
        "gold_ids": ["a.txt", "b.txt"],
        "gold_ids_long": ["ab.txt"],
        "gold_answer": "so",
    }
    other = example | {"id": "8", "query": "how?", "excluded_ids": ["a.txt", "c.txt"], "gold_ids": ["b.txt"]} | changed
    passages = [{"id": name, "content": f"text of {name}"} for name in ("a.txt", "b.txt", "c.txt")]
    rewritten = [example | {"query": "why, reasoned?"}, other | {"query": "how, reasoned?"}]
    return hub_files(
        folder,
        {
            "examples": {"biology": [example, other], "pony": [example]},
            "documents": {"biology": passages, "pony": passages[:2]},
            "long_documents": {"biology": [{"id": "ab.txt", "content": "long"}]},
            "gpt4_reason": {"biology": rewritten, "pony": rewritten[:1]},
        },
    )


def test_a_task_of_bright_is_a_collection(hub):
    collection = open_collection(f"{bright(hub)}/biology")
    assert [document.doc_id for document in collection.corpus()] == ["a.txt", "b.txt", "c.txt"]
    assert collection.splits() == ["gpt4_reason", "test"]
    assert [query.text for query in collection.queries("test")] == ["why?", "how?"]
    assert [query.text for query in collection.queries("gpt4_reason")] == ["why, reasoned?", "how, reasoned?"]
    assert collection.qrels("gpt4_reason") == {"7": {"a.txt": 1, "b.txt": 1}, "8": {"b.txt": 1}}
    assert collection.excluded("test") == {"8": ["a.txt", "c.txt"]}


def test_the_long_setting_of_bright_has_documents_and_judgements_of_its_own(hub):
    collection = open_collection(f"{bright(hub)}/biology/long")
    assert [document.text for document in collection.corpus()] == ["long"]
    assert collection.qrels("test") == {"7": {"ab.txt": 1}, "8": {"ab.txt": 1}}
    with pytest.raises(UserError, match=r"unknown task of .* with long documents 'pony'"):
        list(open_collection(f"{bright(hub)}/pony/long").corpus())


def test_bright_says_which_judgements_it_has(hub, capsys):
    collection = open_collection(f"{bright(hub)}/biology")
    collection.qrels("test")
    assert (
        "3 judgements, neither of its two sets (372 were published first, 393 after correction)"
        in capsys.readouterr().err
    )
    collection.qrels("test")
    assert not capsys.readouterr().err
    assert "372 judgements, the original ones" in which_judgements("biology", 372)
    assert "1,073 judgements, the corrected ones" in which_judgements("sustainable_living", 1073)
    assert ORIGINAL.keys() == CORRECTED.keys() < set(BRIGHT)


def test_names_of_benchmarks_are_divided():
    assert divide_name("xlangai/BRIGHT/biology/long") == Named("xlangai/BRIGHT", "biology", long=True)
    assert divide_name("/data/BRIGHT/pony") == Named("/data/BRIGHT", "pony")
    assert divide_name("somebody/biology") == Named("somebody/biology")
    assert parts_of("hf:xlangai/BRIGHT")[:2] == ["hf:xlangai/BRIGHT/biology", "hf:xlangai/BRIGHT/earth_science"]
    with pytest.raises(UserError, match="is 12 collections, and its score is the mean of theirs"):
        open_collection("hf:xlangai/BRIGHT")


def test_a_benchmark_that_cannot_be_read_is_one_line(hub, litsearch):
    with pytest.raises(UserError, match="has no configurations examples and documents, as BRIGHT has; found corpus_c"):
        open_collection(f"{litsearch}/biology")
    name = bright(hub, gold_ids="b.txt")
    with pytest.raises(UserError, match=r"has 12 tasks; name one, such as hf:.*/biology"):
        open_collection(name)
    with pytest.raises(UserError, match="'gold_ids' of the query is a str; expected a list of document ids"):
        open_collection(f"{name}/biology").queries("test")


def future_queries(folder: Path) -> str:
    folder.mkdir()
    (folder / "corpus.tsv").write_text(
        'doc_id\ttitle\ttext\turl\n1\tA "title\tone text\thttps://a\n2\t\tother text\t\n'
    )
    (folder / "queries.tsv").write_text(
        "query_id\tquery_text\tcategory\n5\twho won?\tSports\n6\twhich law?\tPolitics\n"
    )
    (folder / "queries.csv").write_text("query_id,query_text\n5,other columns\n")
    (folder / "qrels.txt").write_text("5 0 1 2\n5 0 2 0\n6 0 2 1\n")
    return f"hf:{folder}"


def test_future_query_eval_is_read_from_its_files(hub):
    collection = open_collection(future_queries(hub))
    assert list(collection.corpus()) == [
        Document("1", "one text", 'A "title', "https://a"),
        Document("2", "other text"),
    ]
    assert collection.splits() == ["category-Politics", "category-Sports", "test"]
    assert collection.queries("category-Sports") == [Query("5", "who won?")]
    assert collection.qrels("test") == {"5": {"1": 2, "2": 0}, "6": {"2": 1}}
    assert collection.qrels("category-Politics") == {"6": {"2": 1}}
    (hub / "qrels.txt").write_text("5 0 1 x\n")
    with pytest.raises(UserError, match=r"record 1: relevance is 'x'"):
        open_collection(f"hf:{hub}").qrels("test")
