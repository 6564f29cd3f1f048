"""Stage `aspects`: sub-queries that a language model writes for queries, to cover what each asks.

RichRAG: https://arxiv.org/abs/2406.12566
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shortlist.config import NotInJob, SpeedOnly
from shortlist.data.answers import ANSWERS, AnswerLog
from shortlist.data.collections import copy_corpus, open_collection
from shortlist.data.formats import write_queries
from shortlist.data.jobs import JobSpec, start_job
from shortlist.errors import UserError
from shortlist.models.files import Precision
from shortlist.progress import progress, say
from shortlist.records import Document, Query
from shortlist.rerankers.asking import QUESTION, ask_each
from shortlist.rerankers.language import LanguageModelSettings, how_to_open, language_model, model_identity
from shortlist.text.answers import queries_in
from shortlist.text.prompts import Prompt, named_prompt


@dataclass(frozen=True, kw_only=True)
class Config:
    collection: str
    """Collection whose queries are divided: folder, `irds:` or `hf:` name."""
    writer: str
    """Language model that writes sub-queries: its folder or hub name, or the address of an OpenAI-compatible server."""
    out: NotInJob[Path]
    """Folder for a collection of the same documents, whose queries are `QUERY#0`, the query itself, `QUERY#1` and so
    on: search it, and give the run to `diversify --aspects`."""
    split: str = "test"
    """Split whose queries are divided."""
    writer_name: str | None = None
    """The server's name of the language model."""
    writer_prompt: str = "aspects"
    """Name of the prompt that asks for sub-queries."""
    per_query: int = 4
    """Most sub-queries of a query, besides itself."""
    max_length: int | None = None
    """Most tokens of a prompt with its answer (None: the model's limit, or 4,096 if it has none)."""
    precision: Precision = "fp32"
    """Number format of the language model: fp32, bf16 or int8."""
    token_budget: SpeedOnly[int | None] = None
    """Most tokens in one forward pass, padding included (None: chosen for the device)."""
    max_calls: NotInJob[int | None] = None
    """Most prompts to send to the language model now; the same command goes on."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def sub_queries(query: Query, answer: str, *, most: int) -> list[Query]:
    """Return a query as `QUERY#0`, and an answer's sub-queries as `QUERY#1` and on.

    Equal texts come once, whatever their case.
    """
    texts = {query.text.casefold(): query.text}
    for text in queries_in(answer):
        texts.setdefault(text.casefold(), text)
    return [Query(f"{query.query_id}#{number}", text) for number, text in enumerate([*texts.values()][: most + 1])]


def run(config: Config) -> None:
    """Have sub-queries written, and write the collection with them."""
    if config.per_query < 1:
        raise UserError(f"--per-query is {config.per_query}; expected at least 1.")
    prompt = replace(named_prompt(config.writer_prompt), most=config.per_query)
    if prompt.asks != "queries":
        raise UserError(f"--writer-prompt: {prompt.name!r} does not ask for queries; the prompt `aspects` does.")
    collection = open_collection(config.collection)
    queries, how = collection.queries(config.split), how_to_open(_model(config))
    inputs = {
        "collection": collection.identity("corpus", "queries"),
        "writer": model_identity(how)["model"],
        "writer_prompt": named_prompt(config.writer_prompt).digest(),
    }
    job = start_job(config, JobSpec("aspects", inputs, folder=True, writes=("answers.sqlite*",)))
    if job.done:
        return
    log = AnswerLog(job.out / ANSWERS)
    answers = _answers(config, prompt, how, queries, log)
    if len(answers) < len(queries):
        job.pause(queries=len(queries), answered=len(answers))
        say(f"aspects: {len(queries) - len(answers):,} queries are left; the same command goes on.")
        return
    divided = [sub_queries(query, answers[number], most=config.per_query) for number, query in enumerate(queries)]
    with job.result() as folder:
        copy_corpus(collection, folder / "corpus.jsonl")
        write_queries(folder / "queries.jsonl", [one for parts in divided for one in parts])
    alone, written = sum(len(parts) == 1 for parts in divided), sum(map(len, divided)) - len(queries)
    say(f"aspects: {written:,} sub-queries of {len(queries):,} queries; {alone:,} have none, and stand for themselves.")
    prompt_tokens, answer_tokens = log.num_tokens()
    log.close()
    counts = {"queries": len(queries), "aspects": written, "undivided": alone}
    job.finish(counts, machine_made=inputs["writer"], prompt_tokens=prompt_tokens, answer_tokens=answer_tokens)


def _model(config: Config) -> LanguageModelSettings:
    return language_model(
        config.writer,
        model_name=config.writer_name,
        max_length=config.max_length,
        token_budget=config.token_budget,
        precision=config.precision,
    )


def _answers(
    config: Config, prompt: Prompt, how: Mapping[str, Any], queries: Sequence[Query], log: AnswerLog
) -> dict[int, str]:
    """Ask about the queries; the model is loaded here and gone afterwards."""
    from shortlist.rerankers.opening import open_language_model

    model, shared = open_language_model(prompt=prompt, reads="text", **how)
    asked: Iterable[tuple[Query, list[Document]]] = [(QUESTION, [Document(*query)]) for query in queries]
    with progress("dividing queries", len(queries), "queries") as advance:
        return dict(ask_each(model, [*asked], log, shared=shared, max_calls=config.max_calls, advance=advance))
