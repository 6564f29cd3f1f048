"""How long one training step takes and what memory it needs: shortlist beside Tevatron, each in a process of its own.

    git clone https://github.com/texttron/tevatron ../tevatron
    git clone https://github.com/luyug/GradCache ../grad-cache
    python benchmarks/train_speed.py --tevatron ../tevatron --grad-cache ../grad-cache --out benchmarks/train_speed.md

A step is 8 queries with 16 passages each: real MS MARCO queries, a relevant passage, 15 negatives out of BM25's first
100 (which are longer than most: `--mean-tokens` cuts and joins them to lengths drawn around another mean); random LLaMA
weights (the same in both tools), the paper's input form (32 and 196 tokens at most), InfoNCE over all 128 passages at
temperature 0.01, gradients clipped to norm 1, fused AdamW. The texts are tokenised beforehand. All variants see the
same batches in the same order; all must give the same first loss and, without LoRA's dropout, the same gradients.
Tevatron's settings are those kindest to it here: float32, SDPA attention, padding to the longest text only.
One run is minutes for S and an hour for M; leave the machine alone meanwhile.
"""

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
import tyro
from measuring import ROOT, TOLERANCE, conditions, in_a_process, peak_gib, publish, quiet, table, turns
from peers import MAX_LENGTH, QUERY_LENGTH, Size, save_llama, tevatron_training, token_ids
from torch import Tensor, nn

from shortlist.data.collections import open_collection
from shortlist.data.groups import read_groups, write_groups
from shortlist.data.mining import find_same_text, mine
from shortlist.data.runs import read_run
from shortlist.models.adapter_settings import parse_adapter
from shortlist.models.adapters import add_adapter
from shortlist.models.folder import open_folder
from shortlist.models.kernels.training_linear import speed_up_training
from shortlist.models.load import dense_to_train
from shortlist.progress import say
from shortlist.records import Document
from shortlist.text.contract import named_contract
from shortlist.train.examples import Batch, batches
from shortlist.train.loop import MAX_GRADIENT_NORM
from shortlist.train.losses import parse_losses
from shortlist.train.objectives import make_example
from shortlist.train.optimizers import new_optimizer
from shortlist.train.steps import backward

DATA, SPLIT = "msmarco-dl19", "dl19_sub"
QUERIES, NEGATIVES, TEMPERATURE = 8, 15, 0.01
SPREAD, TOKENS_PER_WORD = 0.39, 1.52
"""Standard deviation of the logarithm of a passage's tokens, and tokens for each word: as in the passages here."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of doing a step."""

    beside: str = "Tevatron"
    """The variant it is compared with."""
    lora: bool = False
    cached: bool = False
    checkpointing: bool = False
    bf16: bool = False


VARIANTS = {
    "Tevatron": Variant(),
    "Tevatron LoRA": Variant(lora=True),
    "Tevatron LoRA, gradient checkpointing": Variant(lora=True, checkpointing=True),
    "Tevatron GradCache": Variant(cached=True),
    "shortlist": Variant(),
    "shortlist LoRA": Variant(lora=True, beside="Tevatron LoRA"),
    "shortlist grad cache": Variant(cached=True, beside="Tevatron GradCache"),
    "shortlist bf16": Variant(bf16=True),
    "shortlist LoRA bf16": Variant(lora=True, bf16=True, beside="Tevatron LoRA"),
}


@dataclass(frozen=True)
class Result:
    """What one process measured."""

    seconds: list[float]
    """Of every timed step."""
    loss: float
    """Of the first step."""
    peak: float
    """Most memory held, GiB."""


@dataclass(frozen=True, kw_only=True)
class Config:
    model: tuple[Size, ...] = ("S", "M")
    """Sizes to measure: S has 4 layers of 256 dimensions, M 8 of 512."""
    steps: int = 4
    """Steps timed in every process, after one to warm up; with 4, each of 40 queries is seen once."""
    rounds: int = 3
    """Processes of every variant."""
    token_budget: int = 1024
    """Tokens per forward pass of shortlist, padding included."""
    mean_tokens: float | None = None
    """Give the passages lognormal lengths of this mean, special tokens and prompt included (None: their own)."""
    seed: int = 0
    """Of the negatives, the batches and dropout."""
    data: Path = ROOT.parent / "shared" / "data"
    """Folder with msmarco-dl19/ and llama-tokenizer/."""
    tevatron: Path | None = None
    """Checkout of Tevatron; left out of the table without it."""
    grad_cache: Path | None = None
    """Checkout of GradCache, which Tevatron's cached step needs; that row is left out without it."""
    out: Path | None = None
    """Markdown file to write too."""
    skip: tuple[str, ...] = ()
    """Rows to leave out, such as one that memory is too small for."""


def prepare(folder: Path, size: Size, config: Config) -> None:
    """Write the model and the groups that every variant trains."""
    save_llama(folder, size, config.data / "llama-tokenizer" / "tokenizer.model", reranker=False, seed=config.seed)
    collection = open_collection(str(config.data / DATA))
    corpus = list(collection.corpus())
    held = {document.doc_id for document in corpus}  # one of the judged passages is not
    qrels = {
        query: {doc_id: r for doc_id, r in row.items() if doc_id in held}
        for query, row in collection.qrels(SPLIT).items()
    }
    doc_ids, same_text = find_same_text(corpus, {doc_id for row in qrels.values() for doc_id in row})
    run = read_run(config.data / DATA / "runs" / "bm25-100.trec")
    options = {"depth": 100, "negatives": NEGATIVES, "random_share": 0.0, "seed": config.seed}
    groups, _ = mine([run], qrels, doc_ids, same_text, **options)
    full = [group for group in groups if len(group.negatives) == NEGATIVES]
    write_groups(folder / "groups.jsonl", full[: len(full) // QUERIES * QUERIES])


def draw(folder: Path, config: Config) -> list[Batch]:
    """The batches of all steps, the warm-up's first."""
    collection = open_collection(str(config.data / DATA))
    queries = {query.query_id: query for query in collection.queries(SPLIT)}
    options = {"batch_size": QUERIES, "negatives": NEGATIVES, "seed": config.seed}
    groups = read_groups(folder / "groups.jsonl")
    drawn = list(batches(groups, queries, collection, first_step=0, steps=1 + config.steps, **options))
    return drawn if config.mean_tokens is None else with_lengths(drawn, config.mean_tokens, config.seed)


def with_lengths(drawn: list[Batch], mean_tokens: float, seed: int) -> list[Batch]:
    """The same batches with passages of other lengths, made of their words in a row."""
    rng = np.random.default_rng(seed)
    words = cycle(word for batch in drawn for group in batch.documents for d in group for word in d.text.split())

    def passage(document: Document) -> Document:
        tokens = mean_tokens * rng.lognormal(-(SPREAD**2) / 2, SPREAD)
        return document._replace(text=" ".join(islice(words, max(1, round((tokens - 5) / TOKENS_PER_WORD)))))

    return [batch._replace(documents=[list(map(passage, group)) for group in batch.documents]) for batch in drawn]


def texts(batch: Batch) -> list[tuple[str, list[str]]]:
    """Each query with its passages, prompts in place."""
    return [
        (f"query: {query.text.strip()}", [f"passage: {document.text.strip()}" for document in documents])
        for query, documents in zip(batch.queries, batch.documents, strict=True)
    ]


def build(name: str, folder: Path, drawn: list[Batch], config: Config) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """A variant's model, and the function that adds the gradients of one batch and returns its loss."""
    quiet()
    variant = VARIANTS[name]
    torch.manual_seed(config.seed)  # of the adapters
    if name.startswith("Tevatron"):
        assert config.tevatron
        return tevatron_training(
            config.tevatron,
            folder,
            [texts(batch) for batch in drawn],
            lora=variant.lora,
            checkpointing=variant.checkpointing,
            grad_cache=config.grad_cache if variant.cached else None,
            temperature=TEMPERATURE,
        )
    model = dense_to_train(open_folder(str(folder)), named_contract("repllama"))
    if variant.lora:
        add_adapter(model.backbone, parse_adapter("paper"))
    speed_up_training(model.train())
    terms = parse_losses(["infonce"], temperature=TEMPERATURE)
    examples = [make_example("retriever", model.inputs, batch, terms) for batch in drawn]
    options = {"token_budget": config.token_budget, "bf16": variant.bf16, "cached": variant.cached}
    return model, lambda i: backward(model, examples[i], seed=config.seed + (i << 20), **options).loss


def alone(name: str, folder: Path, config: Config) -> Result:
    """Do the steps of one variant, in a process that does nothing else."""
    model, gradients = build(name, folder, draw(folder, config), config)
    optimizer = new_optimizer(model, learning_rate=1e-4)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    seconds, losses = [], []
    for i in range(1 + config.steps):
        start = time.perf_counter()
        losses.append(gradients(i).item())
        nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    return Result(seconds[1:], losses[0], peak_gib())


def gradient_differences(names: list[str], folder: Path, drawn: list[Batch], config: Config) -> dict[str, float]:
    """How far each variant's gradients of the first batch are from the first variant's, relative to their norm."""
    differences, expected = {}, {}
    for name in names:
        model, gradients = build(name, folder, drawn[:1], config)
        gradients(0)
        # behind the first dot the tools' names are the same
        actual = {key.partition(".")[2]: p.grad for key, p in model.named_parameters() if p.grad is not None}
        expected = expected or actual
        if actual.keys() != expected.keys():
            raise SystemExit(f"{name}: other parameters have gradients: {sorted(actual.keys() ^ expected.keys())[:4]}.")
        square = sum((actual[key] - expected[key]).double().square().sum().item() for key in expected)
        norm = sum(value.double().square().sum().item() for value in expected.values())
        differences[name] = (square / norm) ** 0.5
        _refuse("gradients", name, differences[name])
    return differences


def section(size: Size, names: list[str], config: Config) -> str:
    """Measure one model size."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, size, config)
        drawn = draw(folder, config)
        exact = [name for name in names if not VARIANTS[name].lora]
        differences = in_a_process(gradient_differences, exact, folder, drawn, config)
        results: dict[str, list[Result]] = defaultdict(list)
        for number, turn in enumerate(turns(names, config.rounds)):
            for name in turn:
                results[name].append(result := in_a_process(alone, name, folder, config))
                expected = results[names[0]][0].loss
                _refuse("first loss", name, abs(result.loss - expected) / expected)
                steps = ", ".join(f"{second:.2f}" for second in result.seconds)
                say(f"{size}, round {number + 1}/{config.rounds}, {name}: {steps} s, {result.peak:.2f} GiB")
        tokens = [_num_tokens(folder, batch) for batch in drawn[1:]]
    heading = f"## Model {size}: batches of {min(tokens):,} to {max(tokens):,} tokens"
    return f"{heading}\n\n{_table(names, results, differences, tokens)}"


def main(config: Config) -> None:
    quiet()
    packages = ("torch", "transformers", "peft")
    under = conditions(config.tevatron, grad_cache=config.grad_cache, packages=packages)
    sections = [section(size, _names(config), config) for size in config.model]
    publish("A training step, 8 queries x 16 passages", under, sections, config.out)


def _names(config: Config) -> list[str]:
    """The variants that can run."""
    left_out = {name for name in VARIANTS if name.startswith("Tevatron") and not config.tevatron}
    left_out |= set() if config.grad_cache else {"Tevatron GradCache"}
    if left_out:
        say(f"Left out: {', '.join(sorted(left_out))}; pass --tevatron CHECKOUT and --grad-cache CHECKOUT.")
    return [name for name in VARIANTS if name not in left_out.union(config.skip)]


def _num_tokens(folder: Path, batch: Batch) -> int:
    """Tokens that a step has to see, padding not counted."""
    queries, groups = zip(*texts(batch), strict=True)
    documents = [text for group in groups for text in group]
    return sum(map(len, token_ids(folder, queries, QUERY_LENGTH) + token_ids(folder, documents, MAX_LENGTH)))


def _refuse(what: str, name: str, difference: float) -> None:
    tolerance = TOLERANCE["bf16" if VARIANTS[name].bf16 else "float32"]
    if not difference <= tolerance:
        raise SystemExit(f"{name}: {what} off by {difference:.1e}; expected at most {tolerance:.0e}.")


def _table(names: list[str], results: dict[str, list[Result]], differences: dict[str, float], tokens: list[int]) -> str:
    seconds = {name: [second for result in results[name] for second in result.seconds] for name in names}
    median = {name: statistics.median(seconds[name]) for name in names}
    peak = {name: statistics.median(result.peak for result in results[name]) for name in names}
    rows = []
    for name in names:
        beside = VARIANTS[name].beside
        ratios = ["", ""]
        if beside in names:
            ratios = [f"{median[beside] / median[name]:.2f}", f"{peak[name] / peak[beside]:.2f}"]
        speed = statistics.median(
            n / s for result in results[name] for n, s in zip(tokens, result.seconds, strict=True)
        )
        cells = [name, f"{median[name]:.2f}", f"{min(seconds[name]):.2f}-{max(seconds[name]):.2f}", f"{speed:,.0f}"]
        cells += [beside, ratios[0], f"{peak[name]:.2f}", ratios[1], f"{results[name][0].loss:.6f}"]
        rows.append([*cells, f"{differences[name]:.1e}" if name in differences else ""])
    columns = ["", "median s", "fastest-slowest", "tokens/s", "beside", "x speed", "peak GiB", "x memory"]
    return table([*columns, "first loss", "gradient difference"], rows)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
