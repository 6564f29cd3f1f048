"""Functions and their descriptions, from Python sources that are parsed, never imported or run.

Documents are functions (signature and source without the docstring); queries are the first sentences of their
docstrings. The standard library makes a collection to search; packages, installed or in wheels, make one to learn from.
"""

import ast
import inspect
import multiprocessing
import os
import random
import re
import signal
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import lru_cache
from io import BytesIO, TextIOWrapper
from pathlib import Path, PurePath
from threading import Thread
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile

from shortlist.data.formats import read_corpus, read_queries, write_corpus, write_qrels, write_queries
from shortlist.demo.functions.overlap import Overlap, body_words, normalized, quiet_parse
from shortlist.engine import end_with_parent
from shortlist.errors import UserError
from shortlist.progress import track
from shortlist.records import Document, Query

NOT_STANDARD = {"site-packages", "dist-packages", "turtledemo"}
TESTS = {"test", "tests", "idle_test"}
COPIES = {"_vendor", "vendor", "vendored", "_vendored", "extern", "externals", "third_party", "backports", "_distutils"}
"""Folders of packages that hold other projects' code, often the standard library's own."""
OURSELVES_AND_BACKPORTS = {"shortlist", "pip", "setuptools", "pkg_resources", "multiprocess", "typing_extensions"}
MIN_WORDS, MAX_WORDS = 3, 40
MAX_BYTES = 2_000_000
"""Size above which a file is skipped: it is a table that a generator wrote."""
FILES_AT_ONCE = 32
"""Files that a process reads at a time."""

NO_SENTENCE = re.compile(r">>>|[:@]\w|\.\. |\w+:\s*\n|\w+ \(`|[\w.]+\([^)]*\)\s*(?:->|:|\n|$)")
"""Beginning of a docstring that opens with an example, a field, a list of arguments or a signature."""
SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)(?<!cf)[.!?](?= [A-Z`'\"(*]|$)")


class Function(NamedTuple):
    """One function of a source file."""

    name: str
    """Qualified name, such as `json.decoder.JSONDecoder.decode`."""
    summary: str
    """The first sentence of its docstring."""
    text: str
    """Signature and source, comments included, without decorators and docstring; valid Python by itself."""
    body: str
    """The words by which functions are compared, from `overlap.body_words`."""
    package: str = ""
    """The package it was found in; for installed packages and the standard library, the top-level module."""


class Source(NamedTuple):
    """One file to read, and the name it is imported by."""

    path: Path
    module: str
    package: str = ""
    wheel: Path | None = None
    """The wheel that holds `path`, if any."""


def module_of(path: PurePath, skip: Iterable[str]) -> str:
    """Return the name that a .py file is imported by.

    The result is "" where there is none, or where a folder or the top-level module is in `skip`.
    """
    parts = path.with_suffix("").parts
    if path.suffix != ".py" or {*parts[:-1], parts[0]} & {*skip} or not all(map(str.isidentifier, parts)):
        return ""
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def find_sources(folder: Path, skip: Iterable[str] = ()) -> list[Source]:
    """List the .py files under `folder`, sorted, without tests.

    Folders and top-level modules named in `skip` are left out too.
    """
    skip, found = {*skip, *TESTS}, []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in skip and name.isidentifier()]
        for path in (Path(parent, name) for name in files):
            if module := module_of(path.relative_to(folder), skip):
                found.append(Source(path, module, module.split(".")[0]))
    return sorted(found)


def wheel_sources(wheel: Path, package: str) -> list[Source]:
    """List the .py files in a wheel, sorted.

    Tests, copies and backports of the standard library are left out.
    """
    paths = sorted(map(Path, _open_wheel(wheel).namelist()))
    skip = TESTS | COPIES | OURSELVES_AND_BACKPORTS
    return [Source(path, module, package, wheel) for path in paths if (module := module_of(path, skip))]


@lru_cache(maxsize=2)
def _open_wheel(wheel: Path) -> ZipFile:
    return ZipFile(wheel)


def standard_library() -> list[Source]:
    """List the running interpreter's own modules, without tests."""
    return find_sources(Path(sysconfig.get_path("stdlib")), NOT_STANDARD)


def installed_packages() -> list[Source]:
    """List the modules installed beside this package.

    Tests, this package, copies and backports of the standard library are left out.
    """
    folders = dict.fromkeys(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib"))
    return [source for folder in folders for source in find_sources(folder, COPIES | OURSELVES_AND_BACKPORTS)]


def first_sentence(docstring: str) -> str:
    """Return the first sentence of a docstring on one line.

    The result is "" where the docstring does not begin with a sentence of 3 to 40 words.
    """
    paragraph = re.split(
        r"\n\s*\n|\n\s*(?:>>>|[-=~*]{3,}|[-*] |[:@]\w|\.\. )", inspect.cleandoc(docstring), maxsplit=1
    )[0]
    if NO_SENTENCE.match(paragraph):
        return ""
    sentence = SENTENCE_END.split(" ".join(paragraph.split()), maxsplit=1)[0].rstrip(" .:")
    num_words = len(re.findall(r"[^\W\d_]{2,}", sentence))
    return sentence if MIN_WORDS <= num_words <= MAX_WORDS and sentence.isprintable() else ""


def is_trivial(statement: ast.stmt) -> bool:
    """Whether a statement is only a placeholder for code.

    Such statements are `pass`, `...`, a string, and `raise NotImplementedError`.
    """
    match statement:
        case ast.Pass() | ast.Expr(value=ast.Constant()):
            return True
        case ast.Raise(exc=ast.Name(id="NotImplementedError") | ast.Call(func=ast.Name(id="NotImplementedError"))):
            return True
    return False


def source_without_docstring(lines: Sequence[str], node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return the source of a function from `def` on, dedented, without its docstring.

    `lines` are the lines of the whole file.
    """
    doc, rest = node.body[:2]
    begin, end = doc.lineno - 1, doc.end_lineno or doc.lineno
    if rest.lineno == end:  # code after the docstring, on its last line
        head, tail = lines[begin].encode(), lines[end - 1].encode()  # ast counts columns in UTF-8 bytes
        kept = [(head[: doc.col_offset] + tail[rest.col_offset :]).decode()]
    else:
        kept = []
        while not lines[end].strip():
            end += 1
    source_lines = [*lines[node.lineno - 1 : begin], *kept, *lines[end : node.end_lineno]]
    margin = node.col_offset
    return "\n".join(line[margin:] if not line[:margin].strip() else line for line in source_lines).rstrip()


def definitions(nodes: Iterable[ast.AST], prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield (qualified name, node) of the functions and methods among `nodes`.

    Functions inside a function are part of it.
    """
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{node.name}", node
        elif isinstance(node, ast.ClassDef):
            yield from definitions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            yield from definitions(ast.iter_child_nodes(node), prefix)


def parse_functions(source: str, module: str) -> list[Function]:
    """Return the functions of one file that have a summary and code.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: Python's parser does not accept the file.
    """
    lines = source.split("\n")  # as the parser counts them: a form feed ends no line
    functions = []
    for name, node in definitions(quiet_parse(source).body, f"{module}."):
        summary = first_sentence(ast.get_docstring(node, clean=False) or "")
        if summary and not all(map(is_trivial, node.body)):
            text = source_without_docstring(lines, node)
            functions.append(Function(name, summary, text, body_words(text)))
    return functions


def read_functions(source: Source) -> list[Function] | None:
    """Return the functions of one file, or None if it cannot be read as Python."""
    try:
        content = _content(source)
        if len(content) > MAX_BYTES:
            return None
        encoding, _ = tokenize.detect_encoding(BytesIO(content).readline)  # honours the coding line
        text = TextIOWrapper(BytesIO(content), encoding).read()
        return [function._replace(package=source.package) for function in parse_functions(text, source.module)]
    except (OSError, BadZipFile, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _content(source: Source) -> bytes:
    if source.wheel is None:
        with open(source.path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    with _open_wheel(source.wheel).open(source.path.as_posix()) as file:
        return file.read(MAX_BYTES + 1)


def collect_functions(sources: Sequence[Source], description: str) -> tuple[list[Function], dict[str, int]]:
    """Read the functions of all files, in order, under unique names.

    Returns:
        The functions, and how many files and functions were read.
    """
    functions, seen, skipped = [], Counter(), 0
    with closing(_read_all(sources)) as files:
        for found in track(files, description, len(sources), "files"):
            skipped += found is None
            for function in found or ():
                seen[function.name] += 1
                count = seen[function.name]
                functions.append(function._replace(name=f"{function.name}#{count}") if count > 1 else function)
    return functions, {"files": len(sources), "files_skipped": skipped, "functions": len(functions)}


def _read_all(sources: Sequence[Source]) -> Generator[list[Function] | None, None, None]:
    """Read the functions of each file, in several processes if there are many files."""
    processes = min(os.cpu_count() or 1, 8, len(sources) // FILES_AT_ONCE)
    if processes < 2:
        yield from map(read_functions, sources)
        return
    # A fork would copy the locks of threads that run here already.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), begin_reading) as pool:
        yield from pool.map(read_functions, sources, chunksize=FILES_AT_ONCE)


def begin_reading() -> None:
    """Leave Ctrl-C to the parent, and end with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=end_with_parent, daemon=True).start()


def unambiguous(functions: Sequence[Function]) -> list[int]:
    """Return the positions of functions with a unique summary and a unique body.

    A body is unique if no other one resembles it.
    """
    summaries = Counter(normalized(function.summary) for function in functions)
    overlap = Overlap(function.body for function in functions)
    return [
        position
        for position, function in enumerate(functions)
        if summaries[normalized(function.summary)] == 1 and overlap.near(function.body) == {position}
    ]


def build_test(
    out: Path, *, sources: Sequence[Source] | None = None, num_queries: int = 600, num_dev: int = 0, seed: int = 0
) -> dict[str, int]:
    """Write the collection that is searched.

    It has all functions and all summaries. Split `test` has the judgements of `num_queries` of them, split `dev` the
    judgements of another `num_dev`, or of as many as there are.

    Returns:
        Counts for the manifest: files, files_skipped, functions, candidates (unambiguous summaries), queries, dev.

    Raises:
        UserError: there are fewer unambiguous functions than queries wanted.
    """
    sources = standard_library() if sources is None else sources
    functions, counts = collect_functions(sources, "standard library")
    candidates = unambiguous(functions)
    if len(candidates) < num_queries:
        raise UserError(
            f"{sysconfig.get_path('stdlib')}: {len(candidates)} functions with a summary of their own; expected at "
            f"least {num_queries}. This Python seems to have no sources; run with another."
        )
    chosen = sorted(random.Random(seed).sample(candidates, num_queries))
    others = sorted({*candidates}.difference(chosen))
    dev = sorted(random.Random(seed).sample(others, min(num_dev, len(others))))
    write_pairs(out, functions, test=chosen, **({"dev": dev} if dev else {}))
    return counts | {"candidates": len(candidates), "queries": len(chosen), "dev": len(dev)}


def keep_apart(functions: Iterable[Function], test: Path | None) -> tuple[list[Function], dict[str, int]]:
    """Select the functions that are pairs to learn from.

    Returns:
        The pairs, and how many functions were dropped because the collection `test` has the same summary or nearly the
        same body (test_summaries, test_bodies), or because an earlier pair has the same summary or body (repeated).
    """
    summaries, overlap = set(), Overlap(())
    if test is not None:
        summaries = {normalized(query.text) for query in read_queries(test / "queries.jsonl")}
        overlap = Overlap(body_words(document.text) for document in read_corpus(test / "corpus.jsonl"))
    pairs, seen = [], set()
    dropped = {"test_summaries": 0, "test_bodies": 0, "repeated": 0}
    for function in functions:
        summary = normalized(function.summary)
        if summary in summaries:
            dropped["test_summaries"] += 1
        elif {summary, function.body} & seen:
            dropped["repeated"] += 1
        elif overlap.near(function.body):
            dropped["test_bodies"] += 1
        else:
            pairs.append(function)
            seen |= {summary, function.body}
    return pairs, dropped


def sample(pairs: list[Function], size: int, seed: int) -> list[Function]:
    """Draw at most `size` of the pairs, keeping their order."""
    if len(pairs) <= size:
        return pairs
    return [pairs[position] for position in sorted(random.Random(seed).sample(range(len(pairs)), size))]


def hold_out(pairs: Sequence[Function], size: int, seed: int) -> set[str]:
    """Choose packages at random that have at most `size` pairs together.

    No package has more than a fifth of `size`.
    """
    sizes = Counter(function.package for function in pairs)
    chosen, room = set(), size
    for package in random.Random(seed).sample(sorted(sizes), len(sizes)):
        if sizes[package] <= min(room, size // 5):
            chosen.add(package)
            room -= sizes[package]
    return chosen


def write_train(
    out: Path, pairs: Sequence[Function], *, held_out: Iterable[str] = (), num_mined: int, seed: int
) -> dict[str, int]:
    """Write the pairs, with splits `train`, `dev` and `mined`.

    Split `dev` has the pairs of the held-out packages, `mined` a sample of `train`.

    Returns:
        The number of pairs in each split.
    """
    held_out = set(held_out)
    train = [position for position, function in enumerate(pairs) if function.package not in held_out]
    dev = [position for position, function in enumerate(pairs) if function.package in held_out]
    mined = sorted(random.Random(seed).sample(train, min(num_mined, len(train))))
    splits = {"train": train, "mined": mined} | ({"dev": dev} if dev else {})
    write_pairs(out, pairs, **splits)
    return {name: len(positions) for name, positions in splits.items()}


def write_pairs(out: Path, functions: Sequence[Function], **splits: Sequence[int]) -> None:
    """Write functions and summaries in BEIR layout, with judgements by split.

    Each split is given by the positions of its functions.
    """
    ids = [f"q{position}" for position in range(len(functions))]
    write_corpus(out / "corpus.jsonl", (Document(function.name, function.text) for function in functions))
    write_queries(out / "queries.jsonl", map(Query, ids, (function.summary for function in functions)))
    for split, judged in splits.items():
        qrels = {ids[position]: {functions[position].name: 1} for position in judged}
        write_qrels(out / "qrels" / f"{split}.tsv", qrels)
