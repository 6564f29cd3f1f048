"""Stage `cut`: keep as much of each list as a promised recall takes."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from shortlist.config import NotInJob, refuse_idle
from shortlist.data.exclusions import find_excluded, judged_without
from shortlist.data.files import read_json, write_json
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.judgements import Judgements
from shortlist.data.manifest import identity, ms_per_query, read_manifest, stages
from shortlist.data.rules import Rule, kept, looseness, read_rule, stages_and_models
from shortlist.data.runs import RunColumns, read_run_columns, write_run
from shortlist.errors import UserError, not_given
from shortlist.evaluation.measure import judged_ranks
from shortlist.math.risk import Needs, control, mean_loss, of_first, of_recall, recalibrate
from shortlist.progress import say
from shortlist.records import Hit, Qrels


@dataclass(frozen=True, kw_only=True)
class Config:
    action: tyro.conf.Positional[Literal["calibrate", "apply"]] = "apply"
    """`calibrate` makes a rule of judged queries, and `apply`, the default, cuts a run by a rule."""
    run: Path
    """Run to calibrate on, or to cut."""
    out: NotInJob[Path]
    """File of the rule (JSON), or run file to write."""
    rule: Path | None = None
    """To apply: the rule."""
    recall: float | None = None
    """To calibrate: expected share of the relevant documents to keep, such as 0.9."""
    at_least_one: float | None = None
    """To calibrate, in place of --recall: probability to keep at least one relevant document."""
    by: Literal["rank", "ratio", "score"] = "rank"
    """To calibrate: keep as many documents for every query (`rank`), those with a share of the query's best score
    (`ratio`, for scores above 0 such as BM25's), or those with a score (`score`, for scores that mean the same for
    every query)."""
    qrels: Path | None = None
    """To calibrate: judgements of the run's queries; or name a collection."""
    collection: str | None = None
    """To calibrate: folder, `irds:` or `hf:` name, whose judgements to use; documents that it excludes for a query do
    not count."""
    split: str = "train"
    """To calibrate: split of the collection; it should not be the one to evaluate on."""
    relevance_level: int = 1
    """To calibrate: lowest grade that counts as relevant."""
    resamples: int = 200
    """To calibrate: calibrations on queries drawn again, to show how far the rule would vary."""
    ties: Literal["trec", "rank"] = "trec"
    """Order of a run's hits, as in `shortlist evaluate`."""
    json: NotInJob[bool] = False
    """Print JSON instead of sentences."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


OF_CALIBRATION = (
    *("recall", "at_least_one", "by", "qrels", "collection", "split", "relevance_level"),
    "resamples",
)


def run(config: Config) -> None:
    """Calibrate a rule or apply one."""
    ACTIONS[config.action](config)


def _calibrate(config: Config) -> None:
    if config.rule is not None:
        raise UserError("--rule is to apply; `cut calibrate` writes one to --out.")
    if (config.recall is None) == (config.at_least_one is None):
        raise UserError("expected either --recall or --at-least-one, such as --recall 0.9, and not both.")
    wanted = config.recall if config.at_least_one is None else config.at_least_one
    flag = "--recall" if config.at_least_one is None else "--at-least-one"
    if wanted is None or not 0 < wanted < 1:
        raise UserError(f"{flag} is {wanted:g}; expected a number between 0 and 1, such as 0.9.")
    if config.resamples < 20:
        raise UserError(f"--resamples is {config.resamples}; expected 20 or more.")
    judgements = Judgements(config.qrels, config.collection, config.split)
    judgements.check()
    if config.collection is None:
        refuse_idle(config, ("split",), "is for --collection, and there is none")
    excluded = find_excluded(None, config.collection, config.split)
    inputs = {"run": identity(config.run), **judgements.identity(), **excluded.inputs}
    job = start_job(config, JobSpec("cut", inputs))
    if not job.done:
        columns = excluded.left_of(config.run, ties=config.ties)
        qrels = judged_without(judgements.read(), excluded.by_query)
        needs = needs_of(columns, qrels, config.by, level=config.relevance_level, where=str(config.run))
        needs = needs if config.at_least_one is None else of_first(needs)
        rule: dict[str, Any] = {"made_by": stages_and_models(stages(config.run))}
        rule |= calibrate(needs, config.by, wanted, flag=flag, resamples=config.resamples)
        write_json(job.out, rule)
        job.finish({name: value for name, value in rule.items() if name != "made_by"})
    rule = read_json(config.out)
    print(json.dumps(rule, ensure_ascii=False) if config.json else _in_words(rule))


def needs_of(run: RunColumns, qrels: Qrels, by: str, *, level: int, where: str) -> Needs:
    """Find out what keeps each relevant document of a run.

    Args:
        by: one of `data.rules.CUT_BY`.
        level: lowest grade that counts as relevant. Queries without a relevant document are left out; those that the
            run lacks count as found nothing.
        where: name of the run, for errors.

    Raises:
        UserError: no query of the run has a relevant document.
    """
    relevant = {
        query_id: found
        for query_id, judged in qrels.items()
        if (found := {doc_id: grade for doc_id, grade in judged.items() if grade >= level})
    }
    numbers = {query_id: number for number, query_id in enumerate(run.query_ids)}
    if not relevant.keys() & numbers.keys():
        raise UserError(
            f"{where}: none of its queries (first {run.query_ids[0]!r}) has a relevant document, of grade {level} or "
            "above; expected a run of judged queries."
        )
    if missing := len(relevant.keys() - numbers.keys()):
        say(f"cut: {missing} of {len(relevant)} judged queries are not in the run: counted as found nothing.")
    num_relevant = np.array([len(found) for found in relevant.values()])
    parts = np.split(judged_ranks(run, relevant), np.cumsum(num_relevant)[:-1])
    cuts = []
    for query_id, ranks in zip(relevant, parts, strict=True):
        start, end = run.starts[numbers[query_id] :][:2] if query_id in numbers else (0, 0)
        looser = looseness(by, run.scores[start:end], where=f"{where}, query {query_id!r}")
        cuts.append(np.append(looser, np.inf)[ranks - 1])  # rank 0, not found, is the last one
    return of_recall(np.repeat(np.arange(len(relevant)), num_relevant), np.concatenate(cuts), num_relevant)


def calibrate(needs: Needs, by: str, wanted: float, *, flag: str = "--recall", resamples: int = 200) -> dict[str, Any]:
    """Make the rule that keeps least and still keeps the promise.

    Args:
        by: one of `data.rules.CUT_BY`.
        wanted: the promise, between 0 and 1.
        flag: the setting that states it, for errors.
        resamples: number of calibrations on queries drawn again.

    Returns:
        `by` and `at`, as in `data.rules.Rule`; `promise` and `wanted`; `queries`, the number calibrated on; `found`,
        what the rule keeps of them; `reachable`, the most that could be promised; and `spread`: the 5% and 95% points
        of `at` and of `found` in calibrations on queries drawn again, and how many of these could promise nothing.

    Raises:
        UserError: no cut keeps the promise.
    """
    n, done = needs.num_queries, control(needs, 1 - wanted)
    if done.cut is None:
        why = f"{n} queries" if n / (n + 1) < wanted else f"what the run finds for its {n} queries"
        raise UserError(
            f"{flag} {wanted:g}: cannot be promised from {why}; the most is {_down(1 - done.reachable)}. Ask for less, "
            "or bring more judged queries or a deeper run."
        )
    again = recalibrate(needs, 1 - wanted, resamples=resamples)
    sure = again[np.isfinite(again)]
    found = [1 - mean_loss(needs, cut) for cut in sure]
    sign = 1 if by == "rank" else -1
    return {
        "by": by,
        "at": int(done.cut) if by == "rank" else -done.cut,
        "promise": flag.removeprefix("--").replace("-", "_"),
        "wanted": wanted,
        "queries": n,
        "found": round(1 - mean_loss(needs, done.cut), 6),
        "reachable": round(1 - done.reachable, 6),
        "spread": {
            "at": sorted(float(sign * cut) for cut in np.quantile(sure, (0.05, 0.95), method="nearest")),
            "found": [round(float(value), 6) for value in np.quantile(found, (0.05, 0.95))],
            "infeasible": len(again) - len(sure),
            "calibrations": len(again),
        },
    }


def _down(share: float) -> str:
    """Write a share so that it can be asked for: rounded down."""
    return f"{max(0.0, np.floor(share * 1000) / 1000):g}"


PROMISES = {
    "recall": "of the relevant documents are kept",
    "at_least_one": "of the queries keep a relevant document",
}
KEEPS = {
    "rank": "the first {at:,} documents of each query",
    "ratio": "documents with {at:.4g} of the query's best score or more",
    "score": "documents with a score of {at:.6g} or more",
}


def _in_words(rule: dict[str, Any]) -> str:
    low, high = rule["spread"]["at"]
    worst, best = rule["spread"]["found"]
    failed = rule["spread"]["infeasible"]
    lines = [
        f"kept are {KEEPS[rule['by']].format(at=rule['at'])}; {rule['wanted']:.1%} {PROMISES[rule['promise']]}, on "
        f"average over calibrations, for queries like the {rule['queries']:,} calibrated on",
        f"on those: {rule['found']:.1%}; the most that could be promised: {rule['reachable']:.1%}",
        f"other draws of {rule['queries']:,} queries: cut at {low:.4g} to {high:.4g} (5% to 95%), which keeps "
        f"{worst:.1%} to {best:.1%}"
        + (f"; {failed} of {rule['spread']['calibrations']} could promise nothing" if failed else ""),
        "relevant documents that nobody judged are not counted: where judgements have holes, recall is lower",
    ]
    return "\n".join(lines)


def _apply(config: Config) -> None:
    refuse_idle(config, OF_CALIBRATION, "is for `shortlist cut calibrate`, and the rule says it already")
    if config.rule is None:
        raise not_given("--rule", "it says where to cut; `shortlist cut calibrate` makes one")
    rule = read_rule(config.rule)
    job = start_job(config, JobSpec("cut", {"run": identity(config.run), "rule": identity(config.rule)}))
    if not job.done:
        refuse_others(rule, config.run, where=str(config.rule))
        columns, sizes = read_run_columns(config.run, ties=config.ties), list[int]()
        start = time.perf_counter()
        write_run(job.out, cut_hits(columns, rule, sizes, where=str(config.run)), tag="shortlist")
        ms = 1000 * (time.perf_counter() - start) / max(1, len(sizes))
        cost = [*stages(config.run), {"stage": "cut", "ms": round(ms, 3)}]
        results = {"num_queries": len(sizes), "mean_kept": round(float(np.mean(sizes)), 3)}
        results |= {"median_kept": float(np.median(sizes)), "empty": sizes.count(0), "found": len(columns.scores)}
        job.finish(**results, ms_per_query=round(ms + ms_per_query(config.run), 3), stages=cost)
    results = (read_manifest(config.out) or {})["results"]
    if config.json:
        print(json.dumps({"by": rule.by, "at": rule.at, **{name: results[name] for name in REPORTED}}))
        return
    print(
        f"kept {results['mean_kept']:.1f} documents a query on average (middle {results['median_kept']:g}), of "
        f"{results['found'] / max(1, results['num_queries']):.1f}; {results['empty']} of {results['num_queries']} "
        "queries keep none"
    )


REPORTED = ("num_queries", "found", "mean_kept", "median_kept", "empty")


def refuse_others(rule: Rule, run: Path, *, where: str) -> None:
    """Refuse a run of other stages or models than the rule was calibrated on.

    Raises:
        UserError: the stages or models differ.
    """
    found = stages_and_models(stages(run))
    if rule.made_by is None or found is None:
        what = where if rule.made_by is None else str(run)
        say(f"cut: nothing says which stages and models made {what}; the promise holds only if both are of the same.")
        return
    if found != rule.made_by:
        raise UserError(
            f"{run}: was made by {_stages(found)}, and {where} was calibrated on a run of {_stages(rule.made_by)}; "
            "calibrate on a run made in the same way."
        )


def _stages(made_by: Any) -> str:
    named = (f"{each['stage']} ({str(each['model'])[:20]})" if each["model"] else each["stage"] for each in made_by)
    return ", ".join(named)


def cut_hits(run: RunColumns, rule: Rule, sizes: list[int], *, where: str) -> Iterator[tuple[str, list[Hit]]]:
    """Yield the hits of each query that a rule keeps.

    Args:
        sizes: list to which the number of hits of each query is added.
        where: name of the run, for errors.
    """
    for number, query_id in enumerate(run.query_ids):
        hits = kept(rule, run.hits(number), where=f"{where}, query {query_id!r}")
        sizes.append(len(hits))
        yield query_id, hits


ACTIONS = {"calibrate": _calibrate, "apply": _apply}
"""What the command can do."""
