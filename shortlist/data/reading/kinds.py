"""The kinds of files that are read, by the ending of their names."""

from collections.abc import Iterator
from pathlib import Path

from shortlist.data.lines import MalformedError
from shortlist.data.reading.docx import read_docx
from shortlist.data.reading.epub import read_epub
from shortlist.data.reading.html import read_html
from shortlist.data.reading.mail import read_mailbox, read_message
from shortlist.data.reading.markdown import read_markdown
from shortlist.data.reading.pdf import read_pdf
from shortlist.data.reading.tables import read_csv, read_json_records, read_jsonl, read_parquet
from shortlist.data.reading.texts import read_code, read_plain
from shortlist.data.reading.wholes import Reader, SourceFile, Whole

CODE = (
    "py pyi js jsx mjs cjs ts tsx java kt kts scala groovy go rs c h cc cpp cxx hpp hh cs fs swift m mm rb php pl pm "
    "lua r jl dart ex exs erl hs ml mli clj cljs el lisp sh bash zsh fish ps1 sql proto graphql tf cmake gradle nim zig"
)
DOCUMENT_READERS: dict[str, Reader] = {
    **dict.fromkeys((".md", ".markdown", ".mdx"), read_markdown),
    **dict.fromkeys((".html", ".htm", ".xhtml"), read_html),
    **{f".{ending}": read_code for ending in CODE.split()},
    ".pdf": read_pdf,
    ".docx": read_docx,
    ".epub": read_epub,
    ".eml": read_message,
    ".mbox": read_mailbox,
    ".rst": read_plain,
    ".adoc": read_plain,
}
"""Readers of files that cannot be anything but documents."""

READERS: dict[str, Reader] = {
    **DOCUMENT_READERS,
    **dict.fromkeys((".txt", ".text", ".log"), read_plain),
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json_records,
}
"""Ending of a file's name -> its reader; a `.gz` behind that of a table does not count."""

MAY_BE_GZIPPED = (".csv", ".tsv", ".jsonl", ".ndjson")
"""Endings of files that may be gzipped."""

PICTURES = "png jpg jpeg gif bmp tif tiff webp ico svg heic psd"
SOUNDS = "mp3 wav ogg flac m4a mp4 mov avi mkv webm"
OF_PAGES = "woff woff2 ttf otf eot css map"
ARCHIVES = "zip gz tgz bz2 xz 7z rar tar jar whl iso"
PROGRAMS = "exe dll so dylib a o pyc class bin"
DATA = "db sqlite npy npz safetensors pt onnx gguf"
TEXTLESS = {f".{ending}" for ending in f"{PICTURES} {SOUNDS} {OF_PAGES} {ARCHIVES} {PROGRAMS} {DATA}".split()}
"""Endings of files that hold no text to search; in a folder they are left out, and counted."""


def ending_of(path: Path) -> str:
    """Return the ending that says how a file is read, in lower case."""
    inner = Path(path.name.removesuffix(".gz")).suffix.lower()
    return inner if inner in MAY_BE_GZIPPED else path.suffix.lower()


def read_wholes(file: SourceFile) -> Iterator[Whole]:
    """Yield the documents of a file, by the reader for its ending.

    A file whose ending has no reader may be plain text.

    Raises:
        MalformedError: it cannot be read.
        UserError: a library is missing, or a column that the user names.
    """
    ending = ending_of(file.path)
    try:
        if ending in READERS:
            yield from READERS[ending](file)
            return
        try:
            yield from read_plain(file)
        except MalformedError:
            raise MalformedError(
                f"is of a kind that is not known ({ending or 'no ending'}), and no text; expected Markdown, HTML, PDF, "
                "DOCX, EPUB, mail, a table, JSON, source code or plain text. Convert it, or leave it out."
            ) from None
    except FileNotFoundError:
        raise MalformedError("vanished before it was read; run the same command again.") from None
    except OSError as error:
        raise MalformedError(f"cannot be read ({error.strerror or error}); mend that, or leave it out.") from None
