"""A room imports itself and what is below it, a file nothing that imports it: so each can be read by itself."""

import ast
from collections.abc import Collection, Mapping
from pathlib import Path

from sources import TREES

FILES = [path for path in TREES if path != Path("__init__.py")]
MODULES = {".".join(path.with_suffix("").parts).removesuffix(".__init__"): path.as_posix() for path in FILES}
"""Name below the package -> file."""

LAYERS = [
    {"commands", "cores", "errors", "late", "progress", "version"},
    {"records", "together"},
    {"engine"},
    {"config", "math", "text"},
    {"data"},
    {"models"},
    {"evaluation", "rerankers"},
    {"index"},
    {"settings"},
    {"encode"},
    {"pipeline"},
    {
        "ask",
        "aspects",
        "average",
        "convert",
        "cut",
        "diversify",
        "export",
        "fuse",
        "heads",
        "init",
        "inspect",
        "judge",
        "mine",
        "follow",
        "mix",
        "pool",
        "preferences",
        "prune",
        "queries",
        "rerank",
        "search",
        "select",
        "train",
        "tune",
    },
    {"foresight"},
    {"recipe", "verify"},
    {"demo", "integrations", "serve"},
    {"mcp"},
    {"completion"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}

NOT_IN_MATH = {"os", "pathlib", "json", "logging", "time", "transformers", "torch.distributed"}
SAYS_NOTHING = {"utils", "util", "common", "helpers", "helper", "misc", "base"}


def imports(tree: ast.Module) -> set[str]:
    """Dotted names of everything that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms(tree: ast.Module) -> set[str]:
    return {name.split(".")[1] for name in imports(tree) if name.startswith("shortlist.")}


def files(tree: ast.Module) -> set[str]:
    """The files of the package that a file imports."""
    found = set()
    for name in imports(tree):
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
        others = rooms(TREES[path]) - {room}
        upward |= {f"{path.as_posix()} -> {other}" for other in others if LEVEL[other] >= LEVEL[room]}
    assert upward == set()


def test_no_file_imports_one_that_imports_it():
    assert in_circles({path.as_posix(): files(TREES[path]) for path in FILES}) == set()


def test_a_rooms_first_file_is_its_stage_or_its_protocols_or_empty():
    for path in [path for path in FILES if path.name == "__init__.py"]:
        classes = [node for node in TREES[path].body if isinstance(node, ast.ClassDef)]
        protocols = [node.name for node in classes if any("Protocol" in ast.unparse(base) for base in node.bases)]
        assert not protocols or "Config" not in {node.name for node in classes}, path


def test_circles_are_seen_however_long():
    assert in_circles({"a": ["b"], "b": ["c"], "c": ["b"], "d": ["d"], "e": []}) == {"b", "c", "d"}


def test_formulas_touch_neither_files_nor_clocks_nor_models():
    for path in [path for path in FILES if path.parts[0] == "math"]:
        names = imports(TREES[path])
        assert {bad for bad in NOT_IN_MATH for name in names if f"{name}.".startswith(f"{bad}.")} == set(), path
        assert rooms(TREES[path]) <= {"math", "records"}, path


def test_every_name_says_what_is_inside():
    assert [path for path in FILES if {*path.with_suffix("").parts} & SAYS_NOTHING] == []


def test_every_room_has_its_layer():
    assert {path.with_suffix("").parts[0] for path in FILES} <= LEVEL.keys()


def test_all_ways_to_import_are_seen():
    tree = ast.parse("import shortlist.a.b\nfrom shortlist import c\ndef f():\n    from shortlist.d.e import g\n")
    assert rooms(tree) == {"a", "c", "d"}
    tree = ast.parse("import shortlist.text.contract\ndef f():\n    from shortlist.serve import schema, Config\n")
    assert files(tree) == {"text/contract.py", "serve/schema.py", "serve/__init__.py"}
    assert imports(ast.parse("import os.path, json")) == {"os.path", "json"}


def test_every_function_that_is_imported_late_is_there():
    wrong = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "late":
                module, function = (ast.literal_eval(argument) for argument in node.args)
                there = TREES[Path(MODULES[module])].body if module in MODULES else []
                if not any(isinstance(one, ast.FunctionDef) and one.name == function for one in there):
                    wrong.append(f"{path}:{node.lineno}: {module}.{function}")
    assert wrong == []
