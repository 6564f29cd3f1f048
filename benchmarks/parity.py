"""Our vectors and scores beside those of the peers: the same weights, the same texts, the same token ids.

python benchmarks/parity.py --tevatron CHECKOUT --out benchmarks/parity.md
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tyro
from measuring import conditions, publish, quiet, table
from peers import (
    MAX_LENGTH,
    expected_scores,
    expected_vectors,
    save_llama,
    sentence_transformers_encoder,
    sentence_transformers_reranker,
    tevatron_encoder,
    tevatron_reranker,
    token_ids,
)
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoTokenizer

from shortlist import Document, Query, Reranker, Retriever, export, open_collection, read_run
from shortlist.progress import say

Side = Callable[[], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Config:
    data: Path = Path("../shared/data")
    """Folder with msmarco-dl19/ and llama-tokenizer/."""
    texts: int = 200
    """Passages to embed, and pairs to score."""
    tevatron: Path | None = None
    """Checkout of Tevatron; left out of the tables without it."""
    out: Path | None = None
    """Markdown file to write too."""


def exported(folder: Path, to: str, contract: str) -> Path:
    """The model as `shortlist export` writes it."""
    out = folder / f"as-{to}"
    export.run(export.Config(model=str(folder), to=to, out=out, contract=contract))  # type: ignore[arg-type]
    return out


def onnx(folder: Path, *texts: list[str]) -> np.ndarray:
    """What onnxruntime makes of texts, 32 at a time."""
    session, tokenizer = onnxruntime.InferenceSession(str(folder / "model.onnx")), AutoTokenizer.from_pretrained(folder)
    rows = []
    for start in range(0, len(texts[0]), 32):
        some = [part[start : start + 32] for part in texts]
        encoded = tokenizer(*some, padding=True, truncation=True, return_tensors="np")
        rows.append(session.run(None, {name: encoded[name] for name in ("input_ids", "attention_mask")})[0])
    return np.concatenate(rows)


def compare(title: str, sides: dict[str, Side], expected: np.ndarray) -> str:
    """A table of the largest differences to the definition."""
    rows = [[name, f"{np.abs(side() - expected).max():.1e}"] for name, side in sides.items()]
    spread = f"The definition's numbers have a standard deviation of {expected.std():.3f}."
    return f"## {title}\n\n{table(['computed by', 'largest difference'], rows)}\n\n{spread}"


def vectors(documents: list[Document], config: Config) -> str:
    """The last state of `</s>`, of length 1."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_llama(folder, "S", config.data / "llama-tokenizer/tokenizer.model", reranker=False)
        bare = [document.text.strip() for document in documents]
        texts = [f"passage: {text}" for text in bare]
        ours = Retriever.load(str(folder), contract="repllama")
        sides: dict[str, Side] = {"shortlist": lambda: ours.encode_documents(documents)}
        if config.tevatron:
            theirs = tevatron_encoder(config.tevatron, folder, MAX_LENGTH)
            sides["Tevatron, DenseModel and EncodeCollator"] = lambda: theirs(texts)
        opened = sentence_transformers_encoder(folder, MAX_LENGTH)
        sides["sentence-transformers, put together by hand"] = lambda: opened(texts)
        there = exported(folder, "sentence-transformers", "repllama")
        model = SentenceTransformer(str(there), device="cpu")
        options: dict[str, Any] = {"prompt_name": "document", "show_progress_bar": False}
        sides["sentence-transformers, from our export"] = lambda: model.encode(bare, **options)
        graph = exported(folder, "onnx", "repllama")
        sides["onnxruntime, from our export"] = lambda: onnx(graph, texts)
        return compare("Vectors", sides, expected_vectors(folder, token_ids(folder, texts, MAX_LENGTH)))


def scores(pairs: list[tuple[Query, Document]], config: Config) -> str:
    """The head's product with the last state of `</s>`."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_llama(folder, "S", config.data / "llama-tokenizer/tokenizer.model", reranker=True)
        halves = [(f"query: {query.text.strip()}", f"document: {document.text.strip()}") for query, document in pairs]
        texts = [" ".join(half) for half in halves]
        bare = [(query.text.strip(), document.text.strip()) for query, document in pairs]
        ours = Reranker.load(str(folder), contract="rankllama")
        sides: dict[str, Side] = {
            "shortlist": lambda: np.concatenate([ours.score(query, [document]) for query, document in pairs])
        }
        if config.tevatron:
            theirs = tevatron_reranker(config.tevatron, folder, MAX_LENGTH)
            sides["Tevatron, RerankerModel and its collator"] = lambda: theirs(texts)
        opened = sentence_transformers_reranker(folder, MAX_LENGTH)
        sides["sentence-transformers, put together by hand"] = lambda: opened(halves)
        model = CrossEncoder(str(exported(folder, "cross-encoder", "rankllama")), device="cpu")
        sides["sentence-transformers, from our export"] = lambda: model.predict(bare, show_progress_bar=False)
        graph = exported(folder, "onnx", "rankllama")
        sides["onnxruntime, from our export"] = lambda: onnx(graph, *map(list, zip(*bare, strict=True)))[:, 0]
        return compare("Scores", sides, expected_scores(folder, token_ids(folder, texts, MAX_LENGTH)))


def main(config: Config) -> None:
    """Compare vectors, then scores."""
    quiet()
    under = conditions(config.tevatron, packages=("torch", "transformers", "sentence-transformers", "onnxruntime"))
    under += "\n- random LLaMA of 4 layers (S), MS MARCO passages, LLaMA-2's tokenizer, float32, at most 196 tokens"
    under += "\n- the definition: transformers' LlamaModel or LlamaForSequenceClassification, one text at a time"
    if not config.tevatron:
        say("Tevatron is left out: pass --tevatron CHECKOUT to compare it.")
    collection = open_collection(str(config.data / "msmarco-dl19"))
    run = read_run(config.data / "msmarco-dl19/runs/bm25-100.trec")
    queries = {query.query_id: query for query in collection.queries("dl19")}
    names = [(query_id, hit.doc_id) for query_id, hits in run.items() for hit in hits[:10]][: config.texts]
    found = collection.documents({doc_id for _, doc_id in names})
    pairs = [(queries[query_id], found[doc_id]) for query_id, doc_id in names]
    publish("Parity", under, [vectors([document for _, document in pairs], config), scores(pairs, config)], config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
