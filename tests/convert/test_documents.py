import json
import os
from pathlib import Path

import pytest

from shortlist import convert
from shortlist.convert import Config, chunking, documents
from shortlist.data.collections import open_collection
from shortlist.data.formats import document_line, read_corpus
from shortlist.data.reading import finding
from shortlist.errors import UserError
from shortlist.records import Document
from shortlist.text.segments import whole_id

PAGE = "# Otters\n\nThey swim.\n\n## Food\n\nFish, mostly.\n"
MAY = 1_700_000_000
"""Time of all files, long ago, so that they are known to be settled."""


def write(folder: Path, **files: str | bytes) -> Path:
    """Write files; `__` in a name stands for a slash and the last `_` for a dot."""
    for name, data in files.items():
        stem, _, ending = name.replace("__", "/").rpartition("_")
        put(folder / f"{stem}.{ending}", data)
    return folder


def put(path: Path, data: str | bytes, *, time: int = MAY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    os.utime(path, (time, time))
    return path


def converted(out: Path, *sources: Path, **settings) -> list[Document]:
    convert.run(Config(sources=tuple(map(str, sources)), out=out, **settings))
    return list(read_corpus(out / "corpus.jsonl"))


def said(capsys: pytest.CaptureFixture[str], part: str) -> str:
    return next(line for line in capsys.readouterr().err.splitlines() if part in line)


def test_a_folder_becomes_chunks_that_know_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write(tmp_path / "docs", my__page_md=PAGE, note_txt="one two")
    found = converted(tmp_path / "out", folder, chunk_size=4)
    assert "read as documents to search in" in capsys.readouterr().err
    where = {"document": "my/page.md", "path": "my/page.md", "modified": "2023-11-14"}
    assert found == [
        Document(
            "my/page.md#0",
            "# Otters\n\nThey swim.",
            "Otters",
            metadata={**where, "titles": ["Otters"], "begin": 0, "end": 20},
        ),
        Document(
            "my/page.md#1",
            "## Food\n\nFish, mostly.",
            "Otters > Food",
            metadata={**where, "titles": ["Otters", "Food"], "begin": 22, "end": 44},
        ),
        Document(
            "note.txt#0",
            "one two",
            "note.txt",
            metadata={"document": "note.txt", "path": "note.txt", "modified": "2023-11-14", "titles": ["note.txt"]}
            | {"begin": 0, "end": 7},
        ),
    ]
    assert whole_id(found[0].doc_id) == "my/page.md"
    assert open_collection(tmp_path / "out").num_docs() == 3


def test_lines_are_those_that_any_corpus_has(tmp_path: Path):
    rows = (
        '{"_id": "q\\u00e9", "title": "a \\"b\\"", "text": "x\\ny", "url": "https://o", "n": [1, "z"], "titles": 3}\n'
    )
    folder = write(tmp_path / "docs", a_jsonl=rows, page_md=PAGE)
    for by in ("headings", "none"):
        out = tmp_path / by
        lines = "".join(map(document_line, converted(out, folder, as_="documents", chunks=by)))
        assert lines == (out / "corpus.jsonl").read_text("utf-8")
    first = next(read_corpus(out / "corpus.jsonl"))
    assert first.doc_id == "qé"
    assert (first.url, first.metadata["n"], first.metadata["titles"]) == ("https://o", [1, "z"], ['a "b"'])


def test_what_has_changed_alone_is_read_again_and_the_result_is_that_of_a_new_conversion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    folder = write(tmp_path / "docs", a_md=PAGE, b_md="# B\n\nold", c_csv="text\nrow\n", z_txt="gone")
    converted(tmp_path / "out", folder)
    assert "4 added, 0 replaced, 0 removed, 0 unchanged; 4 chunks of 4 documents" in said(capsys, "added")
    put(folder / "b.md", "# B\n\nnew")
    put(folder / "sub" / "d.md", "more")
    os.utime(folder / "c.csv", (MAY + 60, MAY + 60))  # touched, on the same day
    (folder / "z.txt").unlink()
    read: list[str] = []
    real = chunking.read_wholes
    monkeypatch.setattr(chunking, "read_wholes", lambda file: read.append(file.doc_id) or real(file))
    converted(tmp_path / "out", folder)
    assert "1 added, 1 replaced, 1 removed, 2 unchanged; 4 chunks of 4 documents" in said(capsys, "added")
    assert read == ["b.md", "sub/d.md"]
    converted(tmp_path / "new", folder)
    for name in ("corpus.jsonl", "skipped.txt"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "new" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] != ".") == [
        "config.yaml",
        "corpus.jsonl",
        "files.jsonl",
        "manifest.json",
        "skipped.txt",
    ]
    capsys.readouterr()
    converted(tmp_path / "out", folder)
    assert "0 added, 0 replaced, 0 removed, 4 unchanged" in said(capsys, "added")


def test_an_interrupted_conversion_goes_on_from_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write(tmp_path / "docs", a_md=PAGE, b_md="# B", c_md="# C")
    monkeypatch.setattr(chunking, "DOCUMENTS_A_WINDOW", 1)
    real, read = chunking.read_wholes, list[str]()

    def interrupted(file):
        read.append(file.doc_id)
        if file.doc_id == "c.md" and len(read) == 3:
            raise KeyboardInterrupt
        return real(file)

    monkeypatch.setattr(chunking, "read_wholes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        converted(tmp_path / "out", folder)
    begun = tmp_path / "out" / "begun" / "corpus.jsonl"
    with open(begun, "a") as file:
        file.write('{"_id": "half of a li')
    put(folder / "a.md", "# changed meanwhile")
    found = converted(tmp_path / "out", folder)
    assert read == ["a.md", "b.md", "c.md", "a.md", "c.md"]
    assert found == converted(tmp_path / "new", folder)
    assert not begun.parent.exists()


@pytest.mark.slow
def test_several_processes_make_what_one_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write(tmp_path / "docs", a_md=PAGE, b_md="# B", c_html="<h1>C</h1><p>c", d_md="# D\n\n" + "d " * 50)
    put(folder / "broken.pdf", "%PDF-1.4 nothing else")
    monkeypatch.setattr(chunking, "PART_BYTES", 8)
    monkeypatch.setattr(chunking, "SMALL_BYTES", 60)  # so that d.md is read by this process
    settings: dict = {"skip_bad": True, "tokenizer": "shortlist-mini"}
    alone = converted(tmp_path / "alone", folder, workers=1, **settings)
    assert converted(tmp_path / "several", folder, workers=2, **settings) == alone
    several, one = (tmp_path / name / "skipped.txt" for name in ("several", "alone"))
    assert several.read_text() == one.read_text() != ""
    with pytest.raises(UserError, match=r"broken\.pdf"):
        converted(tmp_path / "refused", folder, workers=2)


@pytest.mark.parametrize(("files", "workers"), [(31, 1), (32, 2), (80, 3)])
def test_as_many_processes_read_as_there_are_cores_and_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, workers: int
):
    folder = tmp_path / "docs"
    for number in range(files):
        put(folder / f"{number}.md", f"# {number}")
    started = []

    def here(task, items, *, workers):
        started.append(workers)
        return map(task, items)

    monkeypatch.setattr(chunking, "PART_BYTES", 1)
    monkeypatch.setattr(chunking, "num_cores", lambda: 3)
    monkeypatch.setattr(chunking, "spread", here)
    assert len(converted(tmp_path / "out", folder)) == files
    assert started == [workers] * (workers > 1)


def test_a_corpus_that_is_not_the_one_that_was_written_is_made_again(tmp_path: Path):
    folder = write(tmp_path / "docs", a_md=PAGE, b_md="# B")
    whole = converted(tmp_path / "out", folder)
    lines = (tmp_path / "out" / "corpus.jsonl").read_text().replace("swim", "SWIM")
    (tmp_path / "out" / "corpus.jsonl").write_text(lines)
    put(folder / "b.md", "# C")
    assert converted(tmp_path / "out", folder)[0] == whole[0]


BAD = {
    "a.txt": ("Köln é".encode() + b"\xe9", "a.txt: mixes encodings"),
    "a.xyz": (b"\0", "a.xyz: is of a kind that is not known (.xyz)"),
    "a.docx": (b"PK", "a.docx: is damaged"),
    "a.jsonl": (b'{"text": "x"}\nno\n', "a.jsonl:2: not JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_read_is_named_or_skipped_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
):
    folder = write(tmp_path / "docs", b_md=PAGE)
    put(folder / name, BAD[name][0])
    with pytest.raises(UserError) as error:
        converted(tmp_path / "out", folder)
    assert str(error.value).startswith(f"{folder}/{BAD[name][1]}")
    assert "--skip-bad" in str(error.value)
    found = converted(tmp_path / "out", folder, skip_bad=True)
    assert found[-1].doc_id == "b.md#0"
    assert f"skipped {BAD[name][1]}" in said(capsys, f"skipped {name}")
    listed = (tmp_path / "out" / "skipped.txt").read_text()
    assert listed.startswith(BAD[name][1])
    put(folder / "c.md", "more")
    with pytest.raises(UserError, match=name):
        converted(tmp_path / "out", folder)  # it is still there, and not read again
    assert len(list(read_corpus(tmp_path / "out" / "corpus.jsonl"))) == len(found)


def test_files_that_hold_no_text_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write(tmp_path / "docs", a_md=PAGE, pic_png=b"\x89PNG", empty_md="")
    write(folder, **{".git__x_md": "hidden"})
    put(tmp_path / "away.md", "elsewhere")
    (folder / "link.md").symlink_to(tmp_path / "away.md")
    converted(folder / "out", folder)  # an output inside the folder is not read
    assert len(converted(folder / "out", folder)) == 1
    assert "left out 2 files" in said(capsys, "left out")
    assert [line.partition(":")[0] for line in (folder / "out" / "skipped.txt").read_text().splitlines()] == [
        "empty.md",
        "link.md",
        "pic.png",
    ]


def test_a_folder_that_vanishes_half_way_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write(tmp_path / "docs", a_md=PAGE, b_md="# B")
    before = converted(tmp_path / "out", folder, skip_bad=True)
    put(folder / "b.md", "# changed")

    def vanishing(sources, *, without):
        found = finding.find_documents(sources, without=without)
        folder.rename(tmp_path / "moved")
        return found

    monkeypatch.setattr(documents, "find_documents", vanishing)
    with pytest.raises(UserError, match="vanished while it was read; nothing was changed"):
        converted(tmp_path / "out", folder, skip_bad=True)
    assert list(read_corpus(tmp_path / "out" / "corpus.jsonl")) == before


def test_two_documents_of_one_id_are_refused(tmp_path: Path):
    one, two = write(tmp_path / "one", a_md="x"), write(tmp_path / "two", a_md="y")
    with pytest.raises(UserError, match=r"two/a.md: would be document 'a.md', as .*one/a.md is"):
        converted(tmp_path / "out", one, two)
    folder = write(tmp_path / "docs", a_csv="sku;text\ns1;x\ns1;y\n", b_md="x")
    with pytest.raises(UserError, match=r"a\.csv: document id 's1' occurs in it or before it"):
        converted(tmp_path / "out", folder, columns=("id=sku",), as_="documents")
    assert [one.doc_id for one in converted(tmp_path / "out", folder)] == ["a.csv/1#0", "a.csv/2#0", "b.md#0"]


def test_files_that_are_named_have_ids_below_what_they_share_and_white_space_is_written_out(tmp_path: Path):
    write(tmp_path, **{"x y__a b_md": "# A", "z__a b_md": "# B", "z__t_csv": "text\nrow\n"})
    paths = [tmp_path / "x y" / "a b.md", tmp_path / "z" / "a b.md"]
    found = converted(tmp_path / "out", *paths)
    assert [one.doc_id for one in found] == ["x%20y/a%20b.md#0", "z/a%20b.md#0"]
    assert found[0].metadata["path"] == "x y/a b.md"
    assert converted(tmp_path / "one", paths[1])[0].doc_id == "a%20b.md#0"
    assert converted(tmp_path / "table", tmp_path / "z" / "t.csv", as_="documents")[0].doc_id == "t.csv/1#0"


def test_tokens_of_a_model_are_counted(tmp_path: Path):
    folder = write(tmp_path / "docs", a_txt="parse the tokens of one text " * 5)
    found = converted(
        tmp_path / "out", folder, as_="documents", tokenizer="shortlist-mini", chunks="tokens", chunk_size=9
    )
    assert len(found) > 3
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["made_from"]["tokenizer"].startswith("sha256:")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"to": "tevatron"}, "holds documents, for which --to is of no use"),
        ({"min_rate": 0.5}, "holds documents, for which --min-rate is of no use"),
        ({"columns": ("text",)}, "--columns text: expected KIND=NAME"),
        ({"columns": ("txt=a",)}, "--columns txt=a: unknown column 'txt': perhaps 'text' or 'title'?"),
        ({"columns": ("text=a", "text=b")}, "--columns text=b: text occurs before"),
        ({"chunks": "none", "tokenizer": "shortlist-mini"}, "--tokenizer is of no use with --chunks none"),
    ],
)
def test_settings_that_do_not_go_with_documents_are_refused(tmp_path: Path, settings: dict, message: str):
    folder = write(tmp_path / "docs", a_md=PAGE)
    with pytest.raises(UserError) as error:
        converted(tmp_path / "out", folder, as_="documents", **settings)
    assert message in str(error.value)


def test_sources_without_documents_are_refused(tmp_path: Path):
    folder = write(tmp_path / "docs", a_png=b"x")
    for source, message in ((folder, "found 1 files that hold no text"), (tmp_path / "no", "no such file")):
        with pytest.raises(UserError, match=message):
            converted(tmp_path / "out", source, as_="documents")
    lines = put(tmp_path / "t.jsonl", '{"anchor": "a", "positive": "b"}\n')
    with pytest.raises(UserError, match="holds texts, and documents alone take --chunk-size"):
        converted(tmp_path / "out", lines, chunk_size=9)
