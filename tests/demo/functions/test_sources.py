import ast
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from test_engine import end

from shortlist.data.formats import read_corpus, read_qrels, read_queries
from shortlist.demo.functions import sources
from shortlist.demo.functions.overlap import Overlap, body_words, normalized
from shortlist.demo.functions.sources import (
    Source,
    build_test,
    collect_functions,
    find_sources,
    first_sentence,
    installed_packages,
    keep_apart,
    parse_functions,
    read_functions,
    sample,
    standard_library,
    write_train,
)
from shortlist.errors import UserError


def functions(source: str) -> dict[str, tuple[str, str]]:
    """Name -> (summary, text) of what a source file named `m` holds."""
    return {f.name: (f.summary, f.text) for f in parse_functions(textwrap.dedent(source), "m")}


def write(folder: Path, **files: str) -> list[Source]:
    """Write modules (`a__b` is a/b.py) and find them again."""
    for name, source in files.items():
        path = folder.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    return find_sources(folder)


def test_a_function_keeps_its_signature_and_comments_and_loses_decorators_and_docstring():
    found = functions('''
        import os

        @cache
        def size(path: str, *, follow: bool = True) -> int:
            """Return the size of a file. It may be 0.

            More about it.
            """

            # links are files too
            return os.stat(path, follow_symlinks=follow).st_size
    ''')
    text = """
        def size(path: str, *, follow: bool = True) -> int:
            # links are files too
            return os.stat(path, follow_symlinks=follow).st_size
    """
    assert found == {"m.size": ("Return the size of a file", textwrap.dedent(text).strip())}


def test_methods_are_named_by_their_classes_and_dedented():
    found = functions('''
        class A:
            class B:
                async def go(self):
                    """Wait for the next one."""
                    return await self.next()
    ''')
    assert found == {"m.A.B.go": ("Wait for the next one", "async def go(self):\n    return await self.next()")}


def test_a_function_inside_a_function_belongs_to_it():
    found = functions('''
        def outer(x):
            """Make a function that adds."""
            def inner(y):
                """Add one number to another."""
                return x + y
            return inner
    ''')
    assert list(found) == ["m.outer"]
    assert "def inner(y):" in found["m.outer"][1]


def test_functions_under_if_and_try_are_found():
    function = 'def {}():\n        """Say which one it is."""\n        return 1\n'
    heads = ["if x", "else", "try", "except ImportError", "finally"]
    source = "".join(f"{head}:\n    {function.format(name)}" for head, name in zip(heads, "abcde", strict=True))
    assert list(functions(source)) == ["m.a", "m.b", "m.c", "m.d", "m.e"]


@pytest.mark.parametrize("code", ["...", "pass", "raise NotImplementedError", "raise NotImplementedError('later')", ""])
def test_a_function_without_code_is_left_out(code):
    assert functions(f'def f(x):\n    """Say what it would do."""\n    {code}\n') == {}


def test_an_overload_gives_way_to_the_function_that_has_code():
    found = functions('''
        @overload
        def f(x: int) -> int: ...
        @overload
        def f(x: str) -> str:
            """Return the thing as it is."""
            ...
        def f(x):
            """Return the very same thing."""
            return x
    ''')
    assert found == {"m.f": ("Return the very same thing", "def f(x):\n    return x")}


def test_code_on_the_line_of_the_docstring_stays():
    source = 'class Ä:\n    def ß(self): "Gib das größte zurück."; return max(self, "ß")\n'
    assert functions(source) == {"m.Ä.ß": ("Gib das größte zurück", 'def ß(self): return max(self, "ß")')}


def test_lines_are_counted_as_the_parser_counts_them():
    source = 'x = 1\n\x0c\ny = "\x85\u2028"\ndef f():\n    """Give back the number."""\n    return 1\n'
    assert functions(source)["m.f"][1] == "def f():\n    return 1"


def test_a_string_that_reaches_left_of_the_margin_is_kept_whole():
    source = 'class A:\n    def f(self):\n        """Return the long text."""\n        return """a\nb\n    c"""\n'
    assert functions(source)["m.A.f"][1] == 'def f(self):\n    return """a\nb\nc"""'


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the value. Or not.", "Return the value"),
        ("Return the value of\n    the key\n\n    Or not", "Return the value of the key"),
        ("Read a file, e.g. The Book. Then stop.", "Read a file, e.g. The Book"),
        ("Round to 3.5 at most.", "Round to 3.5 at most"),
        ("Return these things:\n    - one\n    - two", "Return these things"),
        ("Return the value\n    :param x: the key", "Return the value"),
        ("Return the value\n    >>> f(1)", "Return the value"),
        ("Is it really so?", "Is it really so"),
        ("Close it.", ""),
        ("", ""),
        (">>> parse the thing now", ""),
        ("get(key) -> the value under key", ""),
        ("labels (`Tensor`): what to learn", ""),
        ("Args:\n    path: where the file is", ""),
        (":param path: where the file is", ""),
        ("word " * 41, ""),
        ("Return half a pair \ud800 here", ""),
    ],
)
def test_the_summary_is_the_first_sentence_or_nothing(docstring, sentence):
    assert first_sentence(docstring) == sentence


@pytest.mark.parametrize(
    "content",
    [
        b"def f(:\n",
        b"x = 1\0\n",
        b"# coding: no-such\nx = 1\n",
        b"x = '\xff'\n",
        b"-" * 100_000 + b"1",
        b"#" * 2_000_001,
    ],
    ids=["syntax", "null byte", "unknown coding", "not UTF-8", "too deep", "too long"],
)
def test_a_file_that_is_not_python_is_counted_and_skipped(tmp_path, content):
    bad, good = tmp_path / "bad.py", tmp_path / "good.py"
    bad.write_bytes(content)
    good.write_text('def f():\n    """Give back the number."""\n    return 1\n')
    assert read_functions(Source(bad, "bad")) is None
    assert read_functions(Source(good, "good"))
    assert read_functions(Source(tmp_path / "gone.py", "gone")) is None


def test_a_coding_line_is_honoured(tmp_path):
    path = tmp_path / "a.py"
    path.write_bytes('# coding: latin-1\ndef f():\n    """Give back the Größe."""\n    return "ß"\n'.encode("latin-1"))
    (found,) = read_functions(Source(path, "a")) or []
    assert (found.summary, found.text) == ("Give back the Größe", 'def f():\n    return "ß"')


def test_invalid_escapes_in_what_is_read_raise_no_warning(recwarn):
    assert functions('def f(x):\n    """Match \\d of the thing."""\n    return x.match("\\d")\n')
    assert not recwarn.list


def test_sources_are_sorted_modules_outside_tests_and_what_is_skipped(tmp_path):
    names = [
        "b",
        "a__b",
        "a____init__",
        "a__tests__c",
        "test__d",
        "skipped__e",
        "a__skipped__f",
        "skipped",
        "a__{{ name }}",
    ]
    for name in ["x-1.0.dist-info__g", *names]:
        path = tmp_path.joinpath(*name.replace("____init__", "__INIT").split("__")).with_suffix("")
        path = path.with_name("__init__.py") if path.name == "INIT" else path.with_name(path.name + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert [source.module for source in find_sources(tmp_path, ["skipped"])] == ["a", "a.b", "b"]


@pytest.mark.slow
def test_functions_that_share_a_name_get_a_number_and_files_are_counted(tmp_path, monkeypatch):
    twice = '''
        class A:
            @property
            def x(self):
                """Get what is there."""
                return self._x
            @x.setter
            def x(self, value):
                """Set what is there."""
                self._x = value
    '''
    files = write(tmp_path, a=twice, b="def f(:", c="raise SystemExit")
    found, counts = collect_functions(files, "reading")
    assert [function.name for function in found] == ["a.A.x", "a.A.x#2"]
    assert counts == {"files": 3, "files_skipped": 1, "functions": 2}
    monkeypatch.setattr(sources, "FILES_AT_ONCE", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert collect_functions(files, "reading") == (found, counts)  # read by two processes


STANDARD = '''
    def total_price(orders, tax):
        """Add up what all orders cost."""
        subtotal = 0
        for order in orders:
            for item in order.items:
                subtotal += item.price * item.count  # before tax
        if subtotal < 0:
            raise ValueError("refunds are not orders")
        return round(subtotal * (1 + tax), 2)

    def first_line(path):
        """Return the first line of a file."""
        with open(path, encoding="utf-8") as file:
            return file.readline().rstrip()

    def twin(a):
        """Compare with the other one."""
        return a.left.value == a.right.value and a.left.name == a.right.name

    def other_twin(a):
        """Compare with another twin."""
        return a.left.value == a.right.value and a.left.name == a.right.name

    def same(a):
        """Return the same words."""
        return a.one

    def same_again(a):
        """Return: the SAME words!"""
        return a.two
'''
PACKAGE = '''
    def total_price(orders, tax):
        """Copy a whole function exactly."""
        subtotal = 0
        for order in orders:
            for item in order.items:
                subtotal += item.price * item.count  # before tax
        if subtotal < 0:
            raise ValueError("refunds are not orders")
        return round(subtotal * (1 + tax), 2)

    class Reader:
        def head(self, path: str) -> str:
            """Copy it in another format."""
            # another comment
            with open(
                path,
                encoding='utf-8',
            ) as file:
                return (file.readline()
                            .rstrip())

    def sum_of_orders(orders, tax):
        """Copy it under another name."""
        subtotal = 0
        for order in orders:
            for item in order.items:
                subtotal += item.price * item.count
        if subtotal < 0:
            raise ValueError("refunds are not orders")
        return round(subtotal * (1 + tax), 3)

    def tax(cost):
        """ADD up what `all` orders cost..."""
        return cost.tax + cost.rate

    def kept(numbers):
        """Return the median of the numbers."""
        return sorted(numbers)[len(numbers) // 2]

    def kept_body_again(numbers):
        """Return what is in the middle."""
        return sorted(numbers)[len(numbers) // 2]

    def kept_summary_again(numbers):
        """Return the median of the numbers."""
        return quantile(numbers, 0.5)
'''


def test_only_functions_unlike_all_others_are_asked_for(tmp_path):
    counts = build_test(tmp_path / "out", sources=write(tmp_path / "lib", m=STANDARD), num_queries=2)
    assert counts == {"files": 1, "files_skipped": 0, "functions": 6, "candidates": 2, "queries": 2, "dev": 0}
    assert [document.doc_id for document in read_corpus(tmp_path / "out" / "corpus.jsonl")] == [
        f"m.{name}" for name in ["total_price", "first_line", "twin", "other_twin", "same", "same_again"]
    ]
    assert [query.text for query in read_queries(tmp_path / "out" / "queries.jsonl")][:2] == [
        "Add up what all orders cost",
        "Return the first line of a file",
    ]
    qrels = read_qrels(tmp_path / "out" / "qrels" / "test.tsv")
    assert qrels == {"q0": {"m.total_price": 1}, "q1": {"m.first_line": 1}}


def test_a_python_without_sources_is_one_line_that_says_so(tmp_path):
    with pytest.raises(UserError, match="2 functions with a summary of their own; expected at least 3"):
        build_test(tmp_path / "out", sources=write(tmp_path / "lib", m=STANDARD), num_queries=3)
    assert not (tmp_path / "out").exists()


def test_other_queries_of_the_same_collection_are_the_dev_split(tmp_path):
    sources = write(tmp_path / "lib", m=STANDARD)
    counts = build_test(tmp_path / "out", sources=sources, num_queries=1, num_dev=300)
    assert (counts["queries"], counts["dev"]) == (1, 1)
    test, dev = (read_qrels(tmp_path / "out" / "qrels" / f"{split}.tsv") for split in ("test", "dev"))
    assert sorted([*test, *dev]) == ["q0", "q1"]


def test_copies_of_test_functions_and_their_summaries_never_reach_training(tmp_path):
    build_test(tmp_path / "test", sources=write(tmp_path / "lib", m=STANDARD), num_queries=2)
    found, _ = collect_functions(write(tmp_path / "site", p=PACKAGE), "reading")
    pairs, dropped = keep_apart(found, tmp_path / "test")
    assert [pair.name for pair in pairs] == ["p.kept"]
    assert dropped == {"test_summaries": 1, "test_bodies": 3, "repeated": 2}


def test_the_seed_decides_a_sample(tmp_path):
    number = '    def f{0}(x):\n        """Return number {1} of all."""\n        return x.w{1}\n'
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    found, _ = collect_functions(
        write(tmp_path / "site", p="".join(number.format(*w) for w in enumerate(words))), "reading"
    )
    assert len(sample(found, 4, 0)) == 4
    assert sample(found, 4, 0) == sample(found, 4, 0) == sorted(sample(found, 4, 0), key=found.index)
    assert sample(found, 4, 0) != sample(found, 4, 1)
    assert sample(found, 10, 0) == found


@pytest.fixture(scope="module")
def standard(tmp_path_factory):
    folder = tmp_path_factory.mktemp("standard")
    return folder, build_test(folder, num_dev=100)


@pytest.fixture(scope="module")
def installed():
    return installed_packages()


@pytest.mark.slow
def test_the_standard_library_is_a_collection_of_thousands_of_functions(standard):
    folder, counts = standard
    assert counts["functions"] >= 4_000
    assert counts["queries"] == 600
    texts = {document.doc_id: document.text for document in read_corpus(folder / "corpus.jsonl")}
    assert "def decode(self, s, _w=WHITESPACE.match):" in texts["json.decoder.JSONDecoder.decode"]
    assert not [name for name in texts if name.startswith(("test.", "site-packages."))]
    for text in texts.values():
        ast.parse(text)


@pytest.mark.slow
def test_every_standard_library_query_asks_for_one_function_in_one_sentence(standard):
    folder, _ = standard
    texts = [query.text for query in read_queries(folder / "queries.jsonl")]
    qrels = read_qrels(folder / "qrels" / "test.tsv")
    asked = [normalized(texts[int(query_id[1:])]) for query_id in qrels]
    assert len(set(asked)) == 600
    assert all(len(judged) == 1 for judged in qrels.values())
    assert all("\n" not in text and len(normalized(text).split()) >= 3 for text in texts)


@pytest.mark.slow
def test_the_same_interpreter_gives_the_same_bytes(tmp_path):
    some = [source for source in standard_library() if source.module.startswith(("json", "email", "http"))]
    for folder in ("one", "other"):
        build_test(tmp_path / folder, sources=some, num_queries=20, num_dev=10)
    for name in ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "qrels/dev.tsv"]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


@pytest.mark.slow
def test_no_summary_or_near_body_of_the_standard_library_is_in_real_training_pairs(standard, installed, tmp_path):
    folder, _ = standard
    names = ("networkx.", "regex.", "_pytest.", "_yaml.")
    found, _ = collect_functions([s for s in installed if s.module.startswith(names)], "reading")
    pairs, dropped = keep_apart(found, folder)
    write_train(tmp_path, pairs, num_mined=0, seed=0)
    assert len(pairs) > 1_000
    assert dropped["test_bodies"] > 0
    asked = {normalized(query.text) for query in read_queries(folder / "queries.jsonl")}
    overlap = Overlap(body_words(document.text) for document in read_corpus(folder / "corpus.jsonl"))
    assert not [q for q in read_queries(tmp_path / "queries.jsonl") if normalized(q.text) in asked]
    assert not [d.doc_id for d in read_corpus(tmp_path / "corpus.jsonl") if overlap.near(body_words(d.text))]
    for line in (tmp_path / "corpus.jsonl").read_text().splitlines():
        assert json.loads(line)["_id"].startswith(names)


@pytest.mark.slow
def test_the_two_lists_of_sources_do_not_meet(installed):
    assert not {source.path for source in standard_library()} & {source.path for source in installed}
    assert not [s for s in installed if s.module.split(".")[0] in {"shortlist", "pip", "setuptools"}]


PROGRAM = """
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from shortlist.demo.functions.sources import begin_reading

if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), begin_reading) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(60)
"""


def test_a_reader_ends_with_a_program_that_is_killed(tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    program = subprocess.Popen([sys.executable, tmp_path / "program.py"], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    reader = int(program.stdout.readline())
    program.kill()
    program.wait()
    program.stdout.close()
    assert end([reader])
