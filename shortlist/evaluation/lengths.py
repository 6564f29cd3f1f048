"""Stage `lengths`: token counts of a collection's texts, and the share within some limits."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from shortlist.config import NotInJob, refuse_idle
from shortlist.data.collections import Collection, open_collection
from shortlist.data.figures import COLORS, write_svg
from shortlist.data.files import atomic_write, read_json, write_json
from shortlist.data.formats import full_text
from shortlist.data.jobs import JobSpec, start_job
from shortlist.errors import UserError
from shortlist.math.histogram import Histogram, add_lengths, mean_length, quantile, share_at_most, shares
from shortlist.models.folder import open_folder
from shortlist.progress import track
from shortlist.records import Document
from shortlist.text.tokenizer import load_tokenizer, tokenizer_identity

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
COUNTED_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class Config:
    collection: str
    """Folder, `irds:` or `hf:` name of the collection."""
    model: str
    """Folder or hub name of the model whose tokenizer counts."""
    out: NotInJob[Path]
    """Folder for lengths.csv (every length, how many texts have it, the share of texts of at most this length),
    lengths.json and lengths.svg."""
    split: str | None = None
    """Measure the queries of this split instead of the documents."""
    sample: int | None = None
    """Measure this many documents, spread evenly over the corpus, instead of all."""
    limits: tuple[int, ...] = (512, 1024, 2048, 4096)
    """Lengths in tokens; the share of texts of at most this length is reported for each."""
    drop_longest: float = 0.03
    """Share of the longest texts that the drawing leaves out, as in figure 1 of the paper."""
    json: NotInJob[bool] = False
    """Print JSON instead of a table."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def count(texts: Iterable[str], tokenizer: Any) -> Histogram:
    """Count how many texts have how many tokens, without special tokens.

    A bounded number of texts is held at a time.
    """
    histogram, texts = np.zeros(0, dtype=np.int64), iter(texts)
    while batch := list(islice(texts, COUNTED_AT_ONCE)):
        ids = tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        histogram = add_lengths(histogram, list(map(len, ids)))
    return histogram


def run(config: Config) -> None:
    """Count, write the table and the drawing, and print the summary."""
    if min(config.limits, default=1) < 1:
        raise UserError(f"--limits has {min(config.limits)}; expected numbers of tokens, 1 or more.")
    if not 0 <= config.drop_longest < 1:
        raise UserError(f"--drop-longest is {config.drop_longest}; expected a share from 0 to less than 1.")
    if config.sample is not None and config.sample < 1:
        raise UserError(f"--sample is {config.sample}; expected 1 or more documents.")
    if config.split is not None:
        refuse_idle(config, ("sample",), "is for documents, and --split measures queries, all of them")
    collection = open_collection(config.collection)
    folder = open_folder(config.model, weights=False).path
    part = "corpus" if config.split is None else "queries"
    inputs = {"model": tokenizer_identity(folder), "collection": collection.identity(part)}
    job = start_job(config, JobSpec("lengths", inputs, folder=True))
    if not job.done:
        histogram = count(_texts(collection, config.split, config.sample), load_tokenizer(folder))
        summary = summarise(histogram, config.limits)
        draw = partial(draw_lengths, histogram, _what(config.split), config.limits, config.drop_longest)
        with job.result() as out:
            write_json(out / "lengths.json", {"texts": _what(config.split), **summary})
            with atomic_write(out / "lengths.csv") as file:
                _write_csv(file, histogram)
            write_svg(out / "lengths.svg", draw)
        job.finish(**summary)
    _print(read_json(config.out / "lengths.json"), as_json=config.json)


def _what(split: str | None) -> str:
    return "documents" if split is None else f"queries of {split}"


def _texts(collection: Collection, split: str | None, sample: int | None) -> Iterator[str]:
    if split is not None:
        return (query.text for query in collection.queries(split))
    total = collection.num_docs()
    documents: Iterable[Document] = collection.corpus()
    if sample is not None and sample < total:
        wanted = {place * total // sample for place in range(sample)}
        documents = (document for place, document in enumerate(documents) if place in wanted)
        total = sample
    return map(full_text, track(documents, "counting", total, "documents"))


def summarise(histogram: Histogram, limits: Sequence[int]) -> dict[str, Any]:
    """Summarise the lengths: `count`, `mean`, `longest`, `quantiles` and `at_most` each limit."""
    return {
        "count": int(histogram.sum()),
        "mean": round(mean_length(histogram), 3),
        "longest": len(histogram) - 1,
        "quantiles": {f"{share:.0%}": quantile(histogram, share) for share in QUANTILES},
        "at_most": {str(limit): share_at_most(histogram, limit) for limit in limits},
    }


def _write_csv(file: Any, histogram: Histogram) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["tokens", "texts", "share_at_most"])
    there = np.flatnonzero(histogram)
    writer.writerows(zip(there.tolist(), histogram[there].tolist(), shares(histogram)[there].tolist(), strict=True))


def draw_lengths(histogram: Histogram, what: str, limits: Sequence[int], drop_longest: float, figure: Any) -> None:
    """Draw the share of texts of at most each length, and the limits.

    The longest texts are left out.
    """
    longest = quantile(histogram, 1 - drop_longest)
    axes = figure.add_subplot(xlabel=f"tokens of the {what}", ylabel="share of at most that length", ylim=(0, 1.05))
    axes.grid(color="#dddddd", linewidth=0.5)
    share = shares(histogram)[: longest + 1]
    axes.step(np.arange(len(share)), share, where="post", color=COLORS[0], linewidth=1.6)
    for limit in limits:
        if limit <= longest:
            axes.axvline(limit, color=COLORS[1], linewidth=0.8, linestyle="--")
            words = f"{limit:,}: {share_at_most(histogram, limit):.0%}"
            axes.annotate(words, (limit, 0.03), xytext=(3, 0), textcoords="offset points", fontsize=8, rotation=90)
    axes.set_xlim(0, max(longest, 1))
    if drop_longest:
        axes.set_title(f"the longest {drop_longest:.0%} left out", fontsize=9)


def _print(summary: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{summary['count']:,} {summary['texts']}, tokens", title_justify="left")
    columns = {"mean": f"{summary['mean']:,.1f}"} | {name: f"{v:,}" for name, v in summary["quantiles"].items()}
    columns |= {"longest": f"{summary['longest']:,}"}
    columns |= {f"<= {limit}": f"{share:.1%}" for limit, share in summary["at_most"].items()}
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row(*columns.values())
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160).print(table)
