"""The table of kinds of index: what is in it is there, and what is added to it works everywhere."""

import ast
import inspect
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from tiny import write_collection

from shortlist import index
from shortlist.cli import main
from shortlist.data.runs import read_run
from shortlist.errors import UserError
from shortlist.index.kinds import INDEXES, IndexKind, find_kind
from shortlist.index.opening import kind_of, needs_model, open_index
from shortlist.index.protocols import FirstStage, Opening
from shortlist.records import Document, Hit, Query, Run

LATE = [
    (name, function)
    for name, kind in INDEXES.items()
    for function in (kind.build, kind.open, kind.footprint, kind.growth, kind.scoring, kind.writing, kind.forecast)
    if getattr(function, "args", None)
]


class Overlap:
    """Counts the words that a query and a document share."""

    def __init__(self, words: Mapping[str, list[str]], most: int) -> None:
        self.words, self.most = words, most

    def search(self, queries: list[Query], k: int) -> Run:
        run: Run = {}
        for query in queries:
            shared = {doc_id: len({*query.text.split()} & {*words}) for doc_id, words in self.words.items()}
            best = sorted(shared, key=lambda doc_id: -shared[doc_id])[:k]
            run[query.query_id] = [Hit(doc_id, min(shared[doc_id], self.most)) for doc_id in best if shared[doc_id]]
        return run


def build_toy(documents: Iterable[Document], folder: Path, *, k1: float, most: int = 9) -> dict[str, Any]:
    words = {document.doc_id: document.text.split() for document in documents}
    folder.mkdir(exist_ok=True)
    (folder / "words.json").write_text(json.dumps([words, most]))
    return {"num_docs": len(words), "k1": k1}


def open_toy(folder: Path, built: Mapping[str, Any], how: Opening) -> Overlap:
    assert (built["kind"], how) == ("toy", Opening())
    return Overlap(*json.loads((folder / "words.json").read_text()))


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = IndexKind(reads="corpus", build=build_toy, open=open_toy, settings=("k1",), parameters=("most",))
    monkeypatch.setitem(INDEXES, "toy", kind)


@pytest.mark.usefixtures("toy")
def test_a_kind_from_outside_is_built_searched_and_foretold_by_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    texts = ["--collection", str(write_collection(tmp_path / "collection"))]
    build = ["index", "--kind", "toy", *texts, "--out", str(tmp_path / "toy"), "--set", "most=2"]
    assert main([*build, "--dry-run"]) == 0
    assert "from building it over 12 documents here" in capsys.readouterr().out
    assert not (tmp_path / "toy").exists()
    assert main(build) == main(build) == 0
    assert "already done" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "toy/manifest.json").read_text())
    assert (manifest["results"]["num_docs"], manifest["results"]["k1"]) == (12, 0.9)
    search = ["search", "--index", str(tmp_path / "toy"), *texts, "--k", "3", "--out", str(tmp_path / "run.trec")]
    assert main(search) == 0
    run = read_run(tmp_path / "run.trec")
    assert {query_id: len(hits) for query_id, hits in run.items()} == {f"q{i}": 3 for i in range(12)}
    assert {round(hit.score, 3) for hits in run.values() for hit in hits} == {2}  # not 4, as --set has it
    assert kind_of(tmp_path / "toy") == "toy"
    assert not needs_model(tmp_path / "toy")
    assert isinstance(open_index(tmp_path / "toy"), FirstStage)


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "mots=2"], "unknown parameter of a toy index 'mots': perhaps 'most'?"),
        (["--check"], "--check compares an approximate index with exact search; toy is not over vectors."),
    ],
)
def test_what_a_kind_from_outside_does_not_have_is_refused(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    collection = write_collection(tmp_path / "collection")
    assert main(["index", "--kind", "toy", "--collection", str(collection), "--out", str(tmp_path / "t"), *flags]) == 1
    assert message in capsys.readouterr().err


def test_an_unknown_kind_is_answered_with_near_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["index", "--kind", "hsnw", "--out", str(tmp_path / "t")]) == 1
    assert "shortlist index: unknown kind of index 'hsnw': perhaps 'hnsw'?" in capsys.readouterr().err


def test_an_index_of_a_kind_that_is_gone_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kind = IndexKind(reads="corpus", build=build_toy, open=open_toy, settings=("k1",))
    with monkeypatch.context() as patch:
        patch.setitem(INDEXES, "toy", kind)
        collection = str(write_collection(tmp_path / "collection"))
        index.run(index.Config(kind="toy", collection=collection, out=tmp_path / "toy"))
    with pytest.raises(UserError, match="unknown kind of index 'toy'"):
        open_index(tmp_path / "toy")


@pytest.mark.parametrize(("name", "function"), LATE, ids=lambda value: value if isinstance(value, str) else "")
def test_every_function_of_the_table_is_there_and_takes_what_it_is_given(name: str, function: Any):
    module, called = function.args
    pytest.importorskip("pyarrow" if "lance" in module else "numpy")
    accepted = inspect.signature(getattr(import_module(module), called)).parameters
    given = {*function.keywords, *(find_kind(name).settings if "build" in called or "load" in called else ())}
    assert given <= accepted.keys()


def test_no_module_of_a_kind_imports_the_table():
    for module in {function.args[0] for _, function in LATE}:
        source = Path(__file__).parents[2].joinpath(*module.split(".")).with_suffix(".py").read_text("utf-8")
        imported = {
            node.module
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("shortlist.index")
        }
        assert not imported & {"shortlist.index", "shortlist.index.kinds", "shortlist.index.opening"}, module


def test_settings_are_those_of_the_stage():
    for name, kind in INDEXES.items():
        assert {*kind.settings} <= index.Config.__dataclass_fields__.keys(), name


def test_the_table_loads_no_kind():
    heavy = ("torch", "faiss", "bm25s", "lancedb", "pyarrow", "psycopg")
    program = f"import sys, shortlist.index.opening; print({{*{heavy}}} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
