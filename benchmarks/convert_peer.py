"""LangChain's side of convert_speed.py, run by a Python that has LangChain: one line of numbers for each line it reads.

python -m venv peer && peer/bin/pip install langchain-community langchain-text-splitters beautifulsoup4 lxml tokenizers
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

from langchain_community.document_loaders import BSHTMLLoader, DirectoryLoader, TextLoader
from langchain_text_splitters import MarkdownHeaderTextSplitter, RecursiveCharacterTextSplitter
from tokenizers import Tokenizer

LOADERS = {"md": (TextLoader, {"encoding": "utf-8"}), "html": (BSHTMLLoader, {"open_encoding": "utf-8"})}
HEADERS = [("#" * level, f"h{level}") for level in range(1, 7)]


def split(folder: str, way: str, size: int, length: Callable[[str], int]) -> tuple[int, int]:
    """Load and split files; return the numbers of chunks and of characters.

    Args:
        way: ending of the files; `md+` splits at headings first, so that chunks know them. Or several, with commas.
    """
    if "," in way:
        counts = [split(folder, one, size, length) for one in way.split(",")]
        return sum(chunks for chunks, _ in counts), sum(characters for _, characters in counts)
    ending = way.rstrip("+")
    loader, settings = LOADERS[ending]
    pages = DirectoryLoader(folder, glob=f"**/*.{ending}", loader_cls=loader, loader_kwargs=settings).load()
    splitter = RecursiveCharacterTextSplitter(chunk_size=size, chunk_overlap=0, length_function=length)
    if way == "md+":
        by_headings = MarkdownHeaderTextSplitter(HEADERS, strip_headers=False)
        pages = [part for page in pages for part in by_headings.split_text(page.page_content)]
    chunks = splitter.split_documents(pages)
    return len(chunks), sum(len(chunk.page_content) for chunk in chunks)


def count(tokenizer: Tokenizer, text: str) -> int:
    """Count the tokens of a text."""
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


def main() -> None:
    """Answer each line `FOLDER ENDING SIZE TOKENIZER-or-`: seconds, busy seconds, chunks, characters, peak MiB."""
    print(
        ", ".join(f"{name} {version(name)}" for name in ("langchain-community", "langchain-text-splitters")), flush=True
    )
    for line in sys.stdin:
        folder, ending, size, tokenizer = line.split()
        length = len if tokenizer == "-" else partial(count, Tokenizer.from_file(tokenizer))
        start, work = time.perf_counter(), time.process_time()
        counts = split(folder, ending, int(size), length)
        seconds = time.perf_counter() - start, time.process_time() - work
        status = Path("/proc/self/status").read_text("utf-8")
        peak = next(int(line.split()[1]) >> 10 for line in status.split("\n") if line.startswith("VmHWM:"))
        print(*seconds, *counts, peak, flush=True)


if __name__ == "__main__":
    main()
