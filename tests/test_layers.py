"""A room imports itself and what is below it, a file nothing that imports it: so each can be read by itself."""

import ast
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "shortlist"
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
MODULES = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path.as_posix() for path in FILES}
"""Name below the package -> file."""

LAYERS = [
    {"commands", "errors", "progress", "records", "version"},
    {"engine"},
    {"config", "math", "text"},
    {"data"},
    {"models"},
    {"evaluation", "index", "rerankers"},
    {"pipeline"},
    {"convert", "encode", "export", "fuse", "init", "inspect", "mine", "rerank", "search", "train"},
    {"recipe", "verify"},
    {"demo", "integrations", "serve"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}

KNOWN_UPWARD = {
    "pipeline.py -> search",
}
"""Imports of a room above that are still to go; one that has gone is struck off here."""

KNOWN_CIRCLES: set[str] = set()
"""Files that import each other still; one that does no more is struck off here."""

NOT_IN_MATH = {"os", "pathlib", "json", "logging", "time", "transformers", "torch.distributed"}
SAYS_NOTHING = {"utils", "util", "common", "helpers", "helper", "misc", "base"}


def imports(source: str) -> set[str]:
    """Dotted names of everything that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms(source: str) -> set[str]:
    return {name.split(".")[1] for name in imports(source) if name.startswith("shortlist.")}


def files(source: str) -> set[str]:
    """The files of the package that a file imports."""
    found = set()
    for name in imports(source):
        parts = name.split(".")
        if parts[0] == "shortlist":
            ends = (".".join(parts[1:end]) for end in range(len(parts), 1, -1))
            found.add(next(MODULES[end] for end in ends if end in MODULES))
    return found


def in_circles(graph: Mapping[str, Collection[str]]) -> set[str]:
    """The files that import, through whatever others, themselves."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        left = list(graph[start])
        while left:
            if (name := left.pop()) not in seen:
                seen.add(name)
                left += graph[name]
        return seen

    return {name for name in graph if name in reached(name)}


def test_imports_point_down():
    upward = set()
    for path in FILES:
        room = path.with_suffix("").parts[0]
        others = rooms((ROOT / path).read_text("utf-8")) - {room}
        upward |= {f"{path.as_posix()} -> {other}" for other in others if LEVEL[other] >= LEVEL[room]}
    assert upward == KNOWN_UPWARD


def test_no_file_imports_one_that_imports_it():
    assert in_circles({path.as_posix(): files((ROOT / path).read_text("utf-8")) for path in FILES}) == KNOWN_CIRCLES


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=str)
def test_a_rooms_first_file_is_its_stage_or_its_protocols_or_empty(path: Path):
    classes = [node for node in ast.parse((ROOT / path).read_text("utf-8")).body if isinstance(node, ast.ClassDef)]
    protocols = [node.name for node in classes if any("Protocol" in ast.unparse(base) for base in node.bases)]
    assert not protocols or "Config" not in {node.name for node in classes}


def test_circles_are_seen_however_long():
    assert in_circles({"a": ["b"], "b": ["c"], "c": ["b"], "d": ["d"], "e": []}) == {"b", "c", "d"}


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "math"], ids=str)
def test_formulas_touch_neither_files_nor_clocks_nor_models(path: Path):
    names = imports((ROOT / path).read_text("utf-8"))
    assert {bad for bad in NOT_IN_MATH for name in names if f"{name}.".startswith(f"{bad}.")} == set()
    assert rooms((ROOT / path).read_text("utf-8")) <= {"math", "records"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_name_says_what_is_inside(path: Path):
    assert not {*path.with_suffix("").parts} & SAYS_NOTHING


def test_every_room_has_its_layer():
    assert {path.with_suffix("").parts[0] for path in FILES} <= LEVEL.keys()


def test_all_ways_to_import_are_seen():
    source = "import shortlist.a.b\nfrom shortlist import c\ndef f():\n    from shortlist.d.e import g\n"
    assert rooms(source) == {"a", "c", "d"}
    source = "import shortlist.text.contract\ndef f():\n    from shortlist.serve import schema, Config\n"
    assert files(source) == {"text/contract.py", "serve/schema.py", "serve/__init__.py"}
    assert imports("import os.path, json") == {"os.path", "json"}
