"""How fast a corpus becomes vectors: shortlist beside Tevatron and sentence-transformers, in one process.

    git clone https://github.com/texttron/tevatron ../tevatron
    python benchmarks/encode_speed.py --tevatron ../tevatron --out benchmarks/encode_speed.md

Real MS MARCO passages, random LLaMA weights (the same in every tool), the paper's input form (`passage: ` in front, EOS
behind, 196 tokens at most), float32; text in, unit vectors out, tokenising included. One run is minutes per model;
leave the machine alone meanwhile.
"""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro
from measuring import ROOT, Side, conditions, measure, publish, quiet
from peers import Size, expected_vectors, save_llama, sentence_transformers_encoder, tevatron_encoder, token_ids

from shortlist.data.formats import read_corpus
from shortlist.models.checkpoint import load_retriever
from shortlist.models.embed import embed_documents, for_inference
from shortlist.progress import say
from shortlist.records import Document

MAX_LENGTH = 196


@dataclass(frozen=True, kw_only=True)
class Config:
    model: tuple[Size, ...] = ("S", "M")
    """Sizes to measure: S has 4 layers of 256 dimensions, M 8 of 512."""
    docs: int = 2000
    """Passages, taken evenly from the collection."""
    rounds: int = 5
    """Times every side runs, after one run to warm up."""
    token_budget: int = 2048
    """Tokens per forward pass of shortlist, padding included."""
    bf16: bool = False
    """Also measure shortlist in bfloat16 (its vectors differ by about 1e-3)."""
    data: Path = ROOT.parent / "shared" / "data"
    """Folder with msmarco-dl19/ and llama-tokenizer/."""
    tevatron: Path | None = None
    """Checkout of Tevatron; left out of the table without it."""
    out: Path | None = None
    """Markdown file to write too."""


def shortlist_encoder(folder: Path, docs: list[Document], token_budget: int, dtype: torch.dtype) -> Side:
    """What `shortlist encode` runs."""
    retriever = load_retriever(str(folder), contract="repllama", dtype=dtype)
    for_inference(retriever, torch.device("cpu"))
    return partial(embed_documents, retriever, docs, token_budget=token_budget)


def section(size: Size, docs: list[Document], config: Config) -> str:
    """Measure one model size."""
    texts = [f"passage: {doc.text.strip()}" for doc in docs]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_llama(folder, size, config.data / "llama-tokenizer" / "tokenizer.model", reranker=False)
        ids = token_ids(folder, texts, MAX_LENGTH)
        expected = expected_vectors(folder, ids)
        sides: dict[str, Side] = {}
        if config.tevatron:
            sides["Tevatron"] = partial(tevatron_encoder(config.tevatron, folder, MAX_LENGTH), texts)
        else:
            say("Tevatron is left out: pass --tevatron CHECKOUT to measure it.")
        sides["sentence-transformers"] = partial(sentence_transformers_encoder(folder, MAX_LENGTH), texts)
        sides["shortlist"] = shortlist_encoder(folder, docs, config.token_budget, torch.float32)
        if config.bf16:
            sides["shortlist bf16"] = shortlist_encoder(folder, docs, config.token_budget, torch.bfloat16)
        heading = f"## Model {size}: {len(docs):,} passages, {sum(map(len, ids)):,} tokens"
        return f"{heading}\n\n{measure(sides, expected, config.rounds, num_tokens=sum(map(len, ids)))}"


def main(config: Config) -> None:
    quiet()
    under = conditions(config.tevatron)
    corpus = list(read_corpus(config.data / "msmarco-dl19" / "corpus.jsonl"))
    docs = corpus[:: max(1, len(corpus) // config.docs)][: config.docs]
    sections = [section(size, docs, config) for size in config.model]
    publish("Encoding a corpus, float32, text to unit vectors", under, sections, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
