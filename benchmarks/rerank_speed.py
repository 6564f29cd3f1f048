"""How fast candidates get their scores: shortlist beside Tevatron and sentence-transformers, in one process.

    git clone https://github.com/texttron/tevatron ../tevatron
    python benchmarks/rerank_speed.py --tevatron ../tevatron --out benchmarks/rerank_speed.md

TREC DL19 queries with the passages that BM25 found for them, best first; random LLaMA weights and head (the same in
every tool), the paper's input form (`query: Q document: D`, EOS behind, 196 tokens at most), float32; text in, scores
out, tokenising included. One run is minutes per model; leave the machine alone meanwhile.
"""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro
from measuring import ROOT, Side, conditions, measure, publish, quiet
from peers import Size, expected_scores, save_llama, sentence_transformers_reranker, tevatron_reranker, token_ids

from shortlist.data.formats import read_corpus, read_queries
from shortlist.data.runs import read_run
from shortlist.models.checkpoint import load_reranker
from shortlist.models.embed import for_inference, score_pairs
from shortlist.progress import say
from shortlist.records import Document, Query

MAX_LENGTH = 196
Pair = tuple[Query, Document]


@dataclass(frozen=True, kw_only=True)
class Config:
    model: tuple[Size, ...] = ("S", "M")
    """Sizes to measure: S has 4 layers of 256 dimensions, M 8 of 512."""
    queries: int = 10
    """Queries, the first of the run."""
    depth: int = 100
    """Candidates per query; the run holds 100."""
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


def candidates(folder: Path, num_queries: int, depth: int) -> list[Pair]:
    """Query and passage, query by query, best first."""
    run = read_run(folder / "runs" / "bm25-100.trec")
    documents = {doc.doc_id: doc for doc in read_corpus(folder / "corpus.jsonl")}
    queries = {query.query_id: query for query in read_queries(folder / "queries.jsonl")}
    first = list(run)[:num_queries]
    return [(queries[query_id], documents[hit.doc_id]) for query_id in first for hit in run[query_id][:depth]]


def shortlist_reranker(folder: Path, pairs: list[Pair], token_budget: int, dtype: torch.dtype) -> Side:
    """What `shortlist rerank` runs."""
    reranker = load_reranker(str(folder), contract="rankllama", dtype=dtype)
    for_inference(reranker, torch.device("cpu"))
    return partial(score_pairs, reranker, pairs, token_budget=token_budget)


def section(size: Size, pairs: list[Pair], config: Config) -> str:
    """Measure one model size."""
    halves = [(f"query: {query.text.strip()}", f"document: {doc.text.strip()}") for query, doc in pairs]
    texts = [" ".join(half) for half in halves]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_llama(folder, size, config.data / "llama-tokenizer" / "tokenizer.model", reranker=True)
        ids = token_ids(folder, texts, MAX_LENGTH)
        expected = expected_scores(folder, ids)
        sides: dict[str, Side] = {}
        if config.tevatron:
            sides["Tevatron"] = partial(tevatron_reranker(config.tevatron, folder, MAX_LENGTH), texts)
        else:
            say("Tevatron is left out: pass --tevatron CHECKOUT to measure it.")
        sides["sentence-transformers"] = partial(sentence_transformers_reranker(folder, MAX_LENGTH), halves)
        sides["shortlist"] = shortlist_reranker(folder, pairs, config.token_budget, torch.float32)
        if config.bf16:
            sides["shortlist bf16"] = shortlist_reranker(folder, pairs, config.token_budget, torch.bfloat16)
        heading = f"## Model {size}: {len(pairs):,} pairs, {sum(map(len, ids)):,} tokens"
        return f"{heading}\n\n{measure(sides, expected, config.rounds, num_tokens=sum(map(len, ids)))}"


def main(config: Config) -> None:
    quiet()
    under = conditions(config.tevatron)
    pairs = candidates(config.data / "msmarco-dl19", config.queries, config.depth)
    sections = [section(size, pairs, config) for size in config.model]
    publish("Reranking BM25's candidates, float32, text to scores", under, sections, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
