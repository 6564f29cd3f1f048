"""Stage `diagnose`: where relevant documents are lost, and which queries are won, lost, or hard."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shortlist.config import NotInJob, refuse_idle
from shortlist.data.collections import Collection, open_collection
from shortlist.data.exclusions import columns_without, find_excluded, judged_without
from shortlist.data.files import read_json, write_json
from shortlist.data.formats import read_qrels
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.manifest import identity
from shortlist.data.runs import RunColumns, read_run_columns
from shortlist.errors import UserError
from shortlist.evaluation.diagnose.hard import find_hard
from shortlist.evaluation.diagnose.printing import print_diagnosis
from shortlist.evaluation.measure import judged_ranks, of_run, parse_measures, per_query
from shortlist.math.outcomes import OUTCOMES, outcomes
from shortlist.progress import say, track
from shortlist.records import Document, Qrels, Query

DOCUMENT_SHOWN = 200
"""Number of characters of a document that are shown."""
QUERY_BINS, DOCUMENT_BINS = (4, 8, 16), (128, 512, 2048)
"""Upper ends of the groups by length; the last group has no upper end."""
SIZED_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class Config:
    run: Path
    """Run of the first stage."""
    reranked: Path | None = None
    """The same queries' run after reranking, or after another search, such as that of a step `feedback`."""
    collection: str
    """Collection with the texts and judgements: folder, `irds:` or `hf:` name."""
    split: str = "test"
    """Split of the collection."""
    qrels: Path | None = None
    """Judgements to use instead of the collection's."""
    depth: int = 200
    """Number of candidates that the reranker reads."""
    k: int = 10
    """Number of documents that the reader sees: the top."""
    relevance_level: int = 1
    """Lowest grade that counts as relevant."""
    measure: str = "nDCG@10"
    """Measure by which queries are won and lost."""
    model: str | None = None
    """Retriever or reranker: lengths are then counted in its tokens instead of words, and documents that it cuts off
    are counted apart."""
    contract: str | None = None
    """Name of the input contract, for a model folder that does not state one."""
    examples: int = 5
    """Number of queries, and of documents, to show of each kind."""
    sample: int = 200
    """Number of queries, spread over all, whose candidates are read to find duplicates."""
    ties: Literal["trec", "rank"] = "trec"
    """Order of a run's hits, as in `shortlist evaluate`."""
    out: NotInJob[Path | None] = None
    """JSON file to write the results to, besides printing them."""
    json: NotInJob[bool] = False
    """Print JSON instead of tables."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


class PairSizes(NamedTuple):
    """The lengths of a query and a document.

    `cut` says whether the model reads only the beginning of the document.
    """

    query: int
    document: int
    cut: bool | None = None


Measurer = Callable[[Sequence[tuple[Query, Document]]], list[PairSizes]]


class Task(NamedTuple):
    """The runs to diagnose, with judgements and texts of the same queries.

    All other fields are as in `Config`.
    """

    run: RunColumns
    reranked: RunColumns | None
    qrels: Qrels
    """Judgements of the queries that the runs have."""
    queries: Mapping[str, Query]
    collection: Collection
    depth: int
    k: int
    relevance_level: int
    measure: str
    model: str | None
    contract: str | None
    examples: int
    sample: int

    @property
    def last(self) -> RunColumns:
        """The run that the reader sees."""
        return self.run if self.reranked is None else self.reranked


def run(config: Config) -> None:
    """Diagnose, print the result, and write it to --out."""
    for flag, value in (("depth", config.depth), ("k", config.k), ("sample", config.sample)):
        if value < 1:
            raise UserError(f"--{flag} is {value}; expected 1 or more.")
    if config.examples < 0:
        raise UserError(f"--examples is {config.examples}; expected 0 or more.")
    if config.model is None:
        refuse_idle(config, ("contract",), "is for --model, and there is none")
    parse_measures([config.measure])
    if config.out is None:
        found = diagnose(_task(config))
    else:
        job = start_job(config, JobSpec("diagnose", _inputs(config), version=3))
        if not job.done:
            write_json(job.out, diagnose(_task(config)))
            job.finish()
        found = read_json(config.out)
    if config.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print_diagnosis(found)


def _inputs(config: Config) -> dict[str, str]:
    collection = open_collection(config.collection)
    inputs = {"run": identity(config.run)} | find_excluded(None, config.collection, config.split).inputs
    inputs |= {"reranked": identity(config.reranked)} if config.reranked else {}
    if config.qrels is not None:
        return inputs | {"qrels": identity(config.qrels), "collection": collection.identity("corpus", "queries")}
    return inputs | {"collection": collection.identity("corpus", "queries", f"qrels/{config.split}")}


def _task(config: Config) -> Task:
    collection = open_collection(config.collection)
    excluded = find_excluded(None, config.collection, config.split).by_query

    def read(path: Path) -> RunColumns:
        return columns_without(read_run_columns(path, ties=config.ties), excluded)[0]

    run, reranked = read(config.run), read(config.reranked) if config.reranked else None
    qrels = judged_without(read_qrels(config.qrels) if config.qrels else collection.qrels(config.split), excluded)
    queries = {query.query_id: query for query in collection.queries(config.split)}
    shared = set(run.query_ids) & queries.keys() & (set(reranked.query_ids) if reranked else queries.keys())
    judged = {query_id: judgements for query_id, judgements in qrels.items() if query_id in shared}
    if not judged:
        raise UserError(
            f"{config.run}: none of its query ids (first {run.query_ids[0]!r}) is a judged query of "
            f"{config.collection} {config.split} (first {next(iter(qrels))!r}) that all runs have."
        )
    if len(judged) < len(qrels):
        say(f"diagnose: {len(qrels) - len(judged)} of {len(qrels)} judged queries are not in every run: left out.")
    return Task(
        run,
        reranked,
        judged,
        queries,
        collection,
        depth=config.depth,
        k=config.k,
        relevance_level=config.relevance_level,
        measure=config.measure,
        model=config.model,
        contract=config.contract,
        examples=config.examples,
        sample=config.sample,
    )


def diagnose(task: Task) -> dict[str, Any]:
    """Return the whole diagnosis: `fates`, `duplicates`, `unjudged`, `queries` and `difficulty`."""
    settings: dict[str, Any] = {"relevance_level": task.relevance_level}
    values = per_query(task.run, task.qrels, [task.measure], **settings)[task.measure]
    return {
        "num_queries": len(task.qrels),
        "depth": task.depth,
        "k": task.k,
        "relevance_level": task.relevance_level,
        "unit": "tokens" if task.model else "words",
        "fates": count_outcomes(task),
        "duplicates": find_duplicates(task),
        "unjudged": find_unjudged(task),
        "queries": compare_queries(task),
        "difficulty": find_hard(task.run, task.queries, values, examples=task.examples) | {"measure": task.measure},
    }


def count_outcomes(task: Task) -> dict[str, Any]:
    """Count the outcomes of relevant documents.

    The counts are for `all`, by the lengths of query and document, and by truncation.
    """
    relevant = {
        query_id: {doc_id: grade for doc_id, grade in judgements.items() if grade >= task.relevance_level}
        for query_id, judgements in task.qrels.items()
    }
    after = judged_ranks(task.reranked, relevant) if task.reranked else None
    numbers = outcomes(judged_ranks(task.run, relevant), after, depth=task.depth, k=task.k)
    pairs = [(query_id, doc_id) for query_id, judgements in relevant.items() for doc_id in judgements]
    absent = set(task.collection.missing(dict.fromkeys(doc_id for _, doc_id in pairs)))
    groups: dict[str, dict[str, Counter[str]]] = {"all": {"all": Counter()}}
    groups["all"]["all"].update(OUTCOMES[number] for number in numbers.tolist())
    there = [(pair, OUTCOMES[n]) for pair, n in zip(pairs, numbers.tolist(), strict=True) if pair[1] not in absent]
    for outcome, sizes in _measured(task, there):
        bins = {"query length": _bin(sizes.query, QUERY_BINS), "document length": _bin(sizes.document, DOCUMENT_BINS)}
        if sizes.cut is not None:
            bins["document"] = "cut by the model" if sizes.cut else "read whole"
        for kind, name in bins.items():
            groups.setdefault(kind, {}).setdefault(name, Counter())[outcome] += 1
    by_kind = {
        kind: {name: dict(counts) for name, counts in sorted(by.items(), key=_first_number)}
        for kind, by in groups.items()
    }
    return {"relevant": len(pairs), "not_in_the_collection": len([p for p in pairs if p[1] in absent]), **by_kind}


def _first_number(item: tuple[str, Any]) -> tuple[int, str]:
    digits = "".join(letter for letter in item[0].split("-")[0] if letter.isdigit())
    return int(digits or 0), item[0]


def _bin(length: int, ends: Sequence[int]) -> str:
    start = 0
    for end in ends:
        if length <= end:
            return f"{start}-{end}"
        start = end + 1
    return f"{start}-"


def _measured(task: Task, relevant: Sequence[tuple[tuple[str, str], str]]) -> Iterator[tuple[str, PairSizes]]:
    """Yield the outcome and the sizes of each pair.

    A bounded number of texts is held at a time.
    """
    measure = _measurer(task.model, task.contract)
    for start in range(0, len(relevant), SIZED_AT_ONCE):
        part = relevant[start : start + SIZED_AT_ONCE]
        documents = task.collection.documents({doc_id for (_, doc_id), _ in part})
        pairs = [(task.queries[query_id], documents[doc_id]) for (query_id, doc_id), _ in part]
        yield from zip([outcome for _, outcome in part], measure(pairs), strict=True)


def _measurer(model: str | None, contract: str | None) -> Measurer:
    """Return a function that measures pairs of query and document.

    Without a model it counts words; with one, its tokens, and whether it cuts the document.
    """
    if model is None:
        return lambda pairs: [PairSizes(len(query.text.split()), len(_words(document))) for query, document in pairs]
    from shortlist.models.folder import open_folder
    from shortlist.text.inputs import Inputs

    folder = open_folder(model, weights=False)
    form = folder.any_contract(contract).form
    inputs = Inputs(form, folder.tokenizer)

    def measure(pairs: Sequence[tuple[Query, Document]]) -> list[PairSizes]:
        texts = [query.text for query, _ in pairs], [" ".join(_words(document)) for _, document in pairs]
        queries, documents = ([len(spans) for spans in inputs.token_spans(side_texts)] for side_texts in texts)
        if form.pair:
            whole, most = inputs.pair_ids(pairs, cut=False), form.pair_length
        else:
            whole, most = inputs.document_ids([document for _, document in pairs], cut=False), form.document_length
        return [PairSizes(q, d, len(ids) > most) for q, d, ids in zip(queries, documents, whole, strict=True)]

    return measure


def _words(document: Document) -> list[str]:
    return f"{document.title} {document.text}".split()


def find_duplicates(task: Task) -> dict[str, Any]:
    """Find candidates with the same text as one ranked above them.

    Case and white space are ignored, and only a sample of the queries is read.
    """
    run = task.run
    numbers = [number for number, query_id in enumerate(run.query_ids) if query_id in task.qrels]
    step = max(1, -(-len(numbers) // task.sample))
    copies, examples = [], []
    for number in track(numbers[::step], "reading candidates", len(numbers[::step]), "queries"):
        doc_ids = [hit.doc_id for hit in run.hits(number)[: task.depth]]
        absent = set(task.collection.missing(doc_ids))
        documents = task.collection.documents([doc_id for doc_id in doc_ids if doc_id not in absent])
        first: dict[str, str] = {}
        duplicates = []
        for doc_id, document in documents.items():
            above = first.setdefault(" ".join(_words(document)).casefold(), doc_id)
            if above != doc_id:
                duplicates.append({"query_id": run.query_ids[number], "doc_id": doc_id, "same_as": above})
        copies.append(len(duplicates))
        examples += duplicates[: task.examples - len(examples)] if len(examples) < task.examples else []
    return {
        "queries_read": len(copies),
        "queries_with_duplicates": sum(number > 0 for number in copies),
        "duplicates": sum(copies),
        "examples": examples,
    }


def find_unjudged(task: Task) -> dict[str, Any]:
    """Find documents in the top without a judgement.

    The examples stand above a relevant document: they may be relevant too.
    """
    run = task.last
    num_shown, num_unjudged, above = 0, 0, []
    for number, query_id in enumerate(run.query_ids):
        judgements = task.qrels.get(query_id)
        if judgements is None:
            continue
        doc_ids = [hit.doc_id for hit in run.hits(number)[: task.k]]
        grades = [judgements.get(doc_id) for doc_id in doc_ids]
        num_shown += len(doc_ids)
        num_unjudged += grades.count(None)
        relevant = [rank for rank, grade in enumerate(grades) if grade is not None and grade >= task.relevance_level]
        lowest = max(relevant, default=-1)
        above += [(rank, query_id, doc_ids[rank]) for rank in range(lowest) if grades[rank] is None]
    examples = [
        {"query_id": query_id, "query": task.queries[query_id].text, "rank": rank + 1, **_shown(task, doc_id)}
        for rank, query_id, doc_id in sorted(above)[: task.examples]
    ]
    share = num_unjudged / max(1, num_shown)
    return {
        "shown": num_shown,
        "unjudged": num_unjudged,
        "share": share,
        "above_a_relevant_one": len(above),
        "examples": examples,
    }


def _shown(task: Task, doc_id: str) -> dict[str, str]:
    """Return a document as it is shown: its id and the beginning of its text."""
    if task.collection.missing([doc_id]):
        return {"doc_id": doc_id, "text": ""}
    words = " ".join(_words(task.collection.documents([doc_id])[doc_id]))
    return {
        "doc_id": doc_id,
        "text": words if len(words) <= DOCUMENT_SHOWN else words[:DOCUMENT_SHOWN].rstrip() + " ...",
    }


def compare_queries(task: Task) -> dict[str, Any]:
    """Return the queries that the reranker won and lost most.

    Without a reranker, these are the queries with the lowest values.
    """
    settings: dict[str, Any] = {"relevance_level": task.relevance_level}
    before = per_query(task.run, task.qrels, [task.measure], **settings)[task.measure]
    comparison: dict[str, Any] = {"measure": task.measure, "before": of_run(task.measure, before)}
    if task.reranked is None:
        lowest = sorted(before, key=before.__getitem__)[: task.examples]
        return comparison | {"lowest": [_query(task, query_id, before, before) for query_id in lowest]}
    after = per_query(task.reranked, task.qrels, [task.measure], **settings)[task.measure]
    changes = {query_id: after[query_id] - before[query_id] for query_id in before}
    order = sorted(changes, key=changes.__getitem__)
    won = [query_id for query_id in reversed(order) if changes[query_id] > 0]
    lost = [query_id for query_id in order if changes[query_id] < 0]
    return comparison | {
        "after": of_run(task.measure, after),
        "num_won": len(won),
        "num_lost": len(lost),
        "won": [_query(task, query_id, before, after) for query_id in won[: task.examples]],
        "lost": [_query(task, query_id, before, after) for query_id in lost[: task.examples]],
    }


def _query(task: Task, query_id: str, before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    """Return a query as it is shown, before and after reranking.

    For each run it has the value, the first document, and the rank of the first relevant document.
    """
    level = task.relevance_level
    relevant = {query_id: {d: g for d, g in task.qrels[query_id].items() if g >= level}}
    entry: dict[str, Any] = {"query_id": query_id, "query": task.queries[query_id].text}
    sides = {"before": (task.run, before)} | ({"after": (task.reranked, after)} if task.reranked else {})
    for side, (run, values) in sides.items():
        ranks = judged_ranks(run, relevant)
        first = run.hits(run.query_ids.index(query_id))[0].doc_id
        entry[side] = {
            "value": values[query_id],
            "first_relevant": int(ranks[ranks > 0].min()) if (ranks > 0).any() else None,
            "first": _shown(task, first),
        }
    return entry
