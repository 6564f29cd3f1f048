"""A room imports itself and what is below it, never a neighbour and nothing above: so each can be read by itself."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "shortlist"
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")

LAYERS = [
    {"commands", "errors", "progress", "records", "version"},
    {"engine"},
    {"config", "math", "text"},
    {"data"},
    {"models"},
    {"evaluation", "index", "rerankers"},
    {"pipeline"},
    {"ask", "convert", "encode", "export", "fuse", "init", "inspect", "mine", "rerank", "search", "train"},
    {"recipe", "verify"},
    {"demo", "integrations", "serve"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}

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
    return {name.split(".")[1] for name in imports(source) if name.startswith("shortlist.")} - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_down(path: Path):
    room = path.with_suffix("").parts[0]
    others = rooms((ROOT / path).read_text("utf-8")) - {room}
    assert {other for other in others if LEVEL[other] >= LEVEL[room]} == set()


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "math"], ids=str)
def test_formulas_touch_neither_files_nor_clocks_nor_models(path: Path):
    names = imports((ROOT / path).read_text("utf-8"))
    assert {bad for bad in NOT_IN_MATH for name in names if f"{name}.".startswith(f"{bad}.")} == set()
    assert rooms((ROOT / path).read_text("utf-8")) <= {"math", "records"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_name_says_what_is_inside(path: Path):
    assert not {*path.with_suffix("").parts} & SAYS_NOTHING


def test_every_room_has_its_layer():
    assert {path.with_suffix("").parts[0] for path in FILES} == LEVEL.keys()


def test_all_ways_to_import_are_seen():
    source = "import shortlist.a.b\nfrom shortlist import c\ndef f():\n    from shortlist.d.e import g\n"
    assert rooms(source) == {"a", "c", "d"}
    assert imports("import os.path, json") == {"os.path", "json"}
