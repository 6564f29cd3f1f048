"""How many requests a server answers in time, and what it does with too many, with broken ones, and at SIGTERM.

    python benchmarks/serve_load.py --models models/small-llama models/all-MiniLM-L6-v2 --out benchmarks/serve_load.md

`shortlist serve` beside a plain server (serve_peer.py: FastAPI and sentence-transformers) with the same models and the
same clients: OpenAI's embeddings of texts whose lengths are mixed as in search, most of them queries. Both servers run
the whole time with OMP_NUM_THREADS as given, and are asked in turn; closed loops of more and more clients give
throughput and 95th percentile, and the throughput at an equal 95th percentile is read between the two neighbours. Then,
of shortlist alone: ten times as many requests as it can answer; malformed ones; and SIGTERM under load. Everything
stays on the loopback, and the clients share the machine with the servers.

models/small-llama is the S of peers.py (`save_llama`), as `shortlist export --to sentence-transformers` writes it with
--contract repllama.
"""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import tyro
from measuring import ROOT, conditions, publish, table, turns

from shortlist.progress import say

PACKAGES = ("fastapi", "uvicorn", "torch", "transformers", "sentence-transformers")
WORDS = [
    word for path in sorted((ROOT / "docs").glob("*.md")) for word in path.read_text("utf-8").split() if word.isalpha()
]
LENGTHS = ((0.7, 4, 12), (0.25, 40, 110), (0.05, 150, 190))
"""Share of the texts, and their fewest and most words: queries, passages, the beginnings of documents."""
LIMITS_MS = (100, 250, 500, 1000)


@dataclass(frozen=True, kw_only=True)
class Config:
    models: tuple[Path, ...]
    """Folders of sentence-transformers models, such as `shortlist export` writes; throughput is measured of each, and
    the rest of the first."""
    clients: tuple[int, ...] = (1, 4, 16, 64)
    """How many ask at the same time."""
    seconds: float = 6.0
    """Of each measurement."""
    rounds: int = 3
    """Measurements of each server and number of clients."""
    overload_seconds: float = 60.0
    """Of asking for ten times what can be answered."""
    malformed: int = 10_000
    """Broken requests."""
    out: Path | None = None
    """Markdown file to write too."""


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    name: str
    port: int
    process: subprocess.Popen

    def resident_mib(self) -> float:
        """Memory that it holds now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def running(name: str, command: Sequence[str], **environment: str) -> Iterator[Served]:
    """Start a server on a free port and wait until it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", *command, "--port", str(port)]
    process = subprocess.Popen(words, env=os.environ | environment, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        served = Served(name, port, process)
        asyncio.run(wait_until_ready(served))
        yield served
    finally:
        process.terminate()
        process.wait(60)


async def wait_until_ready(served: Served) -> None:
    """Ask until the answer is 200."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and served.process.poll() is None:
        try:
            if (await ask_once(served.port, b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n")) == "200":
                return
        except OSError:
            await asyncio.sleep(0.3)
    raise SystemExit(f"{served.name} does not get ready.")


def request(body: bytes, path: str = "/v1/embeddings") -> bytes:
    """A whole POST request."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


async def answer(reader: asyncio.StreamReader) -> tuple[str, bool]:
    """Status of the next answer, and whether the connection stays open."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("content-length:"))
    await reader.readexactly(length)
    return head.split()[1], "connection: close" not in head


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server of this machine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def ask_once(port: int, asked: bytes) -> str:
    """The status of one request on a connection of its own."""
    async with connection(port) as (reader, writer):
        writer.write(asked)
        return (await answer(reader))[0]


def texts(rng: random.Random) -> bytes:
    """One text of a length that is usual in search, as an embeddings request."""
    kind = rng.choices(LENGTHS, [share for share, *_ in LENGTHS])[0]
    start = rng.randrange(len(WORDS) - 400)
    text = " ".join(WORDS[start : start + rng.randint(*kind[1:])])
    return request(json.dumps({"input": text}).encode())


async def closed_loop(port: int, clients: int, seconds: float, seed: int) -> tuple[float, float]:
    """Answers per second, and the 95th percentile of their milliseconds."""
    end, waits = time.perf_counter() + seconds, list[float]()

    async def client(number: int) -> None:
        rng = random.Random(1000 * seed + number)
        async with connection(port) as (reader, writer):
            while (start := time.perf_counter()) < end:
                writer.write(texts(rng))
                status, _ = await answer(reader)
                if status != "200":
                    raise SystemExit(f"answered {status}; the clients are too many.")
                waits.append(time.perf_counter() - start)

    await asyncio.gather(*[client(number) for number in range(clients)])
    return len(waits) / seconds, 1000 * float(np.percentile(waits, 95))


def throughput(model: Path, config: Config) -> tuple[str, float]:
    """The tables of both servers, and the most that ours has answered per second."""
    ours = ["shortlist", "serve", "--retriever", str(model)]
    peer = ["uvicorn", "serve_peer:app", "--app-dir", "benchmarks", "--log-level", "warning", "--no-access-log"]
    with running("shortlist", ours) as first, running("plain", peer, MODEL=str(model)) as second:
        measured, curves = curves_of([first, second], config)
    return f"## Throughput of {model.name}\n\n{measured}\n\n{at_equal_p95(curves)}", max(curves["shortlist"])[0]


def curves_of(servers: Sequence[Served], config: Config) -> tuple[str, dict[str, list[tuple[float, float]]]]:
    """The table of both servers, and the medians of (answers per second, p95) by number of clients."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for served in servers:
        asyncio.run(closed_loop(served.port, 4, 2, seed=0))
    for number, turn in enumerate(turns(servers, config.rounds)):
        for clients in config.clients:
            for served in turn:
                result = asyncio.run(closed_loop(served.port, clients, config.seconds, seed=number + 1))
                found.setdefault((served.name, clients), []).append(result)
                say(f"round {number + 1}, {clients} clients, {served.name}: {result[0]:.1f}/s, p95 {result[1]:.0f} ms")
    medians = {key: tuple(median(column) for column in zip(*results, strict=True)) for key, results in found.items()}
    rows = []
    for clients in config.clients:
        (rate, p95), (other_rate, other_p95) = [medians[served.name, clients] for served in servers]
        cells = [f"{rate:.1f}", f"{p95:.0f}", f"{other_rate:.1f}", f"{other_p95:.0f}", f"{rate / other_rate:.2f}"]
        rows.append([str(clients), *cells])
    names = [served.name for served in servers]
    columns = ["clients", f"{names[0]} 1/s", "p95 ms", f"{names[1]} 1/s", "p95 ms", "ratio of 1/s"]
    return table(columns, rows), {name: [medians[name, clients] for clients in config.clients] for name in names}


def at_equal_p95(curves: dict[str, list[tuple[float, float]]]) -> str:
    """The most answers per second with no more than so many milliseconds."""
    rows = []
    for limit in LIMITS_MS:
        rates = [rate_within(curve, limit) for curve in curves.values()]
        told = [f"{rate:.1f}" if rate else "never" for rate in rates]
        rows.append([f"{limit}", *told, f"{rates[0] / rates[1]:.2f}" if rates[1] else "-"])
    return table(["p95 of at most, ms", *[f"{name} 1/s" for name in curves], "ratio"], rows)


def rate_within(curve: list[tuple[float, float]], limit: float) -> float:
    """Throughput at a 95th percentile, between the two measurements next to it; 0 if none is so fast."""
    best = 0.0
    for (rate, p95), (next_rate, next_p95) in zip(curve, [*curve[1:], curve[-1]], strict=True):
        if p95 <= limit:
            best = max(best, rate)
            if next_p95 > limit:
                best = max(best, rate + (next_rate - rate) * (limit - p95) / (next_p95 - p95))
    return best


async def overload(served: Served, rate: float, seconds: float) -> str:
    """Ask at a steady rate, whatever comes back, on as many connections as that takes."""
    statuses, waits, memory = Counter[str](), list[float](), [served.resident_mib()]
    rng, tasks, start = random.Random(7), set[asyncio.Task](), time.perf_counter()

    idle = list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]()

    async def one(asked: bytes) -> None:
        begun = time.perf_counter()
        try:
            reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(asked)
            status, stays = await answer(reader)
            if stays:
                idle.append((reader, writer))
            else:
                writer.close()
        except (OSError, asyncio.IncompleteReadError) as error:
            status = type(error).__name__
        statuses[status] += 1
        if status == "200":
            waits.append(time.perf_counter() - begun)

    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        task = asyncio.ensure_future(one(texts(rng)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        if number % int(rate) == int(rate) - 1:
            memory.append(served.resident_mib())
    took = time.perf_counter() - start
    await asyncio.gather(*tasks)
    p50, p95 = 1000 * np.percentile(waits, (50, 95))
    warm = memory[min(10, len(memory) - 1)]
    return (
        f"{sum(statuses.values()):,} requests in {took:.0f} s, {rate:.0f}/s meant: {counted(statuses)}. "
        f"Of those answered with 200: {len(waits) / took:.1f}/s, p50 {p50:.0f} ms, p95 {p95:.0f} ms, at most "
        f"{1000 * max(waits):.0f} ms. Memory {memory[0]:.0f} MiB before, {warm:.0f} after 10 s, "
        f"at most {max(memory):.0f}, {memory[-1]:.0f} at the end."
    )


def counted(statuses: Counter[str]) -> str:
    """`200: 3,400, 429: 17`."""
    return ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))


def broken(rng: random.Random) -> bytes:
    """A request that is wrong somewhere, or nearly so."""
    valid = {"input": "a text", "encoding_format": "float", "dimensions": 8, "input_type": "query"}
    values = [None, -1, 0, 1e308, 10**400, True, "", "\ud800", "\0", [], {}, [[]], ["a", 1], {"a": "b"}, "x" * 300_000]
    kind = rng.randrange(5)
    if kind == 0:
        return request(json.dumps(valid | {rng.choice(list(valid)): rng.choice(values)}).encode())
    if kind == 1:
        whole = json.dumps(valid).encode()
        return request(whole[: rng.randrange(len(whole))])
    if kind == 2:
        return request(rng.randbytes(rng.randrange(200)))
    if kind == 3:
        return request(b"[" * rng.randrange(1, 20_000) if rng.random() < 0.5 else b'{"input": "' + b"\xff\xc0" * 20)
    body = b'{"input": "' + b"y" * (9 * 2**20 if rng.random() < 0.02 else 10) + b'"}'
    return request(body, rng.choice(["/v1/embeddings", "/embed", "/nope", "/search/../x", "/%ff"]))


async def malformed(served: Served, count: int) -> str:
    """Send broken requests over 16 connections at a time."""
    statuses, before, numbers = Counter[str](), served.resident_mib(), iter(range(count))
    warm = before

    async def client() -> None:
        nonlocal warm
        for number in numbers:
            try:
                statuses[await ask_once(served.port, broken(random.Random(number)))] += 1
            except (OSError, asyncio.IncompleteReadError) as error:
                statuses[type(error).__name__] += 1
            if number == count // 10:
                warm = served.resident_mib()

    await asyncio.gather(*[client() for _ in range(16)])
    after = await ask_once(served.port, request(b'{"input": "still there"}'))
    return (
        f"{count:,} requests: {counted(statuses)}. Memory {before:.0f} MiB before, {warm:.0f} after a tenth, "
        f"{served.resident_mib():.0f} at the end. A good request behind them: {after}."
    )


async def terminated(served: Served, clients: int) -> str:
    """SIGTERM while clients ask over and over."""
    statuses, ended = Counter[str](), asyncio.Event()

    async def client(number: int) -> None:
        rng = random.Random(number)
        while not ended.is_set():
            try:
                async with connection(served.port) as (reader, writer):
                    stays = True
                    while stays and not ended.is_set():
                        writer.write(texts(rng))
                        status, stays = await answer(reader)
                        statuses[status] += 1
            except ConnectionRefusedError:
                statuses["connection refused"] += 1
                return
            except (OSError, asyncio.IncompleteReadError) as error:
                statuses[type(error).__name__] += 1

    asking = [asyncio.ensure_future(client(number)) for number in range(clients)]
    await asyncio.sleep(5)
    start = time.perf_counter()
    served.process.send_signal(signal.SIGTERM)
    code = await asyncio.to_thread(served.process.wait, 60)
    took = time.perf_counter() - start
    ended.set()
    await asyncio.gather(*asking)
    return f"{clients} clients, SIGTERM after 5 s: {counted(statuses)}. Ended after {took:.1f} s with exit code {code}."


def run_alone(config: Config, work: Callable[[Served], Awaitable[str]], *flags: str) -> str:
    """One measurement of a fresh server of ours."""
    with running("shortlist", ["shortlist", "serve", "--retriever", str(config.models[0]), *flags]) as served:
        asyncio.run(closed_loop(served.port, 4, 2, seed=0))
        return asyncio.run(work(served))  # type: ignore[arg-type]


def main(config: Config) -> None:
    under = conditions(None, packages=PACKAGES)
    sections, rates = map(list, zip(*[throughput(model, config) for model in config.models], strict=True))
    rate = 10 * rates[0]
    short = ("--timeout-seconds", "10")
    told = run_alone(config, lambda served: overload(served, rate, config.overload_seconds), *short)
    sections.append(f"## Ten times the capacity, a time limit of 10 s\n\n{told}")
    told = run_alone(config, lambda served: malformed(served, config.malformed))
    sections.append(f"## Malformed requests\n\n{told}")
    told = run_alone(config, lambda served: terminated(served, 16))
    sections.append(f"## SIGTERM under load\n\n{told}")
    publish("Serving embeddings, float32", under, sections, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
