"""Bytes to text, whatever their encoding."""

import codecs
import re
from pathlib import Path

from shortlist.data.files import open_bytes
from shortlist.data.lines import MalformedError
from shortlist.data.reading.wholes import library, read_bytes

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""First bytes of files that say their encoding; the longer of two comes first."""

MULTIBYTE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
"""A letter beyond ASCII in UTF-8; in other encodings these bytes next to one another make no sense."""

GUESSED_BYTES = 1 << 18
"""Bytes by which the encoding of a text that is not UTF-8 is guessed."""


def decode(data: bytes) -> tuple[str, str]:
    """Return the text, and its encoding where that is not UTF-8.

    Raises:
        MalformedError: it is no text, or in several encodings.
    """
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            try:
                return _lines(data.decode(encoding)), "" if encoding == "utf-8-sig" else encoding
            except UnicodeDecodeError as error:
                raise MalformedError(f"begins as {encoding}, but is not at byte {error.start}; save it anew.") from None
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        encoding = guess(data, error.start)
        return _lines(data.decode(encoding, errors="replace")), encoding
    if "\0" in text:
        raise MalformedError("holds no text: there are zero bytes in it; leave it out.")
    return _lines(text), ""


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def guess(data: bytes, first_bad: int) -> str:
    """Guess the encoding of bytes that are not UTF-8 from `first_bad` on.

    Raises:
        MalformedError: it is no text, or a part is UTF-8.
    """
    sample = data[max(0, first_bad - GUESSED_BYTES // 2) :][:GUESSED_BYTES]
    if b"\0" in sample:
        raise MalformedError("holds no text: there are zero bytes in it; leave it out.")
    if MULTIBYTE.search(data[:first_bad]):
        raise MalformedError(
            f"mixes encodings: UTF-8 up to byte {first_bad:,}, but not there; save all of it as UTF-8."
        )
    best = library("charset_normalizer").from_bytes(sample).best()
    if best is None:
        raise MalformedError(f"is text of an unknown encoding, or none, from byte {first_bad:,} on; save it as UTF-8.")
    return best.encoding


def read_text(path: Path) -> tuple[str, str]:
    """Read a text file; return the text, and its encoding where that is not UTF-8.

    Raises:
        MalformedError: it is no text, in several encodings, or too large.
    """
    return decode(read_bytes(path))


def encoding_of(path: Path) -> str:
    """Find the encoding of a file that is too large to hold in memory.

    Raises:
        MalformedError: it is no text, or in several encodings.
    """
    decoder, place = codecs.getincrementaldecoder("utf-8")(), 0
    with open_bytes(path) as file:
        start = file.peek(4)[:4]  # type: ignore[attr-defined]
        if mark := next((encoding for bom, encoding in MARKS.items() if start.startswith(bom)), None):
            return mark
        before = b""
        while block := file.read(1 << 20):
            try:
                decoder.decode(block)
            except UnicodeDecodeError:
                both = before + block + file.read(GUESSED_BYTES)
                return guess(both, _first_bad(both))
            before, place = block, place + len(block)
    return "utf-8"


def _first_bad(data: bytes) -> int:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(data)


def encoding_field(encoding: str) -> dict[str, str]:
    """Return the metadata that say in which encoding a document was found."""
    return {"encoding": encoding} if encoding else {}
