"""Stage `heads`: choose the attention heads that find relevant documents."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from shortlist.config import NotInJob, SpeedOnly, refuse_idle
from shortlist.data.collections import Collection, open_collection
from shortlist.data.heads import best_heads, write_heads
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.manifest import identity
from shortlist.data.runs import read_run
from shortlist.errors import UserError
from shortlist.models.files import Precision
from shortlist.progress import progress, say
from shortlist.records import Document, Query
from shortlist.rerankers.attention import open_readable, readable_prompt

if TYPE_CHECKING:
    from torch import Tensor

    from shortlist.rerankers.attention_reranker import ReadDocuments


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str
    """Causal language model: folder or hub name."""
    collection: str
    """Collection with judged queries: folder, `irds:` or `hf:` name."""
    out: NotInJob[Path]
    """JSON file to write, which `rerank --method attention --heads` reads."""
    split: str = "train"
    """Split with the judgements; it should not be the one to evaluate on."""
    method: Literal["qr", "qr-mass", "core", "qk"] = "qr"
    """How heads are compared. qr: nDCG@10 of the order by calibrated attention (QRHead's code); qr-mass: attention to
    relevant candidates (QRHead's paper); core: what relevant ones get of a softmax over candidates (CoRe); qk: how
    often the greatest product with a candidate's last key is a relevant one's (select-and-copy heads)."""
    count: int | None = None
    """Heads to choose (None: as published, 8 for core and 16 for the others)."""
    temperature: float = 0.1
    """core: divides the attention; 0.1 for LLaMA and Phi, 0.001 for Mistral and Granite."""
    queries: int = 128
    """Most queries, drawn by --seed."""
    run: Path | None = None
    """Run with the candidates (None: the best hits of BM25 over the collection)."""
    depth: int = 40
    """Candidates per query, a relevant one among them."""
    prompt: str | None = None
    """Prompt by name (None: the method's own)."""
    max_length: int | None = None
    """Most tokens of a prompt (None: the model's limit)."""
    precision: Precision = "fp32"
    """Number type that the model computes in."""
    token_budget: SpeedOnly[int | None] = None
    """Tokens per forward pass behind the documents (None: chosen for the device)."""
    seed: int = 0
    """Seed of the choice of queries, and of the order in which candidates are shown."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


class Method(NamedTuple):
    """A way to compare heads."""

    prompt: str
    signal: str
    calibrated: bool
    num_heads: int
    """Heads to choose, if nobody says another number."""


METHODS: dict[str, Method] = {
    "qr": Method("icr", "mass", True, 16),
    "qr-mass": Method("icr", "mass", False, 16),
    "core": Method("core", "mass", False, 8),
    "qk": Method("icr", "qk", False, 16),
}


class Judged(NamedTuple):
    """A query with candidates in the order in which they are shown, and their grades."""

    query: Query
    documents: list[Document]
    grades: list[int]
    judged: list[int]
    """The grades of all its judged documents."""


def check(config: Config) -> None:
    """Refuse settings that are out of range.

    Raises:
        UserError: one is.
    """
    for name, least in (("count", 1), ("queries", 1), ("depth", 2)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}; expected at least {least}.")
    if not config.temperature > 0:
        raise UserError(f"--temperature is {config.temperature:g}; expected more than 0.")
    if config.method != "core":
        refuse_idle(config, ("temperature",), "is for --method core")


def compare_heads(
    lists: Sequence[Judged], read: "ReadDocuments", score: "Callable[[Tensor, Tensor, Tensor], Tensor]"
) -> "Tensor":
    """Average each head's score over queries, in the order of `models.reading.all_heads`.

    Args:
        lists: judged queries.
        read: reads the attention of all heads.
        score: scores heads for a query by what they give to documents, the grades and all judged grades.
    """
    import torch

    from shortlist.math.attention import filtered_sums, span_ends, span_sums

    sums = span_ends if read.signal == "qk" else filtered_sums if read.calibrated else span_sums
    total: Any = 0
    with progress("comparing heads", len(lists), "queries") as advance:
        for one in lists:
            values, spans, _ = read(one.query, one.documents)
            grades, judged = torch.tensor(one.grades).float(), torch.tensor(one.judged).float()
            total = total + score(sums(values, spans), grades, judged)
            advance(1)
    return total / len(lists)


def _score_of(config: Config) -> "Callable[[Tensor, Tensor, Tensor], Tensor]":
    """Return the function that scores heads for a query."""
    from shortlist.math.head_scores import best_is_relevant, mass_of_relevant, ndcg_of_heads, share_of_positive

    def core(scores: "Tensor", grades: "Tensor", judged: "Tensor") -> "Tensor":
        del judged
        return share_of_positive(scores, grades > 0, temperature=config.temperature)

    return {"qr": ndcg_of_heads, "qr-mass": mass_of_relevant, "core": core, "qk": best_is_relevant}[config.method]


def judged_lists(config: Config, collection: Collection) -> list[Judged]:
    """Collect judged queries with candidates, relevant ones and others.

    Where no candidate is relevant, a relevant document takes the place of the last one.

    Raises:
        UserError: there is no such query.
    """
    graded = {name: grades for name, grades in collection.qrels(config.split).items() if max(grades.values()) > 0}
    queries = [query for query in collection.queries(config.split) if query.query_id in graded]
    draw = random.Random(config.seed)
    chosen = sorted(draw.sample(range(len(queries)), min(config.queries, len(queries))))
    queries = [queries[number] for number in chosen]
    if config.run:
        hits = read_run(config.run)
    else:
        from shortlist.index.bm25 import BM25Index

        hits = BM25Index.build(list(collection.corpus())).search(queries, config.depth)
    wanted = {query.query_id: _candidates(config, hits, graded[query.query_id], query.query_id) for query in queries}
    texts = collection.documents({doc_id for ids in wanted.values() for doc_id in ids})
    found = list(_lists(queries, wanted, graded, texts, draw))
    if not found:
        raise UserError(
            f"{config.collection}: no query of split {config.split!r} has candidates that are relevant and others that "
            "are not; name a --split with judgements, and a --run with its candidates."
        )
    return found


def _candidates(config: Config, hits: Mapping[str, Any], grades: Mapping[str, int], query_id: str) -> list[str]:
    ids = [hit.doc_id for hit in hits.get(query_id, [])[: config.depth]]
    if not any(grades.get(doc_id, 0) > 0 for doc_id in ids):
        best = max(grades, key=lambda doc_id: grades[doc_id])
        ids = [*ids[: config.depth - 1], best]
    return ids


def _lists(
    queries: Sequence[Query],
    wanted: Mapping[str, list[str]],
    graded: Mapping[str, Mapping[str, int]],
    texts: Mapping[str, Document],
    draw: random.Random,
) -> Iterator[Judged]:
    for query in queries:
        grades = graded[query.query_id]
        ids = [doc_id for doc_id in wanted[query.query_id] if doc_id in texts]
        draw.shuffle(ids)
        own = [max(0, grades.get(doc_id, 0)) for doc_id in ids]
        if any(own) and not all(own):
            yield Judged(query, [texts[doc_id] for doc_id in ids], own, [max(0, grade) for grade in grades.values()])


def run(config: Config) -> None:
    """Choose heads, and write them with every head's score."""
    check(config)
    method = METHODS[config.method]
    folder, collection = open_readable(config.model, "attention"), open_collection(config.collection)
    prompt = readable_prompt(config.prompt or method.prompt, "attention")
    inputs = {"model": folder.identity}
    inputs["collection"] = collection.identity("corpus", "queries", f"qrels/{config.split}")
    inputs |= {"run": identity(config.run)} if config.run else {}
    job = start_job(config, JobSpec("heads", inputs, reads=[folder.whole.path]))
    if job.done:
        return
    lists = judged_lists(config, collection)

    from shortlist.models.reading import all_heads
    from shortlist.rerankers.attention_reranker import open_reader

    running = {"precision": config.precision, "token_budget": config.token_budget}
    how: dict[str, Any] = {"heads": None, "signal": method.signal, "calibrated": method.calibrated}
    read = open_reader(folder=folder, prompt=prompt, max_length=config.max_length, running=running, **how)
    values = compare_heads(lists, read, _score_of(config)).tolist()
    heads = all_heads(read.read.backbone)
    scores = {str(head): round(value, 6) for head, value in zip(heads, values, strict=True)}
    chosen = best_heads(scores, config.count or method.num_heads)
    known = {"model": folder.identity, "method": config.method, "signal": method.signal, "prompt": prompt.name}
    write_heads(job.out, chosen, **known, queries=len(lists), scores=scores)
    say(f"heads: {', '.join(f'{head} {scores[str(head)]:.4f}' for head in chosen[:8])}" + ", ..." * (len(chosen) > 8))
    job.finish(num_queries=len(lists), heads=list(map(str, chosen)), num_layers=1 + max(head.layer for head in chosen))
