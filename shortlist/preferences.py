"""Stage `preferences`: which of two summaries a language model should write, judged by a reranker.

CoLoR: https://arxiv.org/abs/2412.18232
"""

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortlist.config import NotInJob, SpeedOnly, flag_of
from shortlist.data.answers import AnswerLog, answer_keys
from shortlist.data.collections import Collection, open_collection
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.lines import ignore
from shortlist.data.manifest import identity
from shortlist.data.preferences import Wording, write_preferences
from shortlist.data.runs import open_run
from shortlist.errors import UserError
from shortlist.late import late
from shortlist.models.files import Precision
from shortlist.models.folder import open_folder
from shortlist.progress import progress, say
from shortlist.records import Qrels, Query, Run
from shortlist.rerankers import Candidates
from shortlist.rerankers.asking import ask_each
from shortlist.rerankers.language import ASKED, how_to_open, is_server, language_model, model_identity
from shortlist.rerankers.pointwise import pointwise
from shortlist.rerankers.prepared import Prepared
from shortlist.text.batching import windows
from shortlist.text.prompts import Prompt, named_prompt

SAMPLES_END = ".answers"
"""End of the name of the file with the samples and their ranks, beside the output."""
JUDGED_AT_ONCE = 32
"""Queries whose summaries are judged together: what an interruption loses."""
WITHOUT_PAIR = {
    "no_candidate": "no relevant document is among the candidates",
    "alone": "there is no other candidate",
    "short": "the relevant document is short enough",
    "unread": "no summary could be read",
    "no_right": "no summary keeps the document where it belongs",
    "equal": "none is better than another",
}
"""Reasons for a query to give no preference, with their meanings."""


@dataclass(frozen=True, kw_only=True)
class Config:
    run: Path
    """Run of the split's queries, whose first documents are the candidates."""
    collection: str
    """Collection with the texts and the judgements: folder, `irds:` or `hf:` name."""
    writer: str
    """Language model that writes the summaries: its folder or hub name."""
    reranker: str
    """Reranker of pairs that judges them: its folder or hub name."""
    out: NotInJob[Path]
    """JSONL file of preferences to write. The samples are kept in a file beside it that ends in .answers, so that the
    same command can continue after an interruption."""
    split: str = "train"
    """Split of the collection with the queries."""
    depth: int = 10
    """First documents of each query that are candidates. Summaries are written of the first relevant one of them."""
    positives_from: int = 1
    """Lowest grade of a relevant document."""
    most_queries: int | None = None
    """Most queries to have summaries written for; of more, a sample (None: all)."""
    prompt: str = "summary"
    """Name of the prompt, which asks for a text, as in `compress: summary`."""
    words: int | None = None
    """Most words to ask for, as in `compress: summary` (None: as the prompt says). Shorter documents are left out."""
    samples: int = 4
    """Summaries of each document, to compare."""
    temperature: float = 1.0
    """How much samples differ: divides the logits."""
    top: int = 1
    """A summary is right if the reranker puts its document among the first so many candidates."""
    max_length: int | None = None
    """Most tokens of a prompt with its answer (None: the model's limit, or 4,096 if it has none)."""
    precision: Precision = "fp32"
    """Number format of both models: fp32, bf16 or int8."""
    token_budget: SpeedOnly[int | None] = None
    """Most tokens in one forward pass, padding included (None: chosen for the device)."""
    max_calls: NotInJob[int | None] = None
    """Most prompts to send to the language model now; the same command goes on."""
    seed: int = 0
    """Seed of the samples."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def find_candidates(
    queries: Sequence[Query], run: Run, qrels: Qrels, *, depth: int, least: int = 1
) -> tuple[dict[str, tuple[list[str], int]], int]:
    """Find each query's candidates, and the place of the first relevant one.

    Returns:
        The ids of candidates and this place by query, and the number of queries without a relevant candidate.
    """
    found: dict[str, tuple[list[str], int]] = {}
    for query in queries:
        grades = qrels.get(query.query_id, {})
        doc_ids = [hit.doc_id for hit in run.get(query.query_id, [])[:depth]]
        place = next((place for place, doc_id in enumerate(doc_ids) if grades.get(doc_id, 0) >= least), None)
        if place is not None:
            found[query.query_id] = doc_ids, place
    return found, len(queries) - len(found)


def run(config: Config) -> None:
    """Have summaries sampled and judged, and write which to prefer."""
    _check(config)
    prompt, collection = _prompt(config), open_collection(config.collection)
    how = how_to_open(
        language_model(
            config.writer,
            model_name=None,
            max_length=config.max_length,
            token_budget=config.token_budget,
            precision=config.precision,
        )
    )
    reranker = pointwise(
        model=open_folder(config.reranker, wanted="reranker"),
        precision=config.precision,
        token_budget=config.token_budget,
        long_queries="cut",
    )
    inputs = {
        "run": identity(config.run),
        "collection": collection.identity("corpus", "queries", f"qrels/{config.split}"),
        "writer": model_identity(how)["model"],
        "reranker": reranker.identities()["model"],
        "prompt": prompt.digest(),
    }
    job = start_job(config, JobSpec("preferences", inputs))
    if job.done:
        return
    start, log = time.perf_counter(), AnswerLog(job.out.with_name(job.out.name + SAMPLES_END))
    counts, lists = _lists(config, collection, prompt)
    answers = _answers(config, prompt, how, lists, log)
    if len(answers) < len(lists):
        job.pause(queries=len(lists), answered=len(answers))
        say(f"preferences: {len(lists) - len(answers):,} documents are left; the same command goes on.")
        return
    from shortlist.pipeline.preferences import Sampled, preferred, read_samples

    sampled = [Sampled(*lists[number], read_samples(answers[number])) for number in range(len(lists))]
    ranks = _ranks(reranker, sampled, log, {"reranker": inputs["reranker"], "precision": config.precision})
    chosen = [preferred(one, places, top=config.top) for one, places in zip(sampled, ranks, strict=True)]
    pairs = [one for one in chosen if not isinstance(one, str)]
    counts.update(one for one in chosen if isinstance(one, str))
    said = _reasons(counts)
    if not pairs:
        raise UserError(f"--out {job.out}: no query gives a preference ({said}), so there is nothing to write.")
    write_preferences(job.out, pairs, Wording(config.prompt, config.words))
    words = {
        name: sum(len(getattr(one, name).split()) for one in pairs) / len(pairs) for name in ("chosen", "rejected")
    }
    say(
        f"preferences: {len(pairs):,} pairs, of {words['chosen']:.1f} words where chosen and {words['rejected']:.1f} "
        f"where rejected{f'; queries without: {said}' if said else ''}."
    )
    prompt_tokens, answer_tokens = log.num_tokens()
    log.close()
    job.finish(
        {"pairs": len(pairs), **counts},
        machine_made=inputs["writer"],
        words={name: round(mean, 2) for name, mean in words.items()},
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        seconds=round(time.perf_counter() - start, 3),
    )


def _check(config: Config) -> None:
    least = {"depth": 2, "positives_from": 1, "samples": 2, "top": 1, "most_queries": 1, "words": 1, "max_calls": 1}
    for name, lowest in (least | {"seed": 0}).items():
        value = getattr(config, name)
        if value is not None and value < lowest:
            raise UserError(f"{flag_of(name)} is {value}; expected at least {lowest}.")
    if not config.temperature > 0:
        raise UserError(f"--temperature is {config.temperature:g}; expected more than 0, or all samples are alike.")
    if config.top >= config.depth:
        raise UserError(
            f"--top is {config.top} and --depth {config.depth}; expected more candidates, or all are right."
        )
    if is_server(config.writer):
        raise UserError("--writer: is a server, and samples are drawn from a model here; name its folder or hub name.")


def _prompt(config: Config) -> Prompt:
    prompt = named_prompt(config.prompt)
    if prompt.asks != "text":
        raise UserError(f"--prompt: {prompt.name!r} asks for {ASKED[prompt.asks]}; expected one that asks for a text.")
    return prompt if config.words is None else prompt.of_words(config.words)


def _lists(config: Config, collection: Collection, prompt: Prompt) -> tuple[Counter[str], list[tuple[Candidates, int]]]:
    """Read the candidates of the queries to ask about; count the others by reason."""
    from shortlist.pipeline.shortening import word_spans

    queries = collection.queries(config.split, ignore)
    if config.most_queries is not None and len(queries) > config.most_queries:
        places = random.Random(config.seed).sample(range(len(queries)), config.most_queries)
        queries = [queries[place] for place in sorted(places)]
    how = {"depth": config.depth, "least": config.positives_from}
    found, without = find_candidates(queries, open_run(config.run), collection.qrels(config.split), **how)
    counts = Counter({"no_candidate": without} if without else {})
    texts = collection.documents({doc_id for doc_ids, _ in found.values() for doc_id in doc_ids})
    lists, most = [], prompt.most_to_choose(1)
    for query in queries:
        if query.query_id not in found:
            continue
        doc_ids, place = found[query.query_id]
        documents = [texts[doc_id] for doc_id in doc_ids]
        if len(documents) <= config.top:
            counts["alone"] += 1
        elif len(word_spans(documents[place].text)) <= most:
            counts["short"] += 1
        else:
            lists.append((Candidates(query, documents), place))
    if not lists:
        raise UserError(f"--run {config.run}: no query has a document to shorten ({_reasons(counts)}).")
    return counts, lists


def _answers(
    config: Config,
    prompt: Prompt,
    how: Mapping[str, Any],
    lists: Sequence[tuple[Candidates, int]],
    log: AnswerLog,
) -> dict[int, Any]:
    """Sample summaries; the model is loaded here and gone afterwards."""
    from shortlist.pipeline.preferences import Samples
    from shortlist.rerankers.models import LocalModel
    from shortlist.rerankers.opening import open_language_model

    model, shared = open_language_model(prompt=prompt, reads="text", **how)
    assert isinstance(model, LocalModel)  # as no server is named; for the type checker
    several = Samples(model, samples=config.samples, temperature=config.temperature, seed=config.seed)
    asked = [(query, [documents[place]]) for (query, documents), place in lists]
    with progress("sampling summaries", len(asked), "documents") as advance:
        return dict(ask_each(several, asked, log, shared=shared, max_calls=config.max_calls, advance=advance))


def _ranks(reranker: Prepared, sampled: Sequence[Any], log: AnswerLog, shared: Mapping[str, Any]) -> list[list[int]]:
    """Rank each document with each of its summaries, unless the log has it."""
    each = [
        [one.candidates.query.text, [document[:3] for document in one.candidates.documents], one.place, one.texts]
        for one in sampled
    ]
    keys = answer_keys(dict(shared), each)
    known = log.find(keys)
    left = [place for place, key in enumerate(keys) if key not in known]
    if left:
        count, ranker = late("pipeline.preferences", "ranks_of"), reranker.open()
        with progress("judging summaries", len(left), "documents") as advance:
            for some in windows(left, JUDGED_AT_ONCE):
                found = count(ranker, [sampled[place] for place in some])
                new = {keys[place]: ranks for place, ranks in zip(some, found, strict=True)}
                log.add(new)
                known |= new
                advance(len(some))
    return [known[key] for key in keys]


def _reasons(counts: Mapping[str, int]) -> str:
    return "; ".join(f"{counts[name]:,}: {words}" for name, words in WITHOUT_PAIR.items() if counts.get(name))
