from pathlib import Path

import pytest

from shortlist.data.lines import MalformedError
from shortlist.data.reading.decoding import decode, encoding_of

GERMAN = "Straße nach Köln, für große Männer und schöne Häuser"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_text_in_any_encoding_is_read(tmp_path: Path, encoding: str):
    data = GERMAN.encode(encoding)
    text, said = decode(data)
    assert text == GERMAN
    assert bool(said) == (encoding not in ("utf-8", "utf-8-sig"))
    (tmp_path / "t.csv").write_bytes(data)
    assert data.decode(encoding_of(tmp_path / "t.csv")) == GERMAN


def test_line_ends_of_other_systems_are_ours():
    assert decode(b"a\r\nb\rc\n")[0] == "a\nb\nc\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GERMAN.encode() + GERMAN.encode("cp1252"), "mixes encodings: UTF-8 up to byte 63"),
        (b"a\0b", "holds no text"),
        (b"\xff\xfea", "begins as utf-16"),
        (b"\x89PNG\0\0\xff", "holds no text"),
    ],
)
def test_what_is_no_text_is_said(data: bytes, message: str):
    with pytest.raises(MalformedError, match=message):
        decode(data)
