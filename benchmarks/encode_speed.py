"""How fast a corpus becomes vectors: shortlist beside Tevatron and sentence-transformers, in one process.

    git clone https://github.com/texttron/tevatron ../tevatron
    python benchmarks/encode_speed.py --tevatron ../tevatron --out benchmarks/encode_speed.md

Random LLaMA weights, the same in every tool. First real MS MARCO passages in the paper's input form (`passage: ` in
front, EOS behind, 196 tokens at most), text in, unit vectors out, tokenising included; then random token ids of lengths
like those of passages (lognormal, mean 71), ids in. One run is minutes per model; leave the machine alone meanwhile.
"""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from measuring import ROOT, Side, conditions, matrix_peak, measure, publish, quiet, table
from peers import (
    BOS,
    EOS,
    SIZES,
    Size,
    Texts,
    expected_vectors,
    save_llama,
    sentence_transformers_encoder,
    tevatron_encoder,
    token_ids,
)

from shortlist.data.formats import read_corpus
from shortlist.models.retriever import Retriever
from shortlist.models.run import CPU_TOKENS, GPU_TOKENS, Precision, run_model
from shortlist.progress import say
from shortlist.records import Document
from shortlist.text.batching import token_batches
from shortlist.text.tokenizer import from_sentencepiece

MAX_LENGTH = 196
MEAN_LENGTH, SPREAD = 71, 0.4
WINDOW, MANY = 20_000, 100_000


@dataclass(frozen=True, kw_only=True)
class Config:
    model: tuple[Size, ...] = ("S", "M")
    """Sizes to measure: S has 4 layers of 256 dimensions, M 8 of 512."""
    docs: int = 2000
    """Passages, taken evenly from the collection, and as many rows of random ids."""
    rounds: int = 5
    """Times every side runs, after one run to warm up."""
    token_budget: int = CPU_TOKENS
    """Tokens per forward pass of shortlist, padding included."""
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "int8")
    """Of shortlist; with bf16, Tevatron's too."""
    data: Path = ROOT.parent / "shared" / "data"
    """Folder with msmarco-dl19/ and llama-tokenizer/."""
    tevatron: Path | None = None
    """Checkout of Tevatron; left out of the table without it."""
    out: Path | None = None
    """Markdown file to write too."""


def random_ids(count: int, seed: int = 0) -> list[list[int]]:
    """BOS, random tokens, EOS."""
    rng = np.random.default_rng(seed)
    return [[BOS, *rng.integers(3, 32_000, length - 2).tolist(), EOS] for length in random_lengths(count, rng)]


def random_lengths(count: int, rng: np.random.Generator) -> np.ndarray:
    """Tokens of passages: lognormal, cut as they would be."""
    lengths = rng.lognormal(np.log(MEAN_LENGTH) - SPREAD**2 / 2, SPREAD, count)
    return lengths.round().astype(np.int64).clip(4, MAX_LENGTH)


def num_flops(size: Size, lengths: np.ndarray) -> float:
    """Operations of the matrix products that the vectors depend on, for real tokens only.

    Attention is counted as causal, and the last layer's queries, attention and MLP for one token of each text.
    """
    shape = SIZES[size]
    dim, mid, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    keys_values, others = 2 * dim * dim, 2 * dim * dim + 3 * dim * mid
    tokens, pairs, texts = lengths.sum(), (lengths * (lengths + 1) / 2).sum(), len(lengths)
    whole = tokens * (keys_values + others) + 2 * dim * pairs
    last = tokens * keys_values + texts * others + 2 * dim * tokens
    return float(2 * ((layers - 1) * whole + last))


def padding_waste(lengths: np.ndarray, token_budget: int) -> float:
    """Pads for each real token, batched as `encode` does: by length within windows of so many documents."""
    padded = 0
    for start in range(0, len(lengths), WINDOW):
        window = lengths[start : start + WINDOW]
        padded += sum(len(batch) * int(window[batch].max()) for batch in token_batches(window, token_budget))
    return padded / int(lengths.sum()) - 1


def padding_section(docs: list[Document], tokenizer_file: Path) -> str:
    """Padding waste over many passages: lengths drawn from the real ones, and lognormal ones."""
    rng = np.random.default_rng(0)
    rows = from_sentencepiece(tokenizer_file)([f"passage: {doc.text.strip()}" for doc in docs])["input_ids"]
    real = [min(len(row) + 2, MAX_LENGTH) for row in rows]
    kinds = {"MS MARCO": rng.choice(real, MANY), "lognormal": random_lengths(MANY, rng)}
    cells = [
        [name, *(f"{padding_waste(lengths, budget):.2%}" for budget in (CPU_TOKENS, GPU_TOKENS))]
        for name, lengths in kinds.items()
    ]
    columns = ["lengths", f"{CPU_TOKENS:,} tokens per pass (CPU)", f"{GPU_TOKENS:,} (GPU)"]
    return f"## Padding for each real token, {MANY:,} passages in windows of {WINDOW:,}\n\n{table(columns, cells)}"


def sides_of(folder: Path, texts: Texts, ours: dict[Precision, Side], config: Config) -> dict[str, Side]:
    """The peers on the texts or ids, and shortlist."""
    sides: dict[str, Side] = {}
    if config.tevatron:
        sides["Tevatron"] = partial(tevatron_encoder(config.tevatron, folder, MAX_LENGTH), texts)
        if "bf16" in ours:
            narrow = tevatron_encoder(config.tevatron, folder, MAX_LENGTH, torch.bfloat16)
            sides["Tevatron bf16"] = partial(narrow, texts)
    else:
        say("Tevatron is left out: pass --tevatron CHECKOUT to measure it.")
    sides["sentence-transformers"] = partial(sentence_transformers_encoder(folder, MAX_LENGTH), texts)
    names = {precision: "shortlist" if precision == "fp32" else f"shortlist {precision}" for precision in ours}
    return sides | {names[precision]: side for precision, side in ours.items()}


def ready(folder: Path, precision: Precision) -> Retriever:
    """What `shortlist encode` runs."""
    return Retriever.load(str(folder), contract="repllama", device=torch.device("cpu"), precision=precision)


def vectors_of(model: Retriever, ids: list[list[int]], token_budget: int) -> np.ndarray:
    """Unit vectors of token ids."""
    return run_model(model.model, ids, token_budget=token_budget).values.numpy()


def sections(size: Size, docs: list[Document], peak: float, config: Config) -> list[str]:
    """Measure one model size: on the passages, then on random ids."""
    texts = [f"passage: {doc.text.strip()}" for doc in docs]
    drawn = random_ids(len(docs))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_llama(folder, size, config.data / "llama-tokenizer" / "tokenizer.model", reranker=False)
        models: dict[Precision, Retriever] = {precision: ready(folder, precision) for precision in config.precisions}
        budget = {"token_budget": config.token_budget}
        by_text: dict[Precision, Side] = {
            name: partial(model.encode_documents, docs, **budget) for name, model in models.items()
        }
        by_ids: dict[Precision, Side] = {
            name: partial(vectors_of, model, drawn, config.token_budget) for name, model in models.items()
        }
        found = []
        for what, ids, inputs, ours in (
            ("passages", token_ids(folder, texts, MAX_LENGTH), texts, by_text),
            ("rows of random ids", drawn, drawn, by_ids),
        ):
            lengths = np.array(list(map(len, ids)))
            numbers = {"num_tokens": int(lengths.sum()), "peak_seconds": num_flops(size, lengths) / peak}
            heading = f"## Model {size}: {len(docs):,} {what}, {lengths.sum():,} tokens"
            sides = sides_of(folder, inputs, ours, config)
            found.append(f"{heading}\n\n{measure(sides, expected_vectors(folder, ids), config.rounds, **numbers)}")
        return found


def main(config: Config) -> None:
    quiet()
    under = conditions(config.tevatron)
    corpus = list(read_corpus(config.data / "msmarco-dl19" / "corpus.jsonl"))
    docs = corpus[:: max(1, len(corpus) // config.docs)][: config.docs]
    peak = matrix_peak()
    under += f"\n- float32 matrix peak: {peak / 1e9:,.0f} GFLOP/s, the fastest large product measured before the rest"
    found = [section for size in config.model for section in sections(size, docs, peak, config)]
    found.append(padding_section(docs, config.data / "llama-tokenizer" / "tokenizer.model"))
    publish("Encoding a corpus: text, or token ids, to unit vectors", under, found, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
