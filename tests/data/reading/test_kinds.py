"""Small files of every kind, written by hand, and what is read of them."""

import inspect
import json
import mailbox
from pathlib import Path
from zipfile import ZipFile

import pyarrow as pa
import pytest
from pyarrow.parquet import write_table

from shortlist.data.lines import MalformedError
from shortlist.data.reading import archives, wholes
from shortlist.data.reading.kinds import READERS, read_wholes
from shortlist.data.reading.wholes import SourceFile, Whole
from shortlist.errors import UserError
from shortlist.text.chunks import Section


def read(path: Path, data: str | bytes, **columns: str) -> list[Whole]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return list(read_wholes(SourceFile(path, path.name, path.name, columns)))


def why(path: Path, data: str | bytes) -> str:
    with pytest.raises(MalformedError) as error:
        read(path, data)
    return str(error.value)


def pdf(*pages: str, title: str = "", bookmarks: dict[str, int] | None = None) -> bytes:
    """A PDF with a line of text for each line of a page, put together by hand."""
    objects: list[str] = ["", ""]  # the catalog and the pages, written last
    kids = []
    for page in pages:
        lines = " ".join(f"({line}) Tj 0 -20 Td" for line in page.split("\n") if line)
        stream = f"BT /F1 12 Tf 50 700 Td {lines} ET" if lines else "0 0 10 10 re f"
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        font = "<< /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >>"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents {len(objects)} 0 R "
            f"/Resources << /Font {font} >> >>"
        )
        kids.append(f"{len(objects)} 0 R")
    first = len(objects) + 2
    marks = list((bookmarks or {}).items())
    for i, (name, page) in enumerate(marks):
        near = f" /Prev {first + i - 1} 0 R" if i else ""
        near += f" /Next {first + i + 1} 0 R" if i + 1 < len(marks) else ""
        if not i:
            objects.append(f"<< /First {first} 0 R /Last {first + len(marks) - 1} 0 R /Count {len(marks)} >>")
        objects.append(f"<< /Title ({name}) /Parent {first - 1} 0 R /Dest [{kids[page]} /Fit]{near} >>")
    objects.append(f"<< /Title ({title}) >>")
    outlines = f" /Outlines {first - 1} 0 R" if marks else ""
    objects[0] = f"<< /Type /Catalog /Pages 2 0 R{outlines} >>"
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    end += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R /Info {len(objects)} 0 R >>\nstartxref\n{len(out)}\n%%EOF"
    return out + end.encode()


def zipped(path: Path, **files: str) -> bytes:
    with ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/").replace("_xml", ".xml").replace("_opf", ".opf"), text)
    return path.read_bytes()


W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def paragraph(text: str, style: str = "") -> str:
    return f'<w:p><w:pPr><w:pStyle w:val="{style}"/></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>'


def docx(path: Path, body: str) -> bytes:
    styles = "".join(
        f'<w:style w:styleId="{key}"><w:name w:val="{name}"/></w:style>'
        for key, name in (("T", "Title"), ("H1", "heading 1"), ("H2", "heading 2"))
    )
    return zipped(
        path,
        word__document_xml=f"<w:document {W}><w:body>{body}</w:body></w:document>",
        word__styles_xml=f"<w:styles {W}>{styles}</w:styles>",
    )


def test_a_page_of_html_is_read_as_it_is_seen(tmp_path: Path):
    [page] = read(
        tmp_path / "a.html",
        '<html lang="en"><head><title>Otters &amp; co</title><meta name="author" content="Ann">'
        '<link rel="canonical" href="https://o.example/a"><style>p{}</style></head><body><nav>Menu</nav>'
        '<h1>All <b>about</b></h1>They\n swim <!-- not > this --> <i title="a>b">well</i>.<p>Yes<br>they do</p>'
        "<ul><li>one<li><p>two</ul><table><tr><th>a<th>b<tr><td>1<td>2</table>"
        "<h2>Code</h2><pre>x = 1\n  y &lt; 2</pre>end<script>var z</script></body></html>",
    )
    assert (page.title, page.url, page.metadata) == (
        "Otters & co",
        "https://o.example/a",
        {"author": "Ann", "lang": "en"},
    )
    assert page.sections == [
        Section("All about\n\nThey swim well.\n\nYes\nthey do\n\n- one\n- two\n\na | b\n1 | 2", ("All about",)),
        Section("Code\n\nx = 1\n  y < 2\n\nend", ("All about", "Code")),
    ]


def test_main_alone_is_read_where_a_page_has_it(tmp_path: Path):
    [page] = read(tmp_path / "a.html", "<body>top<main><p>text</p></main>bottom")
    assert [section.text for section in page.sections] == ["text"]


def test_pages_are_decoded_as_they_say(tmp_path: Path):
    [page] = read(tmp_path / "a.htm", '<meta charset="iso-8859-15"><p>10 €'.encode("iso-8859-15"))
    assert page.sections[0].text == "10 €"
    assert page.metadata == {"encoding": "iso-8859-15"}


def test_pages_of_a_pdf_are_sections_under_its_bookmarks(tmp_path: Path):
    data = pdf("Intro\nfirst", "rest\nTwo\nsecond", title="Otters", bookmarks={"Intro": 0, "Two": 1})
    [document] = read(tmp_path / "a.pdf", data)
    assert (document.title, document.metadata) == ("Otters", {"pages": 2})
    assert document.sections == [
        Section("Intro\nfirst", ("Intro",), 1),
        Section("rest", ("Intro",), 2),
        Section("Two\nsecond", ("Two",), 2),
    ]


def test_a_pdf_without_text_says_so_and_one_with_some_counts_the_others(tmp_path: Path):
    assert "no text on any page (2)" in why(tmp_path / "a.pdf", pdf("", ""))
    assert "is no whole PDF" in why(tmp_path / "a.pdf", b"%PDF-1.4 and nothing more")
    [document] = read(tmp_path / "a.pdf", pdf("", "text"))
    assert document.metadata == {"pages": 2, "pages_without_text": 1}
    assert document.sections == [Section("text", (), 2)]


def test_word_documents_are_read_in_order_with_what_is_tracked_and_without_what_is_deleted(tmp_path: Path):
    body = (
        paragraph("Otters", "T")
        + paragraph("Life", "H1")
        + "<w:p><w:r><w:t>They </w:t></w:r><w:ins><w:r><w:t>swim</w:t></w:r></w:ins>"
        "<w:del><w:r><w:delText>fly</w:delText></w:r></w:del><w:r><w:tab/><w:t>well</w:t></w:r></w:p>"
        f"<w:sdt><w:sdtContent>{paragraph('Food', 'H2')}</w:sdtContent></w:sdt>"
        f"<w:tbl><w:tr><w:tc>{paragraph('fish')}</w:tc><w:tc>{paragraph('1')}{paragraph('2')}</w:tc></w:tr></w:tbl>"
    )
    [document] = read(tmp_path / "a.docx", docx(tmp_path / "z", body))
    assert document.title == "Otters"
    assert document.sections == [
        Section("Otters"),
        Section("Life\n\nThey swim\twell", ("Life",)),
        Section("Food\n\nfish | 1 2", ("Life", "Food")),
    ]


def epub(path: Path, **more: str) -> bytes:
    pages = {f"OPS__c{i}.xhtml": f"<html><body><h1>Chapter {i}</h1><p>text {i}</p></body></html>" for i in (1, 2)}
    items = "".join(f'<item id="c{i}" href="c{i}.xhtml"/>' for i in (1, 2))
    book = (
        '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>'
        "<dc:title>Otters</dc:title><dc:creator>Ann</dc:creator></metadata>"
        f'<manifest>{items}</manifest><spine><itemref idref="c2"/><itemref idref="c1"/></spine></package>'
    )
    container = '<container><rootfiles><rootfile full-path="OPS/b.opf"/></rootfiles></container>'
    files = {"META-INF__container_xml": container, "OPS__b_opf": book, **pages, **more}
    return zipped(path, **files)


def test_books_are_read_in_the_order_of_their_spine(tmp_path: Path):
    [book] = read(tmp_path / "a.epub", epub(tmp_path / "z"))
    assert (book.title, book.metadata) == ("Otters", {"author": "Ann"})
    assert [section.titles for section in book.sections] == [("Chapter 2",), ("Chapter 1",)]
    lock = {"META-INF__encryption_xml": '<e><CipherReference URI="OPS/c2.xhtml"/></e>'}
    assert "protected" in why(tmp_path / "a.epub", epub(tmp_path / "z", **lock))


def test_archives_are_bounded_and_their_xml_reaches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    secret = tmp_path / "secret.txt"
    secret.write_text("SECRET")
    entity = f'<!DOCTYPE d [<!ENTITY e SYSTEM "{secret.as_uri()}">]>'
    body = f"<w:document {W}><w:body><w:p><w:r><w:t>a&e;b</w:t></w:r></w:p></w:body></w:document>"
    [document] = read(tmp_path / "a.docx", zipped(tmp_path / "z", word__document_xml=entity + body))
    assert "SECRET" not in str(document)
    monkeypatch.setattr(archives, "MOST_DOCUMENT_BYTES", 1000)
    assert "unpacks to more than" in why(tmp_path / "a.docx", docx(tmp_path / "z", paragraph("long " * 1000)))


@pytest.mark.parametrize("name", ["a.docx", "a.epub"])
def test_damaged_archives_and_those_with_passwords_are_told_apart(tmp_path: Path, name: str):
    assert "has a password" in why(tmp_path / name, archives.OLE + b"rest")
    assert "is damaged" in why(tmp_path / name, b"PK and nothing more")
    assert "is missing in it" in why(tmp_path / name, zipped(tmp_path / "z", other_xml="<a/>"))


def test_rows_of_tables_are_documents_with_their_columns_as_metadata(tmp_path: Path):
    rows = read(tmp_path / "a.csv", 'sku;body;name;year;zip\ns1;"one;\ntwo";A;2020;0815\ns2;three;;;1.5\n', id="sku")
    assert rows == [
        Whole([Section("one;\ntwo")], "A", "1", "s1", "", {"year": 2020, "zip": "0815"}),
        Whole([Section("three")], "", "2", "s2", "", {"zip": 1.5}),
    ]
    [row] = read(tmp_path / "b.tsv", "colour\tsize\nred\t3\n")
    assert row.sections == [Section("colour: red\nsize: 3")]
    write_table(pa.table({"text": ["x", "y"], "tags": [["a", "b"], None]}), tmp_path / "t.parquet")
    found = read(tmp_path / "t.parquet", (tmp_path / "t.parquet").read_bytes())
    assert [(whole.sections[0].text, whole.metadata) for whole in found] == [("x", {"tags": ["a", "b"]}), ("y", {})]


def test_objects_of_json_are_documents(tmp_path: Path):
    record = {"_id": "x", "title": "T", "text": "body", "author": {"name": "Ann"}, "gone": None}
    whole = Whole([Section("body")], "T", "1", "x", "", {"author.name": "Ann"})
    assert read(tmp_path / "a.jsonl", json.dumps(record) + "\n") == [whole]
    assert read(tmp_path / "a.json", json.dumps([record])) == [whole]
    assert read(tmp_path / "a.json", json.dumps(record)) == [whole._replace(name="")]
    assert "is not JSON" in why(tmp_path / "a.json", "{")
    assert "something beside objects" in why(tmp_path / "a.json", "[1]")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_a_column_that_is_not_there_is_refused_with_near_names(tmp_path: Path, name: str):
    data = {"a.csv": "sku,body\n1,x\n"}.get(name, '{"sku": "1", "body": "x"}')
    with pytest.raises(UserError, match="unknown column 'bodi': perhaps 'body'"):
        read(tmp_path / name, data, text="bodi")


def test_records_that_cannot_be_used_are_named_by_their_place(tmp_path: Path):
    said: list[str] = []
    for name, data in (("a.jsonl", '{"text": 1}\nno\n{"text": "x"}\n'), ("a.csv", "text,b\n1,2,3\nx,\n")):
        path = tmp_path / name
        path.write_text(data)
        found = list(read_wholes(SourceFile(path, name, name, {}, said.append)))
        assert [whole.sections[0].text for whole in found] == ["x"]
    assert [line.removeprefix(f"{tmp_path}/").partition(": ")[0] for line in said] == [
        "a.jsonl:1",
        "a.jsonl:2",
        "a.csv:2",
    ]


def test_mails_have_their_subject_as_title_and_headers_as_metadata(tmp_path: Path):
    mail = (
        "From: Ann <ann@o.example>\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\nDate: Thu, 02 Jan 2020 10:00:00 +0100\n"
        "Content-Type: text/html; charset=utf-8\n\n<p>Hello<p>otter"
    )
    [message] = read(tmp_path / "a.eml", mail)
    assert (message.title, message.sections) == ("Grüße", [Section("Hello\n\notter")])
    assert message.metadata == {"from": "Ann <ann@o.example>", "date": "2020-01-02T10:00:00+01:00"}
    box = mailbox.mbox(tmp_path / "made")
    box.add(mail.encode())
    box.add(b"Subject: two\n\nplain\n")
    box.close()
    found = read(tmp_path / "a.mbox", (tmp_path / "made").read_bytes())
    assert [(one.name, one.title, one.sections[0].text.strip()) for one in found] == [
        ("1", "Grüße", "Hello\n\notter"),
        ("2", "two", "plain"),
    ]
    assert "holds no messages" in why(tmp_path / "b.mbox", "no mail")


def test_definitions_of_source_code_are_sections(tmp_path: Path):
    code = "import os\n\n@cache\ndef one():\n    def inner(): ...\n\nclass Two:\n    pass\n"
    [source] = read(tmp_path / "a.py", code)
    assert source.title == "a.py"
    assert source.sections == [
        Section("import os"),
        Section("@cache\ndef one():\n    def inner(): ...", ("one",)),
        Section("class Two:\n    pass", ("Two",)),
    ]


def test_text_without_a_known_ending_is_plain_text_and_anything_else_is_named(tmp_path: Path):
    [text] = read(tmp_path / "LICENSE", "free")
    assert text.sections == [Section("free")]
    assert "of a kind that is not known (.xyz)" in why(tmp_path / "a.xyz", b"\0\1")
    assert read(tmp_path / "empty.md", "") == [Whole([])]


def test_a_file_that_is_gone_or_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(MalformedError, match="vanished"):
        list(read_wholes(SourceFile(tmp_path / "a.md", "a.md")))
    monkeypatch.setattr(wholes, "MOST_DOCUMENT_BYTES", 3)
    assert "too much for one document" in why(tmp_path / "a.md", "four")


def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "pypdfium2", None)
    with pytest.raises(UserError, match=r"pypdfium2 is not installed.*shortlist\[files\]"):
        read(tmp_path / "a.pdf", b"%PDF")


def test_every_reader_is_a_function_of_one_file():
    assert all(len(inspect.signature(reader).parameters) == 1 for reader in READERS.values())
