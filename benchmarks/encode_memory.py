"""How the memory of `shortlist encode` grows with the corpus: 100,000 documents and 1,000,000, each in its own process.

    python benchmarks/encode_memory.py --out benchmarks/encode_memory.md

Made-up texts of 12 words on average and a small random LLaMA, so that minutes suffice: what is held per document (ids,
bookkeeping, progress) is what would show, and does not depend on the model.
"""

import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from measuring import ROOT, conditions, in_a_process, peak_gib, publish, quiet, table
from transformers import LlamaConfig, LlamaModel

from shortlist import encode
from shortlist.text.tokenizer import from_sentencepiece


@dataclass(frozen=True, kw_only=True)
class Config:
    docs: tuple[int, ...] = (100_000, 1_000_000)
    """Sizes of the corpus."""
    data: Path = ROOT.parent / "shared" / "data"
    """Folder with llama-tokenizer/."""
    out: Path | None = None
    """Markdown file to write too."""


def write_collection(folder: Path, num_docs: int, seed: int = 0) -> None:
    """A BEIR folder of made-up texts."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghiklmnoprstu", k=rng.randint(2, 9))) for _ in range(20_000)]
    folder.mkdir()
    with open(folder / "corpus.jsonl", "w", encoding="utf-8") as file:
        for number in range(num_docs):
            text = " ".join(rng.choices(words, k=rng.randint(4, 20)))
            file.write(json.dumps({"_id": f"document-{number}", "title": "", "text": text}) + "\n")
    (folder / "queries.jsonl").write_text('{"_id": "q", "text": "a query"}\n', encoding="utf-8")


def save_small_llama(folder: Path, tokenizer_file: Path) -> None:
    """One layer of 64 dimensions."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaModel(LlamaConfig(vocab_size=32_000, pad_token_id=0, **shape)).save_pretrained(folder)
    from_sentencepiece(tokenizer_file).save_pretrained(folder)


def encoded(model: Path, collection: Path, out: Path) -> float:
    """The peak memory of encoding a collection, GiB."""
    encode.run(encode.Config(model=str(model), collection=str(collection), out=out, contract="repllama"))
    return peak_gib()


def main(config: Config) -> None:
    quiet()
    under = conditions(None, packages=("torch", "transformers"))
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        save_small_llama(work / "model", config.data / "llama-tokenizer" / "tokenizer.model")
        first = None
        for num_docs in config.docs:
            write_collection(work / str(num_docs), num_docs)
            peak = in_a_process(encoded, work / "model", work / str(num_docs), work / f"vectors-{num_docs}")
            first = first or peak
            rows.append([f"{num_docs:,}", f"{peak * 1024:,.0f}", f"{(peak - first) * 1024:+,.0f}"])
    columns = ["documents", "peak RSS, MiB", "more than the first, MiB"]
    publish("Memory of encoding a corpus", under, [table(columns, rows)], config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
