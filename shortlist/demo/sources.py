"""The demo's collections, made of the Python that runs it: functions, and what their authors say they do.

Documents are functions (signature and source without the docstring), queries the first sentence of each docstring. The
standard library is the collection that is searched; the packages installed beside us are what is learnt from. Sources
are parsed, never imported or run.
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
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from shortlist.data.formats import read_corpus, read_queries, write_corpus, write_qrels, write_queries
from shortlist.demo.overlap import Overlap, body_words, normalized, quiet_parse
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
"""Longer files are tables that a generator wrote."""

NO_SENTENCE = re.compile(r">>>|[:@]\w|\.\. |\w+:\s*\n|\w+ \(`|[\w.]+\([^)]*\)\s*(?:->|:|\n|$)")
"""How a docstring begins that opens with an example, a field, a list of arguments or a signature."""
SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)(?<!cf)[.!?](?= [A-Z`'\"(*]|$)")


class Function(NamedTuple):
    """One function of a source file."""

    name: str
    """Qualified: `json.decoder.JSONDecoder.decode`."""
    summary: str
    """The first sentence of its docstring."""
    text: str
    """Signature and source, comments included, without decorators and docstring; valid Python by itself."""
    body: str
    """What `text` is compared by: `overlap.body_words`."""


class Source(NamedTuple):
    """One file to read, and the name it is imported by."""

    path: Path
    module: str


def find_sources(folder: Path, skip: Iterable[str] = ()) -> list[Source]:
    """Every .py file under `folder`, sorted; none from tests, or from folders and top-level modules named in `skip`."""
    skip, found = {*skip, *TESTS}, []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in skip and name.isidentifier()]
        for path in (Path(parent, name) for name in files if name.endswith(".py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if parts[0] not in skip:
                module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                found.append(Source(path, module))
    return sorted(found)


def standard_library() -> list[Source]:
    """The running interpreter's own modules, tests left out."""
    return find_sources(Path(sysconfig.get_path("stdlib")), NOT_STANDARD)


def installed_packages() -> list[Source]:
    """The modules installed beside us, without tests, this package, copies and backports of the standard library."""
    folders = dict.fromkeys(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib"))
    return [source for folder in folders for source in find_sources(folder, COPIES | OURSELVES_AND_BACKPORTS)]


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring on one line, or "" where it begins with no sentence of 3 to 40 words."""
    paragraph = re.split(
        r"\n\s*\n|\n\s*(?:>>>|[-=~*]{3,}|[-*] |[:@]\w|\.\. )", inspect.cleandoc(docstring), maxsplit=1
    )[0]
    if NO_SENTENCE.match(paragraph):
        return ""
    sentence = SENTENCE_END.split(" ".join(paragraph.split()), maxsplit=1)[0].rstrip(" .:")
    num_words = len(re.findall(r"[^\W\d_]{2,}", sentence))
    return sentence if MIN_WORDS <= num_words <= MAX_WORDS and sentence.isprintable() else ""


def is_trivial(statement: ast.stmt) -> bool:
    """Whether it is `pass`, `...`, a string, or `raise NotImplementedError`: a place for code, not code."""
    match statement:
        case ast.Pass() | ast.Expr(value=ast.Constant()):
            return True
        case ast.Raise(exc=ast.Name(id="NotImplementedError") | ast.Call(func=ast.Name(id="NotImplementedError"))):
            return True
    return False


def source_without_docstring(lines: Sequence[str], node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The function's lines, dedented, from `def` on, its docstring cut out. `lines` are those of the whole file."""
    doc, rest = node.body[:2]
    begin, end = doc.lineno - 1, doc.end_lineno or doc.lineno
    if rest.lineno == end:  # code behind the docstring, on its last line
        head, tail = lines[begin].encode(), lines[end - 1].encode()  # ast counts columns in UTF-8 bytes
        kept = [(head[: doc.col_offset] + tail[rest.col_offset :]).decode()]
    else:
        kept = []
        while not lines[end].strip():
            end += 1
    own = [*lines[node.lineno - 1 : begin], *kept, *lines[end : node.end_lineno]]
    margin = node.col_offset
    return "\n".join(line[margin:] if not line[:margin].strip() else line for line in own).rstrip()


def definitions(nodes: Iterable[ast.AST], prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Qualified names and nodes of the functions and methods among `nodes`; what is inside a function belongs to it."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{node.name}", node
        elif isinstance(node, ast.ClassDef):
            yield from definitions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If | ast.Try | ast.ExceptHandler | ast.With):
            yield from definitions(ast.iter_child_nodes(node), prefix)


def parse_functions(source: str, module: str) -> list[Function]:
    """The functions of one file that have a summary and code.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: Python's parser does not take it.
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
    """The functions of one file, or None where it cannot be read as Python."""
    try:
        if source.path.stat().st_size > MAX_BYTES:
            return None
        with tokenize.open(source.path) as file:  # honours the coding line
            return parse_functions(file.read(), source.module)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def collect(sources: Sequence[Source], description: str) -> tuple[list[Function], dict[str, int]]:
    """The functions of all files, in their order and under unique names, and how many files and functions were read."""
    functions, seen, skipped = [], Counter(), 0
    # A fork would copy the locks of whatever threads run here already; Ctrl-C is answered here, not by each reader.
    spawn, ignore = multiprocessing.get_context("spawn"), (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(min(os.cpu_count() or 1, 8), spawn, signal.signal, ignore) as pool:
        for found in track(pool.map(read_functions, sources, chunksize=32), description, len(sources), "files"):
            skipped += found is None
            for function in found or ():
                seen[function.name] += 1
                count = seen[function.name]
                functions.append(function._replace(name=f"{function.name}#{count}") if count > 1 else function)
    return functions, {"files": len(sources), "files_skipped": skipped, "functions": len(functions)}


def unambiguous(functions: Sequence[Function]) -> list[int]:
    """Positions of functions whose summary nobody else has and whose body resembles no other's."""
    summaries = Counter(normalized(function.summary) for function in functions)
    overlap = Overlap(function.body for function in functions)
    return [
        position
        for position, function in enumerate(functions)
        if summaries[normalized(function.summary)] == 1 and overlap.near(function.body) == {position}
    ]


def build_test(
    out: Path, *, sources: Sequence[Source] | None = None, num_queries: int = 600, seed: int = 0
) -> dict[str, int]:
    """Write the collection that is searched: all functions, all summaries, and the judgements of `num_queries` of them.

    Returns:
        Counts for the manifest: files, files_skipped, functions, candidates (unambiguous summaries), queries.

    Raises:
        UserError: there are fewer unambiguous functions than queries wanted.
    """
    sources = standard_library() if sources is None else sources
    functions, counts = collect(sources, "standard library")
    candidates = unambiguous(functions)
    if len(candidates) < num_queries:
        raise UserError(
            f"{sysconfig.get_path('stdlib')}: {len(candidates)} functions with a summary of their own; expected at "
            f"least {num_queries}. This Python seems to have no sources; run the demo with another."
        )
    chosen = sorted(random.Random(seed).sample(candidates, num_queries))
    write_pairs(out, functions, "test", chosen)
    return counts | {"candidates": len(candidates), "queries": len(chosen)}


def build_train(
    out: Path,
    *,
    test: Path,
    sources: Sequence[Source] | None = None,
    max_pairs: int = 60_000,
    num_mined: int = 5_000,
    seed: int = 0,
) -> dict[str, int]:
    """Write the collection that is learnt from: one judgement per pair, nothing in it from the collection `test`.

    Split `train` is all pairs; split `mined` a sample of `num_mined` of them, to mine negatives for.

    Returns:
        Counts for the manifest: files, files_skipped, functions; dropped because the collection `test` has the same
        summary or nearly the same body: test_summaries, test_bodies; dropped because an earlier pair has the same
        summary or body: repeated; pairs.
    """
    functions, counts = collect(installed_packages() if sources is None else sources, "installed packages")
    summaries = {normalized(query.text) for query in read_queries(test / "queries.jsonl")}
    overlap = Overlap(body_words(document.text) for document in read_corpus(test / "corpus.jsonl"))
    pairs, seen = [], set()
    dropped = Counter(test_summaries=0, test_bodies=0, repeated=0)
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
    if len(pairs) > max_pairs:
        kept = sorted(random.Random(seed).sample(range(len(pairs)), max_pairs))
        pairs = [pairs[position] for position in kept]
    write_pairs(out, pairs, "train", range(len(pairs)))
    mined = sorted(random.Random(seed).sample(range(len(pairs)), min(num_mined, len(pairs))))
    write_qrels(out / "qrels" / "mined.tsv", {f"q{position}": {pairs[position].name: 1} for position in mined})
    return counts | dropped | {"pairs": len(pairs)}


def write_pairs(out: Path, functions: Sequence[Function], split: str, judged: Iterable[int]) -> None:
    """Write functions and summaries in BEIR layout, and judgements for the positions `judged`."""
    ids = [f"q{position}" for position in range(len(functions))]
    write_corpus(out / "corpus.jsonl", (Document(function.name, function.text) for function in functions))
    write_queries(out / "queries.jsonl", map(Query, ids, (function.summary for function in functions)))
    write_qrels(out / "qrels" / f"{split}.tsv", {ids[position]: {functions[position].name: 1} for position in judged})
