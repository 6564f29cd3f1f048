"""Stage `judge`: grades that a language model gives to documents nobody has judged."""

import json
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from shortlist.config import NotInJob, SpeedOnly, flag_of
from shortlist.data.answers import AnswerLog
from shortlist.data.checks import NoJudgementsError
from shortlist.data.collections import Collection, open_collection
from shortlist.data.exclusions import Excluded, find_excluded
from shortlist.data.files import atomic_write
from shortlist.data.formats import read_qrels, write_qrels
from shortlist.data.jobs import Job, JobSpec, start_job
from shortlist.data.lines import ignore
from shortlist.data.manifest import identity, read_manifest
from shortlist.errors import UserError, not_given
from shortlist.models.files import Precision
from shortlist.progress import progress
from shortlist.records import Document, Qrels, Query
from shortlist.rerankers.asking import FEWEST, ask_each
from shortlist.rerankers.language import LanguageModelSettings, how_to_open, language_model, model_identity
from shortlist.rerankers.models import CALLS_AT_ONCE, ReadsDocuments
from shortlist.text.answers import MALFORMED
from shortlist.text.batching import windows
from shortlist.text.prompts import Prompt, named_prompt

LOG_ENDS = ".answers"
"""End of the name of the file with the language model's answers, beside the output."""
LEAST_CHANCE = 0.5
"""Chance that a server's model begins its answer with a grade; below it, no grade is taken from it."""


@dataclass(frozen=True, kw_only=True)
class Config:
    model: str
    """Language model that judges: its folder or hub name, or the address of an OpenAI-compatible server."""
    runs: tuple[Path, ...]
    """Runs whose first documents are judged."""
    collection: str
    """Collection with the texts: folder, `irds:` or `hf:` name; documents that it excludes for a query are not
    judged."""
    out: NotInJob[Path]
    """File of judgements to write. The answers are kept in a file beside it that ends in .answers, so that the same
    command can continue after an interruption."""
    split: str = "test"
    """Split of the collection with the queries."""
    depth: int = 10
    """First documents of each query to judge from each run."""
    qrels: Path | None = None
    """Judgements that are there; what they judge is not judged again (None: those of the split, if it has any)."""
    again: bool = False
    """Judge what is judged already too, to compare both with `shortlist agree`."""
    join: bool = False
    """Also write the judgements that are there. What is judged twice keeps the grade that it had."""
    model_name: str | None = None
    """The server's name of the language model."""
    prompt: str = "judge"
    """Name of the prompt, which asks for a grade. `judge` is read from one digit, and `judge-steps` reasons first."""
    answers: Literal["text", "logits"] | None = None
    """Have answers generated, or read them from the logits of the grades (None: as the prompt says)."""
    long: Literal["skip", "cut"] = "skip"
    """What to do with documents too long for the prompt or the model: leave them out, or judge their beginning."""
    max_length: int | None = None
    """Most tokens of a prompt with its answer (None: the model's limit, or 4,096 if it has none)."""
    precision: Precision = "fp32"
    """Number format of the language model: fp32, bf16 or int8."""
    token_budget: SpeedOnly[int | None] = None
    """Most tokens in one forward pass, padding included (None: chosen for the device)."""
    max_calls: NotInJob[int | None] = None
    """Most prompts to send to the language model now; the same command goes on."""
    max_malformed: NotInJob[float] = 0.2
    """Stop if no grade can be read from a larger share of the answers."""
    details: NotInJob[Path | None] = None
    """File of JSON lines, one for each judgement: grade, expected grade, model and prompt."""
    ties: Literal["trec", "rank"] = "trec"
    """Order of a run's hits, as in `shortlist evaluate`."""
    json: NotInJob[bool] = False
    """Print JSON instead of sentences."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


class Graded(NamedTuple):
    """Grade that an answer gives to a document, if it can be read."""

    grade: int | None
    """None: no grade could be read."""
    expected: float | None
    """Mean of the grades by their chances, where those are known."""
    faults: tuple[str, ...]
    """Kinds of faults, as in `text.answers.MALFORMED`."""


class Judgement(NamedTuple):
    """A grade that a machine gave."""

    query_id: str
    doc_id: str
    grade: int
    expected: float | None


QueryAndDocument = tuple[Query, list[Document]]
"""A query and the one document to judge."""


class Askable(NamedTuple):
    """Pairs to ask about, and the number of other pairs by reason."""

    pairs: list[QueryAndDocument]
    left_out: dict[str, int]


def read_grade(answer: str | list[float], prompt: Prompt, *, is_of_server: bool = False) -> Graded:
    """Read the grade in an answer, and never make one up.

    Of numbers, the grade is the likeliest one.

    Args:
        answer: text, or a number for each of the prompt's grades, NaN where it is not known.
        is_of_server: whether the numbers are log-probabilities among all tokens, of which a server tells only the
            highest. If the model would rather begin with something that is no grade, there is none to read.
    """
    if isinstance(answer, str):
        [score], faults = prompt.parsed(answer, 1)
        return Graded(None if math.isnan(score) else int(score), None, faults)
    found = np.array([-math.inf if math.isnan(number) else number for number in answer])
    if not np.isfinite(found).any():
        return Graded(None, None, ("none",))
    if is_of_server and np.exp(found).sum() < LEAST_CHANCE:
        return Graded(None, None, ("none", "form"))
    chances = np.exp(found - found.max())
    expected = float(chances @ np.array(prompt.grades) / chances.sum())
    return Graded(prompt.grades[int(found.argmax())], expected, ())


def holes(runs: Iterable[Mapping[str, Sequence[str]]], known: Qrels) -> dict[str, list[str]]:
    """Collect each query's documents without a judgement, in the order of the runs.

    Args:
        runs: document ids of each query, best first, as deep as they are to be judged.
    """
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for query_id, doc_ids in run.items():
            judged = known.get(query_id, {})
            found.setdefault(query_id, {}).update(dict.fromkeys(d for d in doc_ids if d not in judged))
    return {query_id: list(doc_ids) for query_id, doc_ids in found.items() if doc_ids}


def run(config: Config) -> None:
    """Have the holes of runs judged, and write the judgements."""
    _check(config)
    prompt, collection = _prompt(config.prompt), open_collection(config.collection)
    how = how_to_open(_model(config))
    known, known_from = _known(config, collection)
    inputs: dict[str, Any] = {"model": model_identity(how)["model"], "prompt": prompt.digest()}
    inputs |= {"runs": [identity(path) for path in config.runs], "qrels": known_from}
    inputs["collection"] = collection.identity("corpus", "queries")
    excluded = find_excluded(None, config.collection, config.split)
    inputs |= excluded.inputs
    job = start_job(config, JobSpec("judge", inputs))
    if not job.done or config.details is not None:  # its answers are kept, so that nothing is asked again
        asked = _pairs(config, collection, known, excluded)
        _judge(config, job, prompt, how, asked, known)
    _report(config)


def _check(config: Config) -> None:
    if not config.runs:
        raise not_given("--runs", "it names the runs whose documents are judged")
    for name in ("depth", "max_calls"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"{flag_of(name)} is {value}; expected at least 1.")
    if not 0 <= config.max_malformed <= 1:
        raise UserError(f"--max-malformed is {config.max_malformed:g}; expected a share from 0 to 1.")


def _prompt(name: str) -> Prompt:
    prompt = named_prompt(name)
    if prompt.asks != "grade":
        raise UserError(f"--prompt: {name!r} does not ask for a grade; the prompts `judge` and `judge-steps` do.")
    return replace(prompt, certain=False)  # a judgement is a whole grade


def _model(config: Config) -> LanguageModelSettings:
    return language_model(
        config.model,
        model_name=config.model_name,
        max_length=config.max_length,
        token_budget=config.token_budget,
        precision=config.precision,
    )


def _known(config: Config, collection: Collection) -> tuple[Qrels, str]:
    """Return the judgements that are there, and their identity; both may be empty."""
    if config.qrels is not None:
        return read_qrels(config.qrels), identity(config.qrels)
    try:
        return collection.qrels(config.split), collection.identity(f"qrels/{config.split}")
    except NoJudgementsError:
        return {}, ""


def _pairs(config: Config, collection: Collection, known: Qrels, excluded: Excluded) -> Askable:
    """Find the pairs to ask about.

    Raises:
        UserError: there is none.
    """
    queries = {query.query_id: query for query in collection.queries(config.split, ignore)}
    wanted = holes((_first(config, path, excluded) for path in config.runs), {} if config.again else known)
    if not wanted:
        raise UserError(f"--runs: all first {config.depth} documents are judged; raise --depth, or judge --again.")
    asked = _asked(wanted, queries, collection)
    if not asked.pairs:
        raise UserError(
            f"--runs: none of its {sum(map(len, wanted.values())):,} pairs has a query and a text in "
            f"{config.collection} ({config.split}); check --collection and --split."
        )
    return asked


def _judge(config: Config, job: Job, prompt: Prompt, how: Mapping[str, Any], asked: Askable, known: Qrels) -> None:
    log, start = AnswerLog(job.out.with_name(job.out.name + LOG_ENDS)), time.perf_counter()
    judgements, counts = _grades(config, prompt, how, asked, log)
    counts = {name: count for name, count in (asked.left_out | counts).items() if count}
    before = known if config.join else {}
    written = _written(judgements, before)
    new = [one for one in judgements if one.doc_id not in before.get(one.query_id, {})]
    if judgements:
        write_qrels(job.out, written)
    identified = model_identity(how)["model"]
    made_by = identified if how.get("folder") is None else f"{config.model} {identified}"
    if config.details is not None:
        _write_details(config.details, judgements, made_by, prompt)
    prompt_tokens, answer_tokens = log.num_tokens()
    log.close()
    results: dict[str, Any] = {
        "machine_made": made_by,
        "machine_pairs": len(new),
        "num_pairs": sum(map(len, written.values())),
        "prompt": prompt.name,
        "prompt_digest": prompt.digest(),
        "grades": {str(g): n for g, n in sorted(Counter(one.grade for one in new).items())},
        "left_out": counts,
        "prompt_tokens": prompt_tokens,
        "answer_tokens": answer_tokens,
        "seconds": round(time.perf_counter() - start, 3),
    }
    if counts.get("not_reached"):
        job.pause(**results)
        return
    if not judgements:
        raise UserError(f"--out {job.out}: no document got a grade ({_reasons(counts)}), so there is nothing to write.")
    job.finish(**results)


def _first(config: Config, path: Path, excluded: Excluded) -> dict[str, list[str]]:
    run = excluded.left_of(path, ties=config.ties)
    spans = zip(run.starts[:-1].tolist(), run.starts[1:].tolist(), strict=True)
    return {
        query_id: run.doc_ids[start : min(end, start + config.depth)].to_pylist()
        for query_id, (start, end) in zip(run.query_ids, spans, strict=True)
    }


def _asked(wanted: Mapping[str, Sequence[str]], queries: Mapping[str, Query], collection: Collection) -> Askable:
    """Fetch the texts of pairs, and count those that lack one."""
    left_out = Counter(no_query=sum(len(doc_ids) for query_id, doc_ids in wanted.items() if query_id not in queries))
    wanted = {query_id: doc_ids for query_id, doc_ids in wanted.items() if query_id in queries}
    everything = {doc_id for doc_ids in wanted.values() for doc_id in doc_ids}
    lacking = set(collection.missing(everything))
    documents = collection.documents(everything - lacking)
    pairs = []
    for query_id, doc_ids in wanted.items():
        for doc_id in doc_ids:
            document = documents.get(doc_id)
            if document is None or not (document.text.strip() or document.title.strip()):
                left_out["no_text"] += 1
                continue
            pairs.append((queries[query_id], [document]))
    return Askable(pairs, dict(left_out))


def _grades(
    config: Config, prompt: Prompt, how: Mapping[str, Any], asked: Askable, log: AnswerLog
) -> tuple[list[Judgement], dict[str, int]]:
    """Ask about the pairs; the model is loaded here and gone afterwards.

    Returns:
        The judgements, and the number of pairs without one, by reason.
    """
    from shortlist.rerankers.opening import open_language_model

    model, shared = open_language_model(prompt=prompt, reads=config.answers or prompt.reads, **how)
    of_server, skips, left = how.get("folder") is None, config.long == "skip", config.max_calls
    counts, faults, judgements, num_read = Counter[str](), Counter[str](), list[Judgement](), 0
    with progress("judging", len(asked.pairs), "pairs") as advance:
        for some in windows(asked.pairs, CALLS_AT_ONCE):
            pairs = _whole(model, some) if skips else some
            counts["too_long"] += len(some) - len(pairs)
            advance(len(some) - len(pairs))
            before, answered = len(log), 0
            for place, answer in ask_each(model, pairs, log, shared=shared, max_calls=left, advance=advance):
                query, [document] = pairs[place]
                graded, num_read, answered = (
                    read_grade(answer, prompt, is_of_server=of_server),
                    num_read + 1,
                    answered + 1,
                )
                if graded.grade is not None:
                    judgements.append(Judgement(query.query_id, document.doc_id, graded.grade, graded.expected))
                    continue
                counts["unread"] += 1
                faults.update(graded.faults)
                _check_faults(config, log, (counts["unread"], num_read), faults, fewest=FEWEST)
            counts["not_reached"] += len(pairs) - answered
            left = left if left is None else left - (len(log) - before)
    _check_faults(config, log, (counts["unread"], num_read), faults)
    return judgements, dict(counts)


def _whole(model: ReadsDocuments, pairs: Sequence[QueryAndDocument]) -> list[QueryAndDocument]:
    """Return the pairs whose document the model reads whole."""
    return [pair for pair, cut in zip(pairs, model.cut(pairs), strict=True) if not cut]


def _check_faults(
    config: Config, log: AnswerLog, unread: tuple[int, int], faults: Counter[str], *, fewest: int = 1
) -> None:
    """Refuse too many unreadable answers; where none is readable, they are not kept."""
    num_unread, num_read = unread
    if num_read < fewest or num_unread <= config.max_malformed * num_read:
        return
    if num_unread == num_read:
        log.forget()
    kinds = "; ".join(f"{count:,}x {MALFORMED[kind]}" for kind, count in faults.most_common())
    raise UserError(
        f"no grade can be read from {num_unread:,} of {num_read:,} answers ({kinds}), more than --max-malformed "
        f"{config.max_malformed:g}; look at what answers there, try --answers text or --prompt judge-steps, or allow "
        "more."
    )


def _written(judgements: Iterable[Judgement], known: Qrels) -> Qrels:
    """Join machine-made judgements with those that are there, whose grades stay."""
    written: Qrels = {query_id: dict(judged) for query_id, judged in known.items()}
    for one in judgements:
        written.setdefault(one.query_id, {}).setdefault(one.doc_id, one.grade)
    return written


def _write_details(path: Path, judgements: Iterable[Judgement], made_by: str, prompt: Prompt) -> None:
    with atomic_write(path) as file:
        for one in judgements:
            expected = {} if one.expected is None else {"expected": round(one.expected, 4)}
            line = {"query_id": one.query_id, "doc_id": one.doc_id, "grade": one.grade, **expected}
            file.write(json.dumps(line | {"model": made_by, "prompt": prompt.name}, ensure_ascii=False) + "\n")


REASONS = {
    "unread": "no grade could be read from the answer",
    "too_long": "the document is too long to be read whole (--long cut judges its beginning)",
    "no_text": "the document is empty or not in the collection",
    "no_query": "the query is not in the split",
    "not_reached": "not reached yet; the same command goes on",
}
"""Reasons for a pair to have no grade, with their meanings."""


def _reasons(counts: Mapping[str, int]) -> str:
    return "; ".join(f"{counts[name]:,}: {words}" for name, words in REASONS.items() if counts.get(name))


def _report(config: Config) -> None:
    found = (read_manifest(config.out) or {})["results"]
    if config.json:
        names = ("machine_made", "machine_pairs", "num_pairs", "prompt", "grades", "left_out")
        print(json.dumps({name: found[name] for name in names}, ensure_ascii=False))
        return
    grades = ", ".join(f"{count:,} of grade {grade}" for grade, count in found["grades"].items())
    print(
        f"{found['machine_pairs']:,} judgements by {found['machine_made'].partition(' sha256:')[0]}: {grades or 'none'}"
    )
    if len(found["grades"]) == 1 and found["machine_pairs"] > 1:
        print("all have the same grade, which tells nothing; compare with people's by `shortlist agree`")
    if found["num_pairs"] > found["machine_pairs"]:
        print(f"written with {found['num_pairs'] - found['machine_pairs']:,} that were there")
    if found["left_out"]:
        print(f"left without a grade: {_reasons(found['left_out'])}")
