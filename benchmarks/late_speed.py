"""How fast late interaction is beside a bare product, sentence-transformers' maxsim, fast-plaid and xtr-warp-rs.

    python benchmarks/late_speed.py --out benchmarks/late_speed.md \\
        --peers fast-plaid=ENV/bin/python xtr-warp-rs=ENV/bin/python

Made-up token vectors of length 1: every query has 20 documents that share 32 to 13 of its tokens, with noise as long as
the token. Or real ones: `--real STORE MODEL COLLECTION`, a token store with the queries of a collection. All sides find
the 10 best for the same queries on one thread, in turns, each starting a round once. `bare` is `torch.matmul` and
`amax` over [docs, tokens, dim], for one query after another. Recall is against exact search.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from measuring import Peer, conditions, publish, table, turns
from sentence_transformers.util.similarity import maxsim

from shortlist.data.collections import open_collection
from shortlist.data.files import folder_bytes
from shortlist.data.stores.tokens import TokenReader, TokenWriter
from shortlist.index.building import build_index
from shortlist.index.kinds import INDEXES
from shortlist.index.late import LateIndex, some_queries
from shortlist.index.protocols import Opening
from shortlist.math.maxsim import TokenVectors
from shortlist.models.late_retriever import LateRetriever
from shortlist.progress import say

K = 10
SHARD = 20_000
Find = Callable[[TokenVectors], np.ndarray]
"""Queries -> positions [queries, 10], best first."""


@dataclass(frozen=True, kw_only=True)
class Config:
    sizes: tuple[tuple[int, int], ...] = ((10_000, 100), (100_000, 60))
    """Documents and their tokens, a table each."""
    ragged: bool = False
    """Give documents half to one and a half times as many tokens."""
    queries: int = 50
    """Queries, of 32 tokens each."""
    dim: int = 128
    rounds: int = 7
    """Times every side runs after its warm-up."""
    efforts: tuple[int, ...] = (64, 128, 256, 512)
    """Candidates of pruned search."""
    real: tuple[str, str, str] | None = None
    """Instead of made-up vectors: a token store, the model that made it, and a collection with queries."""
    kinds: tuple[str, ...] = ("late", "late-centroids")
    """Pruned indexes to build."""
    peers: tuple[str, ...] = ()
    """Other tools, as NAME=PYTHON of an environment that has them."""
    small: bool = False
    """A quick run: 2,000 documents of 40 tokens, 3 rounds."""
    out: Path | None = None
    """Markdown file to write too."""


def made_up(num_docs: int, tokens: int, config: Config) -> tuple[TokenVectors, TokenVectors]:
    """Queries and documents of unit vectors; each query has documents that share fewer and fewer of its tokens."""
    random = np.random.default_rng(0)

    def units(*shape: int) -> np.ndarray:
        vectors = random.standard_normal(shape, dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    half = tokens // 2 if config.ragged else 0
    counts = random.integers(tokens - half, tokens + half + 1, num_docs)
    documents, starts = units(int(counts.sum()), config.dim), np.cumsum(counts) - counts
    queries, places = units(config.queries, 32, config.dim), random.permutation(num_docs)
    for number, query in enumerate(queries):
        for rank, place in enumerate(places[20 * number : 20 * number + 20]):
            shared = query[random.permutation(32)[: min(32 - rank, counts[place])]]
            noisy = shared + units(*shared.shape)
            noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
            documents[starts[place] : starts[place] + len(noisy)] = noisy
    return TokenVectors(queries.reshape(-1, config.dim), np.full(len(queries), 32)), TokenVectors(documents, counts)


def real(config: Config) -> tuple[TokenVectors, TokenVectors]:
    """The vectors of a token store, and those of a collection's queries."""
    assert config.real is not None
    store, model, collection = config.real
    queries: Any = LateRetriever.load(model).encode_queries(open_collection(collection).queries("test"))
    tokens = TokenReader(Path(store))
    return some_queries(queries, 0, config.queries), tokens.take(np.arange(tokens.num_docs))


def write(folder: Path, documents: TokenVectors) -> TokenReader:
    """Write a token store."""
    writer, ends = TokenWriter(folder, documents.values.shape[1]), np.cumsum(documents.counts)
    for number, first in enumerate(range(0, len(documents), SHARD)):
        last = min(first + SHARD, len(documents))
        values = documents.values[ends[first] - documents.counts[first] : ends[last - 1]]
        names = [str(place) for place in range(first, last)]
        writer.write_shard(number, names, TokenVectors(values, documents.counts[first:last]))
    return TokenReader(folder)


def best(scores: torch.Tensor) -> np.ndarray:
    """Positions of the best, with rows of queries."""
    return scores.topk(K).indices.numpy()


class Padded:
    """The documents as [docs, tokens, dim]; short ones repeat their last token, which changes no maximum."""

    def __init__(self, documents: TokenVectors) -> None:
        longest, ends = int(documents.counts.max()), np.cumsum(documents.counts)
        starts = ends - documents.counts
        places = np.minimum(starts[:, None] + np.arange(longest), ends[:, None] - 1)
        self.vectors = torch.from_numpy(documents.values[places])

    def bare(self, queries: TokenVectors) -> np.ndarray:
        """The product and maximum of each query."""
        scores = [torch.matmul(self.vectors, torch.from_numpy(query).T).amax(1).sum(1) for query in queries]
        return best(torch.stack(scores))

    def sentence_transformers(self, queries: TokenVectors) -> np.ndarray:
        """Their maxsim, of all queries together."""
        return best(maxsim([torch.from_numpy(query) for query in queries], self.vectors))


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """The share of the 10 best that are found."""
    return float(
        np.mean([len({*one[one >= 0].tolist()} & {*two.tolist()}) / K for one, two in zip(found, exact, strict=True)])
    )


def section(name: str, queries: TokenVectors, documents: TokenVectors, config: Config, stack: ExitStack) -> str:
    """Measure all sides over some documents."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    store, padded = write(folder / "tokens", documents), Padded(documents)
    exact = LateIndex(store)
    wanted = exact.search_tokens(queries, K)[1]
    sides: dict[str, Callable[[], tuple[float, np.ndarray]]] = {}
    notes: dict[str, str] = {}

    def add(called: str, find: Find, asked: TokenVectors = queries) -> None:
        def run() -> tuple[float, np.ndarray]:
            start = time.perf_counter()
            found = find(asked)
            return time.perf_counter() - start, found

        sides[called] = run

    def one_by_one(index: Any) -> Find:
        return lambda asked: np.concatenate(
            [index.search_tokens(some_queries(asked, row, row + 1), K)[1] for row in range(len(asked))]
        )

    add("bare product and maximum", padded.bare)
    add("sentence-transformers maxsim", padded.sentence_transformers)
    add("exact float32", lambda asked: exact.search_tokens(asked, K)[1])
    add("exact float32, one by one", one_by_one(exact))
    for kind in ("narrow", *config.kinds):
        start, settings = time.perf_counter(), {"dtype": "int8"} if kind == "narrow" else {}
        build_index(INDEXES[kind], store.folder, folder / kind, settings)
        seconds, size = time.perf_counter() - start, folder_bytes(folder / kind)
        built = f"{seconds:.1f} s, {size / 2**20:,.0f} MiB"
        for effort in (None,) if kind == "narrow" else config.efforts:
            how = Opening(vectors=store.folder, effort=effort, refine=None if kind == "narrow" else 1)
            index = INDEXES[kind].open(folder / kind, {}, how)
            called = "int8, rescored" if kind == "narrow" else f"{kind}, {effort} candidates"
            notes[called] = built
            add(called, lambda asked, index=index: index.search_tokens(asked, K)[1])
            add(f"{called}, one by one", one_by_one(index))
    for name_, array in (("documents", documents.values), ("counts", documents.counts), ("queries", queries.values)):
        np.save(folder / f"{name_}.npy", array)
    np.save(folder / "query_tokens.npy", queries.counts)
    for given in config.peers:
        tool, _, python = given.partition("=")
        peer = stack.enter_context(Peer(python, "late_peer.py", tool, folder))
        told = peer.ask("build")
        for setting in told["settings"]:
            called = f"{tool}, {setting}"
            notes[called] = f"{told['seconds']:.1f} s, {told['bytes'] / 2**20:,.0f} MiB"

            def run(peer: Peer = peer, setting: str = setting) -> tuple[float, np.ndarray]:
                answer = peer.ask(f"search {setting}")
                found = [[*hits, *[-1] * K][:K] for hits in answer["found"]]
                return answer["seconds"], np.array(found)

            sides[called] = run
    seconds, recalls = (
        {called: [] for called in sides},
        {called: recall(run()[1], wanted) for called, run in sides.items()},
    )
    for turn in turns([*sides], config.rounds):
        for called in turn:
            seconds[called].append(sides[called]()[0])
    medians = {called: statistics.median(times) for called, times in seconds.items()}
    bare, ours = medians["bare product and maximum"], medians["exact float32"]
    rows = []
    for called, taken in medians.items():
        numbers = [f"{1000 * taken / len(queries):.2f}", f"{bare / taken:.2f}", f"{ours / taken:.2f}"]
        rows.append([called, *numbers, f"{recalls[called]:.3f}", notes.get(called.removesuffix(", one by one"), "")])
    columns = ("search", "ms per query", "times bare", "times exact float32", "recall@10", "built in")
    say(f"{name}: done")
    return f"## {name}\n\n" + table(columns, rows)


def main(config: Config) -> None:
    """Measure and write the tables."""
    torch.set_num_threads(1)
    under = conditions(None, packages=("torch", "sentence-transformers"))
    if config.small:
        config = Config(sizes=((2_000, 40),), queries=16, rounds=3, efforts=(32, 128), ragged=config.ragged,
                        peers=config.peers, out=config.out)  # fmt: skip
    sections = []
    with ExitStack() as stack:
        if config.real:
            queries, documents = real(config)
            sections.append(section(f"Real vectors of {len(documents):,} documents", queries, documents, config, stack))
        for num_docs, tokens in () if config.real else config.sizes:
            queries, documents = made_up(num_docs, tokens, config)
            name = f"{num_docs:,} documents of {'about ' if config.ragged else ''}{tokens} tokens"
            sections.append(section(name, queries, documents, config, stack))
    publish("Late interaction", under, sections, config.out)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
