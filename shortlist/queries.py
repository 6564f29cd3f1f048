"""Stage `queries`: queries that a language model writes for documents, where nobody has written any.

A query is kept if a search finds the document that it was written for, so what is left can be answered.
"""

import hashlib
import heapq
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from shortlist.config import NotInJob, SpeedOnly, flag_of, refuse_idle
from shortlist.data.answers import ANSWERS, AnswerLog
from shortlist.data.collections import Collection, copy_corpus, open_collection
from shortlist.data.formats import full_text, write_qrels, write_queries
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.manifest import identity
from shortlist.data.shares import parse_shares, split_by_text
from shortlist.errors import UserError
from shortlist.index.analysis import ANALYSERS
from shortlist.models.files import Precision
from shortlist.pipeline import Pipeline
from shortlist.pipeline.flags import Sources, from_file_or_flags
from shortlist.progress import progress, say
from shortlist.records import Document, Qrels, Query, Run
from shortlist.rerankers.asking import QUESTION, ask_each
from shortlist.rerankers.language import LanguageModelSettings, how_to_open, language_model, model_identity
from shortlist.rerankers.models import AnswersQuestions
from shortlist.text.answers import queries_in
from shortlist.text.batching import windows
from shortlist.text.prompts import Prompt, named_prompt
from shortlist.text.segments import document_of

FOUND_AT_ONCE = 256
LONGEST_QUERY = 32
"""Most words of a query; small models go on and on."""

Search = Callable[[list[Query], int], Run]
"""Finds so many documents for each query."""


@dataclass(frozen=True, kw_only=True)
class Config(Sources):
    collection: str
    """Collection whose documents get queries: folder, `irds:` or `hf:` name."""
    writer: str
    """Language model that writes the queries: its folder or hub name, or the address of an OpenAI-compatible server."""
    out: NotInJob[Path]
    """Folder for a collection of the same documents with the queries and, as judgements, what each was written for."""
    writer_name: str | None = None
    """The server's name of the language model."""
    writer_prompt: str = "queries"
    """Name of the prompt that asks for queries."""
    per_document: int = 3
    """Most queries to ask for and keep of a document."""
    documents: int = 10_000
    """Most documents to write queries for; of more, a sample that changes little when documents are added."""
    min_words: int = 10
    """Fewest words of a document that gets queries."""
    top: int = 20
    """Keep a query only if the search finds its document among the first so many (0: keep all). The search is what
    --pipeline or the flags for indexes and vectors say, or the collection's own index."""
    pipeline: Path | None = None
    """YAML file that describes the search, in place of flags (docs/pipelines.md)."""
    split: tuple[str, ...] = ("train=.8", "dev=.1", "test=.1")
    """Splits with their shares of the documents, so that no document has queries in two."""
    max_length: int | None = None
    """Most tokens of a prompt with its answer (None: the model's limit, or 4,096 if it has none)."""
    precision: Precision = "fp32"
    """Number format of the language model: fp32, bf16 or int8."""
    token_budget: SpeedOnly[int | None] = None
    """Most tokens in one forward pass, padding included (None: chosen for the device)."""
    max_calls: NotInJob[int | None] = None
    """Most prompts to send to the language model now; the same command goes on."""
    seed: int = 0
    """Seed of the sample."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


class WrittenQuery(NamedTuple):
    """A query that was written for a document."""

    query: Query
    doc_id: str


class KeptQueries(NamedTuple):
    """Queries that are kept, and the number of those that are not, by reason."""

    queries: list[WrittenQuery]
    left_out: dict[str, int]


def choose_documents(documents: Iterable[Document], count: int, *, min_words: int = 0, seed: int = 0) -> list[Document]:
    """Draw documents with enough words, in corpus order.

    A document's hash decides, so most of a sample stays when other documents are added or removed.
    """

    def place(document: Document) -> bytes:
        return hashlib.sha256(f"{seed}:{document.doc_id}".encode()).digest()

    long = (
        (number, document)
        for number, document in enumerate(documents)
        if len(full_text(document).split(maxsplit=min_words)) >= min_words
    )
    return [document for _, document in sorted(heapq.nsmallest(count, long, key=lambda item: place(item[1])))]


def ask_for_queries(
    model: AnswersQuestions,
    documents: Sequence[Document],
    log: AnswerLog,
    *,
    shared: Any,
    max_calls: int | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> Iterator[tuple[Document, str]]:
    """Yield each document with the model's answer, which the log knows or keeps.

    Args:
        shared: what all answers depend on, such as the model's identity.
        max_calls: most prompts to send; documents that it does not reach are left out.
        advance: told how many documents were answered.
    """
    asked = [(QUESTION, [document]) for document in documents]
    for place, answer in ask_each(model, asked, log, shared=shared, max_calls=max_calls, advance=advance):
        yield documents[place], answer


def keep_queries(
    answers: Iterable[tuple[Document, str]], search: Search | None, *, per_document: int, top: int
) -> KeptQueries:
    """Keep queries that find the document they were written for, and no near copies.

    Two queries are nearly alike if they have the same stems, whatever their order, without stop words. Queries of more
    than LONGEST_QUERY words are left out.

    Args:
        search: finds documents (None: queries need not find theirs).
        top: the number of documents among which theirs must be.
    """
    written, seen = list[WrittenQuery](), set[frozenset[str]]()
    left_out: dict[str, int] = {"unread": 0, "long": 0, "alike": 0, "not_found": 0}
    for document, answer in answers:
        texts = queries_in(answer)[:per_document]
        left_out["unread"] += not texts
        for text in texts:
            if len(text.split()) > LONGEST_QUERY:
                left_out["long"] += 1
                continue
            stems = frozenset(ANALYSERS["english"](text))
            if stems in seen or not stems:
                left_out["alike"] += 1
                continue
            seen.add(stems)
            written.append(WrittenQuery(Query(f"made-{len(written)}", text), document.doc_id))
    if search is None:
        return KeptQueries(written, left_out)
    kept: list[WrittenQuery] = []
    with progress("searching", len(written), "queries") as advance:
        for some in windows(written, FOUND_AT_ONCE):
            run = search([one.query for one in some], top)
            kept += [one for one in some if one.doc_id in {hit.doc_id for hit in run.get(one.query.query_id, [])[:top]}]
            advance(len(some))
    left_out["not_found"] = len(written) - len(kept)
    return KeptQueries(kept, left_out)


def divide_by_document(written: Sequence[WrittenQuery], shares: Mapping[str, float]) -> dict[str, Qrels]:
    """Divide queries among splits by their documents, whose chunks stay together."""
    judged: dict[str, Qrels] = {split: {} for split in shares}
    for query, doc_id in written:
        judged[split_by_text(document_of(doc_id), shares)][query.query_id] = {doc_id: 1}
    return judged


def run(config: Config) -> None:
    """Have queries written, keep those that find their documents, and write the collection."""
    for name, least in (("per_document", 1), ("documents", 1), ("min_words", 0), ("top", 0)):
        if getattr(config, name) < least:
            raise UserError(f"{flag_of(name)} is {getattr(config, name)}; expected at least {least}.")
    prompt = replace(named_prompt(config.writer_prompt), most=config.per_document)
    if prompt.asks != "queries":
        raise UserError(f"--writer-prompt: {prompt.name!r} does not ask for queries; the prompt `queries` does.")
    if not config.top:
        names = (*(field.name for field in fields(Sources)), "pipeline")
        refuse_idle(config, names, "says how to search, and with --top 0 nothing is searched")
    shares, collection = parse_shares(config.split), open_collection(config.collection)
    how = how_to_open(_model(config))
    job = start_job(config, _spec(config, how, collection))
    if job.done:
        return
    log = AnswerLog(job.out / ANSWERS)
    chosen = choose_documents(collection.corpus(), config.documents, min_words=config.min_words, seed=config.seed)
    if not chosen:
        raise UserError(f"{config.collection}: no document has {config.min_words} words (--min-words).")
    start = time.perf_counter()
    answers = list(_answers(config, prompt, how, chosen, log))
    if len(answers) < len(chosen):
        job.pause(documents=len(chosen), answered=len(answers))
        say(f"queries: {len(chosen) - len(answers):,} documents are left; the same command goes on.")
        return
    seconds = time.perf_counter() - start
    kept = keep_queries(answers, _search(config), per_document=config.per_document, top=config.top)
    judged = divide_by_document(kept.queries, shares)
    counts = {"documents": len(chosen), **kept.left_out, "kept": len(kept.queries)}
    _say_what_is_kept(config, counts, kept.queries)
    if empty := next((split for split in shares if not judged[split]), None):
        raise UserError(
            f"--split: none of {len(kept.queries):,} kept queries falls to {empty!r}; ask for more --documents, keep "
            "more (--top), or leave the split out."
        )
    with job.result() as folder:
        copy_corpus(collection, folder / "corpus.jsonl")
        write_queries(folder / "queries.jsonl", [query for query, _ in kept.queries])
        (folder / "qrels").mkdir()
        for split, qrels in judged.items():
            write_qrels(folder / "qrels" / f"{split}.tsv", qrels)
    prompt_tokens, answer_tokens = log.num_tokens()
    log.close()
    made_by = model_identity(how)["model"]
    job.finish(
        counts,
        machine_made=made_by,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        seconds=round(seconds, 3),
    )


def _model(config: Config) -> LanguageModelSettings:
    return language_model(
        config.writer,
        model_name=config.writer_name,
        max_length=config.max_length,
        token_budget=config.token_budget,
        precision=config.precision,
    )


def _spec(config: Config, how: Mapping[str, Any], collection: Collection) -> JobSpec:
    """Say what the queries depend on: the documents, the writer and the search."""
    inputs: dict[str, str | list[str]] = {
        "collection": collection.identity("corpus"),
        "writer": model_identity(how)["model"],
        "writer_prompt": named_prompt(config.writer_prompt).digest(),
        "index": [identity(path) for path in config.index],
    }
    for name in ("pipeline", "vectors"):
        if path := getattr(config, name):
            inputs[name] = identity(path)
    return JobSpec("queries", inputs, folder=True, writes=("answers.sqlite*",))


def _answers(
    config: Config, prompt: Prompt, how: Mapping[str, Any], documents: Sequence[Document], log: AnswerLog
) -> Iterator[tuple[Document, str]]:
    """Ask about the documents; the model is loaded here and gone afterwards."""
    from shortlist.rerankers.opening import open_language_model

    model, shared = open_language_model(prompt=prompt, reads="text", **how)
    with progress("writing queries", len(documents), "documents") as advance:
        yield from ask_for_queries(model, documents, log, shared=shared, max_calls=config.max_calls, advance=advance)


def _search(config: Config) -> Search | None:
    """Open what has to find a query's document again."""
    if not config.top:
        return None
    pipeline = Pipeline.open(from_file_or_flags(config.pipeline, config, collection=config.collection))
    return lambda queries, k: pipeline.trace(queries, k).last.run


def _say_what_is_kept(config: Config, counts: Mapping[str, int], kept: Sequence[WrittenQuery]) -> None:
    left_out = [f"{counts['alike']:,} were nearly alike", f"{counts['long']:,} longer than {LONGEST_QUERY} words"]
    if config.top:
        left_out.append(f"{counts['not_found']:,} did not find their document in the first {config.top}")
    left_out.append(f"of {counts['unread']:,} documents no query could be read")
    say(f"queries: kept {counts['kept']:,} for {counts['documents']:,} documents; {', '.join(left_out)}.")
    for query, doc_id in kept[:: max(1, len(kept) // 3)][:3]:
        say(f"queries: for example {query.text!r}, written for {doc_id}")
