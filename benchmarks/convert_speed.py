"""How fast folders of files become chunks: `convert --as documents` beside LangChain's loaders and recursive splitter.

    python benchmarks/convert_speed.py --peer peer/bin/python --out benchmarks/convert_speed.md

Made-up pages of some 7 KB with headings, lists, tables and code. LangChain reads with `DirectoryLoader` over
`TextLoader` (Markdown, whose headings `MarkdownHeaderTextSplitter` finds) or `BSHTMLLoader` (HTML), and splits with
`RecursiveCharacterTextSplitter`, by characters (its default) or by tokens; `convert_peer.py` says how to install it.
Its chunks stay in memory, ours are on disk, with all that is needed to bring them up to date. Sides take turns; each is
one process, but that ours starts others where there is much to read. `busy` counts the seconds of the processor in the
first process alone, which others' work on the machine changes less.
"""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from measuring import conditions, in_a_process, peak_gib, publish, table, turns

from shortlist.convert import Config as Convert
from shortlist.convert import run
from shortlist.data.files import read_json
from shortlist.models.shipped import shipped_folder
from shortlist.progress import say

WORDS = [f"{a}{b}{c}" for a in "bdfklmnprst" for b in ("a", "e", "ing", "or", "um") for c in ("", "ter", "lo", "ness")]
SIZE = {"words": 200, "characters": 1000, "tokens": 200}


@dataclass(frozen=True, kw_only=True)
class Config:
    peer: Path
    """Python that has LangChain."""
    files: int = 2000
    """Files, half of them Markdown, half HTML."""
    rounds: int = 5
    """Times every side runs, after one run to warm up."""
    out: Path | None = None
    """Markdown file to write too."""


class Case(NamedTuple):
    """What is compared: files of one kind, measured in one way."""

    name: str
    ending: str
    way: str
    """What the peer does, as `convert_peer.split` calls it."""
    tokenizer: bool = False


CASES = [
    Case("Markdown, LangChain without headings", "md", "md"),
    Case("Markdown", "md", "md+"),
    Case("HTML", "html", "html"),
    Case("Markdown and HTML in one folder", "", "md+,html"),
    Case("Markdown, by tokens", "md", "md", tokenizer=True),
]


def make(folder: Path, count: int) -> None:
    """Write the pages."""
    rng = np.random.default_rng(0)
    for ending in ("md", "html"):
        for number in range(count // 2):
            path = folder / ending / f"{number % 20}" / f"page{number}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(PAGES[ending](rng, number), "utf-8")


def _text(rng: np.random.Generator, words: int) -> str:
    ends = cycle(["", "", "", "", ",", "", "", "", "", "", ""])
    picked = [WORDS[i] + next(ends) for i in rng.integers(len(WORDS), size=words)]
    for place in range(12, words, 14):
        picked[place] = picked[place].rstrip(",") + "."
    return " ".join(picked).capitalize() + "."


def _markdown(rng: np.random.Generator, number: int) -> str:
    parts = [f"# Page {number}\n\n{_text(rng, 60)}"]
    for section in range(6):
        level = "##" if section % 3 == 0 else "###"
        parts.append(f"{level} {_text(rng, 4)}\n\n{_text(rng, 90)}\n\n{_text(rng, 40)}")
        parts.append("\n".join(f"- {_text(rng, 8)}" for _ in range(3)))
    parts.append("| name | size |\n|---|---|\n" + "\n".join(f"| {_text(rng, 2)} | {i} |" for i in range(5)))
    parts.append("```python\n# not a heading\ndef page():\n    return 1\n```\n")
    return "\n\n".join(parts)


def _html(rng: np.random.Generator, number: int) -> str:
    parts = [f"<h1>Page {number}</h1><p>{_text(rng, 60)}</p>"]
    for section in range(6):
        level = 2 if section % 3 == 0 else 3
        parts.append(f"<h{level}>{_text(rng, 4)}</h{level}><p>{_text(rng, 60)} <b>{_text(rng, 30)}</b></p>")
        parts.append(f"<p>{_text(rng, 40)}</p><ul>" + "".join(f"<li>{_text(rng, 8)}</li>" for _ in range(3)) + "</ul>")
    parts.append("<table>" + "".join(f"<tr><td>{_text(rng, 2)}</td><td>{i}</td></tr>" for i in range(5)) + "</table>")
    head = f"<head><title>Page {number}</title><style>p {{}}</style></head>"
    return (
        f"<!doctype html><html>{head}<body><nav><a href='/'>Home</a></nav><main>{''.join(parts)}</main></body></html>"
    )


PAGES = {"md": _markdown, "html": _html}


def ours(folder: Path, work: Path, case: Case) -> tuple[float, float]:
    """Convert into a new collection; return the seconds, and those of the processor."""
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    start, busy = time.perf_counter(), time.process_time()
    run(
        Convert(
            sources=(str(folder / case.ending),),
            out=out,
            as_="documents",
            tokenizer="shortlist-mini" if case.tokenizer else None,
        )
    )
    return time.perf_counter() - start, time.process_time() - busy


def peak_of_ours(folder: Path, work: Path) -> float:
    """Convert all files in this process; return its peak memory, MiB."""
    shutil.rmtree(work / "all", ignore_errors=True)
    run(Convert(sources=(str(folder),), out=work / "all", as_="documents"))
    return peak_gib() * 1024


class Peer:
    """LangChain in a process of its own."""

    def __init__(self, python: Path) -> None:
        script = Path(__file__).with_name("convert_peer.py")
        self._process = subprocess.Popen(
            [python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.versions = self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise SystemExit("the peer has ended; run benchmarks/convert_peer.py by hand to see why.")
        return line.strip()

    def split(self, folder: Path, case: Case) -> list[float]:
        """Return seconds, processor seconds, chunks, characters and peak memory in MiB."""
        assert self._process.stdin is not None
        shipped = shipped_folder("shortlist-mini")
        assert shipped is not None
        words = [folder / case.ending, case.way, SIZE["tokens" if case.tokenizer else "characters"]]
        print(*words, shipped / "tokenizer.json" if case.tokenizer else "-", file=self._process.stdin, flush=True)
        return [float(word) for word in self._answer().split()]

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(folder: Path, work: Path, config: Config, peer: Peer) -> str:
    """The table of both sides' medians."""
    rows = []
    for case in CASES:
        rounds = 1 if case.tokenizer else config.rounds  # by tokens it takes LangChain long
        sides: dict[str, Callable[[], Sequence[float]]] = {
            "shortlist": partial(ours, folder, work, case),
            "LangChain": partial(peer.split, folder, case),
        }
        chunks = sides["LangChain"]()[2]
        times: dict[str, list[Sequence[float]]] = {name: [] for name in sides}
        for number, turn in enumerate(turns(list(sides), rounds)):
            for name in turn:
                times[name].append(sides[name]()[:2])
            last = ", ".join(f"{name} {one[-1][0]:.2f} s ({one[-1][1]:.2f} busy)" for name, one in times.items())
            say(f"{case.name}: round {number + 1}: {last}")
        ours_chunks = read_json(work / "out" / "manifest.json")["results"]["chunks"]
        medians = np.median([times["shortlist"], times["LangChain"]], axis=1)
        rows.append([*_row(case.name, medians), f"{ours_chunks:,}", f"{chunks:,.0f}"])
    columns = ["files", "shortlist, s (busy)", "LangChain, s (busy)", "times as fast (busy)", "chunks", "LangChain's"]
    return table(columns, rows)


def _row(name: str, medians: np.ndarray) -> list[str]:
    ratios = medians[1] / medians[0]
    cells = [f"{seconds:.2f} ({busy:.2f})" for seconds, busy in (*medians, ratios)]
    return [name, *cells]


def memory(folder: Path, work: Path, count: int, python: Path) -> list[str]:
    """The row of both sides' peak memory over this many files."""
    mine = in_a_process(peak_of_ours, folder, work)
    peer = Peer(python)
    theirs = peer.split(folder, CASES[3])[4]
    peer.close()
    return [f"{count:,}", f"{mine:,.0f}", f"{theirs:,.0f}"]


def main(config: Config) -> None:
    """Make the files, measure, and publish."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        many, few = work / "many", work / "few"
        make(many, config.files)
        make(few, config.files // 10)
        size = sum(path.stat().st_size for path in many.rglob("*.*")) / 2**20
        peer = Peer(config.peer)
        said = conditions(None, packages=("tokenizers", "selectolax", "numpy")) + f"\n- {peer.versions}"
        speed = compare(many, work, config, peer)
        peer.close()
        rows = [
            memory(few, work, config.files // 10, config.peer),
            memory(many, work, config.files, config.peer),
        ]
    sizes = table(["files", "shortlist, peak MiB", "LangChain, peak MiB"], rows)
    about = f"{config.files:,} files of {size:.1f} MiB, half Markdown and half HTML; medians of {config.rounds} rounds."
    publish(
        "Speed of converting files",
        said,
        [about, speed, "Markdown and HTML, by words and by characters:", sizes],
        config.out,
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
