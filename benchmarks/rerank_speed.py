"""How fast candidates get their scores: shortlist beside Tevatron and sentence-transformers, in one process.

    git clone https://github.com/texttron/tevatron ../tevatron
    python benchmarks/rerank_speed.py --tevatron ../tevatron --out benchmarks/rerank_speed.md

TREC DL19 queries with the passages that BM25 and the published RepLLaMA run found for them, best first (196 tokens at
most), and with made-up documents: RepLLaMA's passages put one behind another, their lengths lognormal about 1,000
tokens as those of real documents are, 2,048 at most. Random LLaMA weights and head (the same in every tool), the
paper's input form (`query: Q document: D`, EOS behind), float32; text in, scores out, tokenising included. Every
side's scores are compared with those of one pair at a time, and so is the order of each query's candidates. One run is
minutes per model; leave the machine alone meanwhile.
"""

import math
import random
import tempfile
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
import tyro
from measuring import ROOT, Side, conditions, measure, publish, quiet
from peers import Size, expected_scores, save_llama, sentence_transformers_reranker, tevatron_reranker, token_ids

from shortlist.data.formats import read_corpus, read_queries
from shortlist.data.runs import read_run
from shortlist.models.folder import open_folder
from shortlist.models.run import Precision, score_pairs
from shortlist.progress import say
from shortlist.records import Document, Query
from shortlist.rerankers.reranker import Reranker

MAX_LENGTH = {"BM25 top-100": 196, "RepLLaMA top-200": 196, "documents": 2048}
RUNS = {"BM25 top-100": ("bm25-100.trec", 100), "RepLLaMA top-200": ("repllama-1000.trec", 200)}
DOCUMENT_TOKENS, SPREAD, WORDS_PER_TOKEN = 1000, 0.6, 0.75
Pair = tuple[Query, Document]


@dataclass(frozen=True, kw_only=True)
class Config:
    model: tuple[Size, ...] = ("S", "M")
    """Sizes to measure: S has 4 layers of 256 dimensions, M 8 of 512."""
    pairs: int = 500
    """Pairs of each run, of as many queries as that takes; of documents a fifth."""
    rounds: int = 5
    """Times every side runs, after one run to warm up."""
    token_budget: int = 2048
    """Tokens per forward pass of shortlist, padding included."""
    bf16: bool = False
    """Also measure shortlist in bfloat16 (its scores differ by about 1e-3)."""
    data: Path = ROOT.parent / "shared" / "data"
    """Folder with msmarco-dl19/ and llama-tokenizer/."""
    tevatron: Path | None = None
    """Checkout of Tevatron; left out of the table without it."""
    out: Path | None = None
    """Markdown file to write too."""


def candidates(folder: Path, name: str, num_pairs: int) -> list[Pair]:
    """Query and passage, query by query, best first."""
    file, depth = RUNS[name]
    run = read_run(folder / "runs" / file, ties="rank")
    documents = {doc.doc_id: doc for doc in read_corpus(folder / "corpus.jsonl")}
    queries = {query.query_id: query for query in read_queries(folder / "queries.jsonl")}
    pairs = ((queries[q], documents[hit.doc_id]) for q, hits in run.items() if q in queries for hit in hits[:depth])
    return list(islice(pairs, num_pairs))


def long_documents(pairs: list[Pair], num_pairs: int) -> list[Pair]:
    """Each passage with as many of those behind it as make a document."""
    rng = random.Random(0)
    found = []
    for i, (query, document) in enumerate(pairs[:num_pairs]):
        tokens = rng.lognormvariate(math.log(DOCUMENT_TOKENS) - SPREAD**2 / 2, SPREAD)
        words: list[str] = []
        behind = cycle(pairs[i:] + pairs[:i])
        while len(words) < tokens * WORDS_PER_TOKEN:
            words += next(behind)[1].text.split()
        found.append((query, document._replace(text=" ".join(words[: int(tokens * WORDS_PER_TOKEN)]))))
    return found


def same_order(pairs: list[Pair], scores: np.ndarray, expected: np.ndarray) -> str:
    """Count the queries whose candidates come in the order of the definition's scores."""
    places: dict[str, list[int]] = {}
    for place, (query, _) in enumerate(pairs):
        places.setdefault(query.query_id, []).append(place)
    same = sum((np.argsort(-scores[own]) == np.argsort(-expected[own])).all() for own in map(np.array, places.values()))
    return f"{same} of {len(places)}"


def shortlist_reranker(
    folder: Path, pairs: list[Pair], max_length: int, token_budget: int, precision: Precision
) -> Side:
    """What `shortlist rerank` runs."""
    model = open_folder(str(folder))
    contract = model.contract("pair", "rankllama").with_lengths(document=max_length)
    reranker = Reranker.load(model, contract=contract, device=torch.device("cpu"), precision=precision)
    return partial(score_pairs, reranker.model, pairs, token_budget=token_budget)


def section(size: Size, name: str, pairs: list[Pair], config: Config) -> str:
    """Measure one model size on some pairs."""
    length = MAX_LENGTH[name]
    halves = [(f"query: {query.text.strip()}", f"document: {doc.text.strip()}") for query, doc in pairs]
    texts = [" ".join(half) for half in halves]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_llama(folder, size, config.data / "llama-tokenizer" / "tokenizer.model", reranker=True)
        ids = token_ids(folder, texts, length)
        expected = expected_scores(folder, ids)
        sides: dict[str, Side] = {}
        if config.tevatron:
            sides["Tevatron"] = partial(tevatron_reranker(config.tevatron, folder, length), texts)
        else:
            say("Tevatron is left out: pass --tevatron CHECKOUT to measure it.")
        sides["sentence-transformers"] = partial(sentence_transformers_reranker(folder, length), halves)
        sides["shortlist"] = shortlist_reranker(folder, pairs, length, config.token_budget, "fp32")
        if config.bf16:
            sides["shortlist bf16"] = shortlist_reranker(folder, pairs, length, config.token_budget, "bf16")
        orders = ", ".join(f"{side} {same_order(pairs, score(), expected)}" for side, score in sides.items())
        num_tokens = sum(map(len, ids))
        heading = f"## Model {size}, {name}: {len(pairs):,} pairs, {num_tokens:,} tokens"
        table = measure(sides, expected, config.rounds, num_tokens=num_tokens)
        return f"{heading}\n\n{table}\n\nQueries whose candidates come in the definition's order: {orders}."


def main(config: Config) -> None:
    quiet()
    under = conditions(config.tevatron)
    work = {name: candidates(config.data / "msmarco-dl19", name, config.pairs) for name in RUNS}
    work["documents"] = long_documents(work["RepLLaMA top-200"], config.pairs // 5)
    sections = [section(size, name, pairs, config) for size in config.model for name, pairs in work.items()]
    publish("Reranking, float32, text to scores", under, sections, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
