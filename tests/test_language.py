"""Names and docstrings: one meaning, one name; and a first line that is read once."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

from sources import TREES

MOST_WORDS = 15
DANGLING = re.compile(
    r"(Of|What|That|Those|As|For|From|To|In|Which|How|By|With|And|Or|Where|When|Why|It|Its|Their|They)\b"
)
"""First words that leave the reader waiting for the thing itself."""
CHAIN = re.compile(r"\b(that of|those of|as of|of which|else)\b")
SHARED = {"Config", "run", "check", "check_first", "has_run", "job_of", "PipelineRetriever", "listwise", "exclusion"}
"""What stages have, what LangChain and LlamaIndex alike call theirs, and methods that are called as their plans are."""


def first_lines(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text.split("\n")[0]


def faults(line: str) -> list[str]:
    words = line.split()
    return [
        *([f"{len(words)} words"] if len(words) > MOST_WORDS else []),
        *([f"begins with {found.group()}"] if (found := DANGLING.match(line)) else []),
        *([f"has {found.group()!r}"] if (found := CHAIN.search(line)) else []),
    ]


def test_docstrings_begin_with_one_short_plain_line():
    lines = ((path, number, line) for path, tree in TREES.items() for number, line in first_lines(tree))
    assert [f"{path}:{number}: {', '.join(faults(line))}: {line}" for path, number, line in lines if faults(line)] == []


def test_the_rule_for_first_lines_finds_what_it_forbids():
    assert faults("Connect to the Ray cluster that `spread` would use.") == []
    assert faults("Of a block that is read at once.") == ["begins with Of"]
    assert faults("Sizes as of those of the last run.") == ["has 'as of'"]
    assert faults("word " * 16) == ["16 words"]


def names(tree: ast.Module) -> Iterator[str]:
    """What a module defines and others may import; a type variable means nothing outside, nor does `late`."""
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Assign(value=ast.Call(func=ast.Name(id="TypeVar" | "late"))):
                continue
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case _:
                continue


def test_a_public_name_is_defined_in_one_module():
    homes: dict[str, set[str]] = defaultdict(set)
    for path, tree in TREES.items():
        for name in names(tree):
            if not name.startswith("_") and name not in SHARED:
                homes[name].add(str(path))
    assert {name: sorted(modules) for name, modules in homes.items() if len(modules) > 1} == {}
