"""The names that others may use: a change here is a change of the interface, and belongs in CHANGELOG.md."""

import ast
from pathlib import Path

import pytest

import shortlist

ROOT = Path(__file__).parents[1] / "shortlist"
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
STAGE = {"Config", "run"}
"""What every stage has: its module's docstring says what it does, and `Config` says it field by field."""


def body(path: Path) -> list[ast.stmt]:
    return ast.parse((ROOT / path).read_text("utf-8")).body


@pytest.mark.parametrize("path", FILES, ids=str)
def test_everything_public_says_what_it_is(path: Path):
    for node in body(path):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node) or node.name in STAGE, node.name


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_setting_says_what_it_does(path: Path):
    for node in body(path):
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            assert [type(field) for field in node.body] == [ast.AnnAssign, ast.Expr] * (len(node.body) // 2)


@pytest.mark.parametrize("path", [path for path in FILES if body(path)], ids=str)
def test_every_module_says_what_it_is_about(path: Path):
    assert ast.get_docstring(ast.parse((ROOT / path).read_text("utf-8"))) or path == Path("__init__.py")


PUBLIC = (
    "Answer BM25Index CrossEncoder Document FlatIndex Group Hit InputContract Pipeline Query Reranker Result Retriever "
    "UserError VectorReader VectorWriter open_collection open_groups per_query read_qrels read_run rrf write_corpus "
    "write_groups write_qrels write_queries write_run"
)
"""What `import shortlist` gives."""


def test_the_package_itself_gives_the_names_listed():
    assert sorted(shortlist.__all__) == PUBLIC.split()
    assert {name for name in PUBLIC.split() if getattr(shortlist, name).__name__ != name} == set()
    assert set(PUBLIC.split()) <= set(dir(shortlist))


def test_type_checkers_see_the_same_names():
    [block] = [node for node in body(Path("__init__.py")) if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == {name: f"shortlist.{home}" for home, names in shortlist.HOMES.items() for name in names.split()}


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Retreiver'"):
        _ = shortlist.Retreiver
