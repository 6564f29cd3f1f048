"""Stage `select`: keep the texts of a pool that look like a target."""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from shortlist.config import NotInJob, flag_of, refuse_idle
from shortlist.data.collections import Collection, copy_corpus, open_collection
from shortlist.data.exclusions import EXCLUDE, Excluded, find_excluded, write_exclusions
from shortlist.data.files import atomic_write
from shortlist.data.formats import document_line, full_text, write_qrels, write_queries
from shortlist.data.groups import open_groups, write_groups
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.manifest import identity, read_manifest
from shortlist.errors import UserError
from shortlist.math.importance import best_numbers, divergence, log_ratios, text_weights
from shortlist.progress import progress, say
from shortlist.records import Qrels, Query
from shortlist.text.batching import windows
from shortlist.text.words import Grams, word_grams

_AT_ONCE = 128
"""Texts whose words are hashed together; a few hundred kilobytes stay in the processor's cache."""
_PART = 1_000_000
"""Texts of a part, which an interrupted run does not weigh again."""


@dataclass(frozen=True, kw_only=True)
class Config:
    pool: str
    """Collection to select from: folder, `irds:` or `hf:` name."""
    like: str
    """What the texts should look like: a collection, or a `.txt` file with a text per line."""
    size: int
    """Number of texts to keep."""
    out: NotInJob[Path]
    """Folder for the collection of what is kept, with the weights of its texts."""
    what: Literal["documents", "queries"] = "documents"
    """Texts to select: the pool's documents, with the judgements and queries that are left of them, or its queries,
    with all documents."""
    split: str = "train"
    """With --what queries: split of the pool's queries."""
    like_split: str = "train"
    """With --what queries: split of the queries of --like."""
    groups: Path | None = None
    """With --what queries: training groups, of which those of kept queries are written to groups.jsonl."""
    by: Literal["token", "sum"] = "token"
    """Weight of a text: the mean over its words, or their sum, as in the paper, which depends on the text's length."""
    smoothing: float = 1.0
    """What is added to the count of each bucket; 0 makes words that the target lacks weigh much."""
    buckets: int = 10_000
    """Number of buckets that words and pairs of words are hashed into."""
    sample: float | None = None
    """Draw texts by chance, with probabilities proportional to exp(weight / --sample), instead of taking the best (1
    with --by sum is as in the paper; about 0.1 suits --by token)."""
    seed: int = 0
    """Seed of --sample, and of the random texts that the kept ones are compared with."""
    json: NotInJob[bool] = False
    """Print JSON instead of a sentence."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


_LITTLE = 1e-3
"""Smoothing for divergences, which are infinite without any."""


class Bags(NamedTuple):
    """KeptCounts of the hashed words of the target and of the pool."""

    target: Int[np.ndarray, " buckets"]
    pool: Int[np.ndarray, " buckets"]


def bucket_counts(texts: Iterable[str], buckets: int) -> tuple[Int[np.ndarray, " buckets"], int]:
    """Count the words and pairs of words of texts by bucket, and the texts."""
    counts, num_texts = np.zeros(buckets, dtype=np.int64), 0
    for some in windows(texts, _AT_ONCE):
        counts += np.bincount(_buckets(word_grams(some), buckets), minlength=buckets)
        num_texts += len(some)
    return counts, num_texts


def weigh(
    texts: Iterable[str], bags: Bags, *, smoothing: float = 1.0, by: str = "token"
) -> Float[np.ndarray, " texts"]:
    """Weigh texts by how much they look like the target; texts without words get -inf.

    https://arxiv.org/abs/2302.03169
    """
    ratios = log_ratios(bags.target, bags.pool, smoothing=smoothing).astype(np.float32)
    weights = [np.zeros(0, dtype=np.float32)]
    for some in windows(texts, _AT_ONCE):
        grams = word_grams(some)
        found = text_weights(ratios[_buckets(grams, len(ratios))], grams.texts, len(some), mean=by == "token")
        weights.append(found.astype(np.float32))
    return np.concatenate(weights)


def _buckets(grams: Grams, buckets: int) -> Int[np.ndarray, " grams"]:
    return (grams.numbers % np.uint64(buckets)).astype(np.int64)


def run(config: Config) -> None:
    """Weigh the texts of the pool, and write the collection of the kept ones."""
    _check(config)
    pool = open_collection(config.pool)
    job = start_job(config, _spec(config, pool))
    if not job.done:
        start = time.perf_counter()
        source = TextSource(pool, config.what, config.split)
        bags = _count(config, job.out, source)
        weights = _weigh_in_parts(config, job.out, source, bags)
        if not config.size < (usable := int(np.isfinite(weights).sum())):
            raise UserError(
                f"--size is {config.size:,}; {config.pool} has {usable:,} {config.what} with words, so expected fewer."
            )
        kept = best_numbers(weights, config.size, temperature=config.sample or 0.0, seed=config.seed)
        random = np.random.default_rng(config.seed).choice(np.flatnonzero(np.isfinite(weights)), config.size, False)
        with job.result() as folder:
            of_kept, of_random = _WRITERS[config.what](config, source, folder, Selection(weights, kept, random))
        for part in job.out.glob("part-*.npy"):
            part.unlink()
        divergences = {
            name: round(divergence(bags.target, counts, smoothing=config.smoothing or _LITTLE), 6)
            for name, counts in (("pool", bags.pool), ("random", of_random), ("kept", of_kept))
        }
        found = {"pool": len(weights), "without_words": len(weights) - usable, "kept": len(kept)}
        edge = {"least_kept": float(weights[kept].min()), "median_pool": float(np.median(weights))}
        seconds = round(time.perf_counter() - start, 3)
        job.finish({**found, **edge}, divergence=divergences, seconds=seconds)
    results = (read_manifest(config.out) or {})["results"]
    print(json.dumps({name: results[name] for name in _REPORTED}) if config.json else _in_words(config, results))


_REPORTED = ("pool", "without_words", "kept", "least_kept", "median_pool", "divergence", "seconds")


def _in_words(config: Config, results: dict[str, Any]) -> str:
    nats = results["divergence"]
    return (
        f"kept {results['kept']:,} of {results['pool']:,} {config.what}, of weight {results['least_kept']:.3f} or more "
        f"(middle of the pool {results['median_pool']:.3f}); divergence from {config.like}: {nats['kept']:.3f} nats, "
        f"of as many random ones {nats['random']:.3f}"
    )


def _check(config: Config) -> None:
    for name, least in (("size", 1), ("buckets", 2)):
        if getattr(config, name) < least:
            raise UserError(f"{flag_of(name)} is {getattr(config, name)}; expected at least {least}.")
    if config.smoothing < 0:
        raise UserError(f"--smoothing is {config.smoothing:g}; expected 0 or more.")
    if config.sample is not None and config.sample <= 0:
        raise UserError(f"--sample is {config.sample:g}; expected a number above 0, such as 0.1.")
    if config.what == "documents":
        refuse_idle(config, ("groups", "split", "like_split"), "is for --what queries")
    elif Path(config.like).suffix == ".txt":
        refuse_idle(config, ("like_split",), "is for a collection in --like")


def _spec(config: Config, pool: Collection) -> JobSpec:
    splits = [config.split] if config.what == "queries" else _judged_splits(pool)
    parts = ("corpus", *(["queries"] if splits else []), *(f"qrels/{split}" for split in splits))
    like = Path(config.like)
    inputs: dict[str, str | list[str]] = {"pool": pool.identity(*parts)}
    if like.suffix == ".txt":
        inputs["like"] = identity(like)
    else:
        inputs["like"] = open_collection(config.like).identity("queries" if config.what == "queries" else "corpus")
    if config.groups is not None:
        inputs["groups"] = identity(config.groups)
    if lists := [one.identity for split in splits if (one := find_excluded(None, config.pool, split)).source]:
        inputs["exclude"] = lists
    return JobSpec("select", inputs, folder=True, parts="part-*.npy", writes=("part-*.npy",))


def _judged_splits(collection: Collection) -> list[str]:
    """List the splits that have judgements."""
    return [split for split in collection.splits() if _has_qrels(collection, split)]


def _has_qrels(collection: Collection, split: str) -> bool:
    try:
        collection.identity(f"qrels/{split}")
    except UserError:
        return False
    return True


class TextSource(NamedTuple):
    """The texts to select from."""

    collection: Collection
    what: str
    split: str

    def texts(self) -> Iterator[str]:
        """Yield the texts, in the order of their numbers."""
        if self.what == "queries":
            return (query.text for query in self.collection.queries(self.split))
        return (full_text(document) for document in self.collection.corpus())

    def num_texts(self) -> int:
        """Count the texts."""
        return len(self.collection.queries(self.split)) if self.what == "queries" else self.collection.num_docs()


def _target_texts(config: Config) -> Iterator[str]:
    if Path(config.like).suffix == ".txt":
        with open(config.like, encoding="utf-8") as file:
            yield from (line for line in file if line.strip())
    else:
        yield from TextSource(open_collection(config.like), config.what, config.like_split).texts()


def _count(config: Config, out: Path, source: TextSource) -> Bags:
    """Count the words of target and pool, unless that was done before."""
    if (path := out / "part-counts.npy").exists():
        return Bags(*np.load(path))
    target, num_target = bucket_counts(_target_texts(config), config.buckets)
    if not target.sum():
        raise UserError(f"{config.like}: none of its {num_target:,} texts holds a word; expected texts to look like.")
    with progress("counting words", source.num_texts(), "texts") as advance:
        pool, _ = bucket_counts(_tracked(source.texts(), advance), config.buckets)
    _save(path, np.stack([target, pool]))
    return Bags(target, pool)


def _weigh_in_parts(config: Config, out: Path, source: TextSource, bags: Bags) -> Float[np.ndarray, " texts"]:
    """Weigh all texts; parts that are there from before are read."""
    weights = []
    with progress("weighing", source.num_texts(), "texts") as advance:
        for number, some in enumerate(_parts(_tracked(source.texts(), advance))):
            path = out / f"part-{number:05}.npy"
            if not path.exists():
                _save(path, weigh(some, bags, smoothing=config.smoothing, by=config.by))
            for _ in some:  # of a part that is there from before
                pass
            weights.append(np.load(path))
    return np.concatenate(weights)


def _parts(texts: Iterator[str]) -> Iterator[Iterator[str]]:
    """Divide texts into iterators over _PART texts each, to be read one after the other."""
    for first in texts:
        yield islice(chain([first], texts), _PART)


def _tracked(texts: Iterable[str], advance: Any) -> Iterator[str]:
    for some in windows(texts, _AT_ONCE):
        advance(len(some))
        yield from some


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_write(path, "wb") as file:
        np.save(file, array)


class Selection(NamedTuple):
    """Numbers of the kept texts, with the weights of all."""

    weights: Float[np.ndarray, " texts"]
    kept: Int[np.ndarray, " kept"]
    random: Int[np.ndarray, " kept"]
    """As many random ones, to compare with."""


KeptCounts = Int[np.ndarray, "2 buckets"]
"""KeptCounts of the hashed words of the kept texts, and of the random ones."""


def _write_documents(config: Config, source: TextSource, folder: Path, selection: Selection) -> KeptCounts:
    """Write the kept documents, their weights, and the judgements that are left."""
    chosen = [np.isin(np.arange(len(selection.weights)), some) for some in (selection.kept, selection.random)]
    counts, number = np.zeros((2, config.buckets), dtype=np.int64), 0
    doc_ids: set[str] = set()
    with (
        atomic_write(folder / "corpus.jsonl") as corpus,
        atomic_write(folder / "weights.tsv") as lines,
        progress("writing", len(selection.kept), "documents") as advance,
    ):
        for some in windows(source.collection.corpus(), _AT_ONCE):
            kept, random = (
                [some[at] for at in np.flatnonzero(is_chosen[number : number + len(some)])] for is_chosen in chosen
            )
            weights = selection.weights[number : number + len(some)][chosen[0][number : number + len(some)]]
            corpus.writelines(map(document_line, kept))
            lines.writelines(
                f"{document.doc_id}\t{weight:.6f}\n" for document, weight in zip(kept, weights, strict=True)
            )
            doc_ids.update(document.doc_id for document in kept)
            counts += [bucket_counts(map(full_text, documents), config.buckets)[0] for documents in (kept, random)]
            number += len(some)
            advance(len(kept))
    _write_judgements(config.pool, source.collection, folder, doc_ids)
    return counts


def _write_judgements(pool: str, collection: Collection, folder: Path, doc_ids: set[str]) -> None:
    """Write the judgements of kept documents, and the queries that still have a relevant one."""
    queries: dict[str, Query] = {}
    for split in _judged_splits(collection):
        left: Qrels = {}
        for query_id, row in collection.qrels(split).items():
            there = {doc_id: grade for doc_id, grade in row.items() if doc_id in doc_ids}
            if any(grade > 0 for grade in there.values()):
                left[query_id] = there
        if left:
            found = (query for query in collection.queries(split, lambda _: None) if query.query_id in left)
            queries |= {query.query_id: query for query in found}
            (folder / "qrels").mkdir(exist_ok=True)
            write_qrels(folder / "qrels" / f"{split}.tsv", left)
            _write_excluded(find_excluded(None, pool, split), folder, split)
    if queries:
        write_queries(folder / "queries.jsonl", queries.values())


def _write_excluded(excluded: Excluded, folder: Path, split: str) -> None:
    """Write the documents that a split's queries may not find, if any."""
    if excluded.source:
        write_exclusions(folder / EXCLUDE / f"{split}.jsonl", excluded.by_query)


def _write_queries(config: Config, source: TextSource, folder: Path, selection: Selection) -> KeptCounts:
    """Write the kept queries with their judgements and weights beside all documents."""
    queries = source.collection.queries(config.split)
    chosen = [queries[number] for number in selection.kept.tolist()]
    copy_corpus(source.collection, folder / "corpus.jsonl")
    write_queries(folder / "queries.jsonl", chosen)
    with atomic_write(folder / "weights.tsv") as lines:
        for query, weight in zip(chosen, selection.weights[selection.kept].tolist(), strict=True):
            lines.write(f"{query.query_id}\t{weight:.6f}\n")
    ids = {query.query_id for query in chosen}
    (folder / "qrels").mkdir()
    qrels: Qrels = {name: row for name, row in source.collection.qrels(config.split).items() if name in ids}
    write_qrels(folder / "qrels" / f"{config.split}.tsv", qrels)
    _write_excluded(find_excluded(None, config.pool, config.split), folder, config.split)
    if config.groups is not None:
        groups = [group for group in open_groups(str(config.groups)).groups if group.query_id in ids]
        if not groups:
            raise UserError(f"--groups {config.groups}: holds no group of a kept query; expected groups of --pool.")
        say(f"select: {len(groups):,} groups are of kept queries.")
        write_groups(folder / "groups.jsonl", groups)
    both = [[queries[number].text for number in some.tolist()] for some in (selection.kept, selection.random)]
    return np.stack([bucket_counts(texts, config.buckets)[0] for texts in both])


_WRITERS = {"documents": _write_documents, "queries": _write_queries}
"""How what is kept of each sort of texts is written."""
