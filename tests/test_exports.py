"""The names and flags that others may use: a change here is a change of the interface, and belongs in CHANGELOG.md."""

import ast
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest
from sources import TREES

import shortlist
from shortlist.commands import COMMANDS
from shortlist.config import Marker, flag_of, markers
from shortlist.recipe import OUTPUTS

STAGE = {"Config", "run"}
"""What every stage has: its module's docstring says what it does, and `Config` says it field by field."""


def test_everything_public_says_what_it_is():
    for path, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node) or node.name in STAGE, f"{path}: {node.name}"


def test_every_setting_says_what_it_does():
    for path, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == "Config":
                kinds = [type(field) for field in node.body]
                assert kinds == [ast.AnnAssign, ast.Expr] * (len(node.body) // 2), path


def test_every_module_says_what_it_is_about():
    silent = {path for path, tree in TREES.items() if tree.body and not ast.get_docstring(tree)}
    assert silent <= {Path("__init__.py")}


PUBLIC = (
    "Answer BM25Index CrossEncoder Document FlatIndex Group Hit InputContract LateIndex LateRetriever Pipeline Query "
    "Reranker Result Retriever SparseIndex SparseRetriever TermReader TermWeights TermWriter TokenReader "
    "TokenVectors TokenWriter UserError VectorReader VectorWriter load_reranker open_collection open_groups "
    "per_query read_qrels read_run rrf write_corpus write_groups write_qrels write_queries write_run"
)
"""What `import shortlist` gives."""

FLAGS = Path(__file__).with_name("flags.txt")
"""Each command's flags, a line each; a setting without a flag is in capitals."""

NEVER_IN_JOB = {"out", "overwrite", "json", "csv", "latex", "dry_run"}


def config_of(command: str) -> type:
    return import_module(f"shortlist.{COMMANDS[command].module}").Config


def flags(command: str) -> list[str]:
    hints = get_type_hints(config_of(command), include_extras=True)
    positional = {name for name, hint in hints.items() if "Positional" in repr(hint)}
    names = [field.name for field in fields(config_of(command))]
    return [name.upper() if name in positional else flag_of(name) for name in names]


def test_the_flags_of_every_command_are_those_listed():
    listed = FLAGS.read_text("utf-8").splitlines()
    assert listed == sorted(listed)
    assert listed == sorted(f"{command} {flag}" for command in COMMANDS for flag in flags(command))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_marker_of_a_setting_is_a_known_one_and_stands_outermost(command: str):
    for name, hint in get_type_hints(config_of(command), include_extras=True).items():
        said = [each for each in getattr(hint, "__metadata__", ()) if not type(each).__module__.startswith("tyro")]
        assert len(said) <= 1, name
        assert all(isinstance(each, Marker) for each in said), name
        assert repr(hint).count("Marker.") == len(said), name


@pytest.mark.parametrize("command", OUTPUTS)
def test_where_an_output_goes_and_what_is_printed_is_no_part_of_a_job(command: str):
    assert NEVER_IN_JOB & {field.name for field in fields(config_of(command))} <= markers(config_of(command)).keys()


def test_the_package_itself_gives_the_names_listed():
    assert sorted(shortlist.__all__) == PUBLIC.split()
    assert {name for name in PUBLIC.split() if getattr(shortlist, name).__name__ != name} == set()
    assert set(PUBLIC.split()) <= set(dir(shortlist))


def test_type_checkers_see_the_same_names():
    [block] = [node for node in TREES[Path("__init__.py")].body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    commands = {name: seen.pop(name) for name in list(seen) if name in COMMANDS}
    assert seen == {name: f"shortlist.{home}" for home, names in shortlist.HOMES.items() for name in names.split()}
    for name, room in commands.items():
        assert f"{room}.{name}" == f"shortlist.{COMMANDS[name].module}"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])
def test_every_command_is_there_under_its_name(name: str):
    assert getattr(shortlist, name) is import_module(f"shortlist.{COMMANDS[name].module}")


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Retreiver'"):
        _ = shortlist.Retreiver
