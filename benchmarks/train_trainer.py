"""Training with the same objectives: `shortlist train` beside the trainer of sentence-transformers.

    python benchmarks/train_trainer.py --model MINILM --out benchmarks/train_trainer.md

Each side is its own command from end to end, in a process of its own: reading, tokenising ahead, steps of the
objective, AdamW, clipping, with the tools' own defaults for everything that changes no number. Both see the same
batches of SciFact's training claims in the same order (a claim, its abstract and seven of BM25's best that are not) and
must have the same first loss. Tokens are counted without padding; the first step of each process is left out.
The objectives: InfoNCE over all documents of the batch with gradients cached, margin-MSE to a teacher (BM25's scores),
and InfoNCE over all documents at three dimensions (Matryoshka).
"""

import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import tyro
from measuring import ROOT, conditions, in_a_process, peak_gib, publish, quiet, table, turns

import shortlist.index
import shortlist.mine
import shortlist.search
import shortlist.train
from shortlist.data.collections import open_collection
from shortlist.data.groups import read_groups, write_groups
from shortlist.progress import say
from shortlist.settings.train import Config as Training
from shortlist.train.examples import draw_group, plan_steps
from shortlist.train.log import read_log

BATCH, NEGATIVES, TEMPERATURE, RATE, WARMUP = 32, 7, 0.05, 2e-5, 5
DIMS = (384, 192, 96)
OBJECTIVES = {
    "InfoNCE, cached": {"loss": ("infonce",), "temperature": TEMPERATURE, "grad_cache": True},
    "margin-MSE": {"loss": ("margin_mse",)},
    "Matryoshka": {"loss": ("infonce",), "temperature": TEMPERATURE, "dims": DIMS},
}
"""What `shortlist train` is asked for, by the name of the objective."""


@dataclass(frozen=True)
class Result:
    """What one process measured."""

    seconds: list[float]
    """Of every step but the first, from the end of the step before it."""
    loss: float
    """Of the first step."""
    peak: float
    """Most memory held, GiB."""


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str
    """Folder of all-MiniLM-L6-v2, or of another model of sentence-transformers."""
    data: Path = ROOT.parent / "shared" / "data" / "scifact"
    """SciFact in BEIR's layout."""
    max_length: int = 192
    """Most tokens of a text."""
    steps: int = 6
    """Steps timed in every process, after one to warm up."""
    rounds: int = 3
    """Processes of every side and objective."""
    seed: int = 0
    """Of the negatives and the batches."""
    objective: tuple[str, ...] = tuple(OBJECTIVES)
    """Objectives to measure."""
    out: Path | None = None
    """Markdown file to write too."""


def prepare(folder: Path, config: Config) -> None:
    """Write groups with a teacher's scores: BM25's best documents for the training claims."""
    data = str(config.data)
    shortlist.index.run(shortlist.index.Config(collection=data, out=folder / "bm25"))
    run = folder / "run.trec"
    searching = {"index": (folder / "bm25",), "collection": data, "split": "train", "k": 100, "out": run}
    shortlist.search.run(shortlist.search.Config(**searching))
    mining = {"teacher": run, "collection": data, "depth": 50, "negatives": NEGATIVES}
    everything = shortlist.mine.Config(runs=(run,), out=folder / "all.jsonl", **mining)
    shortlist.mine.run(everything)
    groups = read_groups(folder / "all.jsonl")[: BATCH * (1 + config.steps)]
    one = [  # a positive each, so that nothing is left to draw
        g._replace(positives=g.positives[:1], scores=(g.scores[0], *g.scores[len(g.positives) :])) for g in groups
    ]
    write_groups(folder / "groups.jsonl", one)


def ours(objective: str, folder: Path, config: Config) -> Result:
    """Run `shortlist train` and read its log."""
    quiet()
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "model"
        shortlist.train.run(
            Training(
                kind="retriever",
                backbone=config.model,
                collection=str(config.data),
                groups=folder / "groups.jsonl",
                out=out,
                query_length=config.max_length,
                max_length=config.max_length,
                batch_size=BATCH,
                steps=1 + config.steps,
                learning_rate=RATE,
                warmup_steps=WARMUP,
                seed=config.seed,
                **OBJECTIVES[objective],
            )
        )
        log = read_log(out)
    tokens = [record["tokens"] for record in log]
    seconds = [n / record["tokens_per_second"] for n, record in zip(tokens, log, strict=True)]
    return Result(seconds[1:], log[0]["loss"], peak_gib())


def theirs(objective: str, folder: Path, config: Config) -> Result:
    """Run the trainer of sentence-transformers, and time its steps."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback

    quiet()
    model = SentenceTransformer(config.model, device="cpu")
    model.max_seq_length = config.max_length
    scale = 1 / TEMPERATURE
    loss = {
        "InfoNCE, cached": lambda: losses.CachedMultipleNegativesRankingLoss(model, scale=scale),
        "margin-MSE": lambda: losses.MarginMSELoss(model),
        "Matryoshka": lambda: losses.MatryoshkaLoss(
            model, losses.MultipleNegativesRankingLoss(model, scale=scale), list(DIMS)
        ),
    }[objective]()
    ends, seen = [], []

    class Clock(TrainerCallback):
        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            ends.append(time.perf_counter())

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **named: Any) -> None:
            seen.append(logs)

    with tempfile.TemporaryDirectory() as temporary:
        arguments = SentenceTransformerTrainingArguments(
            temporary,
            per_device_train_batch_size=BATCH,
            max_steps=1 + config.steps,
            learning_rate=RATE,
            warmup_steps=WARMUP,
            weight_decay=0.0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=1,
            use_cpu=True,
            batch_sampler=lambda dataset, batch_size, drop_last, **_: DefaultBatchSampler(
                SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last
            ),
        )
        columns = texts(folder, config, teacher=objective == "margin-MSE")
        trainer = SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=Dataset.from_dict(columns), loss=loss, callbacks=[Clock()]
        )
        trainer.train()
    return Result([after - before for before, after in pairwise(ends)], seen[0]["loss"], peak_gib())


def texts(folder: Path, config: Config, *, teacher: bool) -> dict[str, list[Any]]:
    """The texts in the order in which ours are drawn, a column for the query and one for each document."""
    collection = open_collection(str(config.data))
    queries = {query.query_id: query.text for query in collection.queries("train")}
    groups = read_groups(folder / "groups.jsonl")
    steps = plan_steps(len(groups), batch_size=BATCH, seed=config.seed, first_step=0, steps=1 + config.steps)
    drawn = [
        draw_group(groups[number], number, epoch=epoch, seed=config.seed, negatives=None)
        for epoch, numbers in steps
        for number in numbers
    ]
    documents = collection.documents({doc_id for group in drawn for doc_id in group.positives + group.negatives})
    columns: dict[str, list[Any]] = {"query": [queries[group.query_id] for group in drawn]}
    for place in range(1 + NEGATIVES):
        chosen = [documents[(group.positives + group.negatives)[place]] for group in drawn]
        columns[f"document {place}"] = [f"{document.title} {document.text}".strip() for document in chosen]
    if teacher:
        columns["label"] = [[group.scores[0] - score for score in group.scores[1:]] for group in drawn]
    return columns


SIDES = {"sentence-transformers": theirs, "shortlist": ours}


def main(config: Config) -> None:
    quiet()
    under = conditions(None)
    sections = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        in_a_process(prepare, folder, config)
        for objective in config.objective:
            results: dict[str, list[Result]] = defaultdict(list)
            for number, turn in enumerate(turns(list(SIDES), config.rounds)):
                for side in turn:
                    results[side].append(result := in_a_process(SIDES[side], objective, folder, config))
                    steps = ", ".join(f"{second:.2f}" for second in result.seconds)
                    say(f"{objective}, round {number + 1}/{config.rounds}, {side}: {steps} s, {result.peak:.2f} GiB")
            sections.append(f"## {objective}\n\n{_table(results)}")
    publish(f"Training steps of {BATCH} claims with {1 + NEGATIVES} abstracts each", under, sections, config.out)


def _table(results: dict[str, list[Result]]) -> str:
    median = {side: statistics.median(s for result in found for s in result.seconds) for side, found in results.items()}
    peak = {side: statistics.median(result.peak for result in found) for side, found in results.items()}
    peer = next(iter(SIDES))
    rows = [
        [
            side,
            f"{median[side]:.2f}",
            f"{median[peer] / median[side]:.2f}",
            f"{peak[side]:.2f}",
            f"{peak[side] / peak[peer]:.2f}",
            f"{results[side][0].loss:.5f}",
        ]
        for side in results
    ]
    return table(["", "median s/step", "x speed", "peak GiB", "x memory", "first loss"], rows)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
