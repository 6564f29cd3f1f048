"""A tiny pipeline behind the application, and a server in a process of its own."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from processes import PATIENCE, Started, free_port, shortlist
from tiny import Tiny

from shortlist import Pipeline, encode, index
from shortlist.config import flag_of
from shortlist.serve import Config, served_pipeline
from shortlist.serve.service import Service


class Built(NamedTuple):
    """What a tiny pipeline is made of."""

    tiny: Tiny
    vectors: Path
    words: Path

    @property
    def names(self) -> dict[str, str]:
        """As flags of `shortlist serve` have them."""
        tiny = self.tiny
        return {
            "retriever": str(tiny.retriever),
            "vectors": str(self.vectors),
            "collection": str(tiny.collection),
            "bm25": str(self.words),
            "reranker": str(tiny.reranker),
        }

    def pipeline(self) -> Pipeline:
        """Loaded into this process."""
        names = self.names
        return Pipeline.load(names.pop("collection"), **names)

    def config(self, **settings: Any) -> Config:
        """Settings of a server over it all."""
        paths = {"vectors": self.vectors, "bm25": self.words}
        return Config(**{**self.names, **paths, **settings})

    def service(self, **options: Any) -> Service:
        """What such a server works with."""
        return Service(served_pipeline(self.config()), **options)


def build(tiny: Tiny, folder: Path) -> Built:
    """Encode and index the tiny collection."""
    encode.run(encode.Config(model=str(tiny.retriever), collection=str(tiny.collection), out=folder / "vectors"))
    index.run(index.Config(collection=str(tiny.collection), out=folder / "words"))
    return Built(tiny, folder / "vectors", folder / "words")


class Live(NamedTuple):
    """A server that runs."""

    process: Started
    url: str

    def terminate(self) -> int:
        """Its exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait()


@contextmanager
def live(flags: dict[str, object], stderr: Path) -> Iterator[Live]:
    """`shortlist serve` on a free port of the loopback."""
    port = free_port()
    words = [f"{flag_of(name)}={value}" for name, value in (flags | {"port": port}).items()]
    process = Started(shortlist, "serve", *words, err=stderr)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE
        while not _answers(url):
            assert process.poll() is None, stderr.read_text()
            assert time.monotonic() < deadline, stderr.read_text()
            time.sleep(0.05)
        yield Live(process, url)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.send_signal(signal.SIGKILL)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
