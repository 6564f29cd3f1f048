"""Stage `tune`: choose a pipeline's numbers on judged queries, by quality and cost."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from jaxtyping import Float

from shortlist.config import NotInJob
from shortlist.data.answers import AnswerLog
from shortlist.data.beir import shares_ids
from shortlist.data.collections import open_collection
from shortlist.data.exclusions import NO_EXCLUSIONS, Exclusions, find_excluded
from shortlist.data.files import atomic_write, read_json, write_json
from shortlist.data.formats import read_qrels, read_queries
from shortlist.data.jobs import Job, JobSpec, start_job
from shortlist.data.manifest import identity
from shortlist.errors import UserError
from shortlist.evaluation.measure import parse_measures, per_query
from shortlist.math.exclusion import without_own
from shortlist.math.pareto import frontier
from shortlist.math.significance import randomisation_test
from shortlist.math.tuning import CostLine, best_setting, cost_line, deal_folds, held_out
from shortlist.pipeline.budget import (
    COSTS_FILE,
    StepCosts,
    best_reached,
    cheapest_reaching,
    check_budget,
    forecast_ms,
    steps_without,
)
from shortlist.pipeline.contents import known_by_contents
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.numbers import Numbers, draw_settings, parse_choices, usual_choices, with_numbers
from shortlist.pipeline.own import with_own_indexes
from shortlist.pipeline.simulation import Simulated, Simulation, reads_whole_lists
from shortlist.pipeline.spec import BUDGETS, Description, read_description, written
from shortlist.progress import progress, say
from shortlist.records import Qrels, Query

PIPELINE = "pipeline.yaml"
"""The file in --out with the chosen pipeline."""
KNOWN_FILE = "known.sqlite"
"""The file in --out with scores and texts of models, until the work is done."""
ALL_HITS = 1000
"""Hits of a query for a measure that has no cutoff."""
SHALLOW = 4
"""A pipeline is timed at its greatest depths, and at these divided by this."""


@dataclass(frozen=True, kw_only=True)
class Config:
    pipeline: Path
    """YAML file of the pipeline (docs/pipelines.md); the depths in it are the greatest that are tried unless --vary
    names greater ones."""
    out: NotInJob[Path]
    """Folder for pipeline.yaml, the chosen pipeline, and costs.json, the front and the cost of each step."""
    collection: str | None = None
    """Collection with the queries and documents: folder, `irds:` or `hf:` name (None: the file's)."""
    split: str = "train"
    """Split with the judged queries; it should not be the one to evaluate on."""
    qrels: Path | None = None
    """Judgements of these queries, such as those made of feedback (None: the split's)."""
    queries: Path | None = None
    """With --qrels: file of the judged queries, such as those that feedback is about (None: the split's)."""
    measure: str = "nDCG@10"
    """Measure of quality, as in `shortlist evaluate`."""
    relevance_level: int = 1
    """Lowest grade that counts as relevant, for measures that know no grades."""
    k: int | None = None
    """Documents wanted per query (None: as many as the measure reads)."""
    vary: tuple[str, ...] = ()
    """Numbers to try, as STEP.FIELD=VALUES: pairs.depth=10,20,50 or both.weights=0.3:0.7,0.5:0.5 (without any: the
    weights of fusions, the depths and shares of rerankers)."""
    settings: int = 200
    """Most settings to try, drawn at random where there are more combinations."""
    most_queries: int = 500
    """Most judged queries to try them on, drawn at random."""
    folds: int = 5
    """Parts of the queries: quality is told of each part, with what the others choose."""
    timed_queries: int = 20
    """Queries to time, one after another."""
    errors: float = 1.0
    """Choose the cheapest setting whose quality lies at most so many standard errors below the best (0: the best)."""
    budget_ms: float | None = None
    """Choose the best pipeline that is forecast to take no more milliseconds per query (None: the best of all)."""
    target_quality: float | None = None
    """Choose the cheapest pipeline of the front whose quality, on queries that had no part in the choice, is at least
    this, in place of --errors and --budget-ms."""
    exclude_self: bool | None = None
    """Leave out the document with the query's id (None: only where queries are also documents)."""
    seed: int = 0
    """Seed of all draws."""
    json: NotInJob[bool] = False
    """Print JSON instead of a table."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


class JudgedQueries(NamedTuple):
    """Judged queries, and how their hits are measured."""

    queries: Sequence[Query]
    qrels: Qrels
    measure: str
    k: int
    relevance_level: int = 1
    exclude_self: bool = False
    exclude: Exclusions = NO_EXCLUSIONS

    def values(self, simulation: Simulation, numbers: Numbers) -> tuple[Float[np.ndarray, " queries"], Simulated]:
        """Measure each query with these numbers, and return what was found and read."""
        deeper = self.k + 1 if self.exclude_self else self.k
        found = simulation.run(self.queries, deeper, numbers, exclude=self.exclude)
        run = without_own(found.run, self.k) if self.exclude_self else found.run
        hits = {query_id: hits[: self.k] for query_id, hits in run.items()}
        by_query = per_query(
            hits, self.qrels, self.measure, relevance_level=self.relevance_level, complete=True
        )[self.measure]  # fmt: skip
        return np.array([by_query[query.query_id] for query in self.queries]), found


class Tried(NamedTuple):
    """All settings, with their quality and cost."""

    settings: Sequence[Numbers]
    values: Float[np.ndarray, "settings queries"]
    pairs: Sequence[Mapping[str, float]]
    """Pairs per query that each reranker reads, by setting."""
    ms: Float[np.ndarray, " settings"]
    """Forecast milliseconds per query."""


def try_settings(simulation: Simulation, judged: JudgedQueries, settings: Sequence[Numbers], costs: StepCosts) -> Tried:
    """Measure the pipeline with each of these numbers."""
    values, pairs, ms = [], [], []
    with progress("trying", len(settings), "settings") as advance:
        judged.values(simulation, greatest(settings))  # searches and scores as much as it can at once
        for numbers in settings:
            found, read = judged.values(simulation, numbers)
            values.append(found)
            pairs.append({name: number / len(judged.queries) for name, number in read.pairs.items()})
            ms.append(forecast_of(costs, read, judged))
            advance()
    return Tried(settings, np.array(values), pairs, np.array(ms))


def forecast_of(costs: StepCosts, found: Simulated, judged: JudgedQueries) -> float:
    """Forecast the milliseconds of a query from what all of them have read."""
    return forecast_ms(costs, {name: number / len(judged.queries) for name, number in found.read.items()}, judged.k)


def greatest(settings: Sequence[Numbers]) -> Numbers:
    """Return the first numbers with the greatest depth of each step."""
    depths: dict[str, int] = {}
    for numbers in settings:
        for name, value in numbers.items():
            if name.endswith(".depth"):
                depths[name] = max(depths.get(name, 0), value)
    return depths


def time_steps(simulation: Simulation, queries: Sequence[Query], k: int, numbers: Numbers) -> dict[str, Any]:
    """Time each step of the real pipeline, one query after another, at two depths.

    Returns:
        `steps`: fixed milliseconds of each step, and those for each document that it reads; `measured`: the middle and
        the 95% point of the milliseconds per query at the greatest depths.
    """
    readers = simulation.readers
    depths = {f"{part.name}.depth": part.depth or 100 for part in simulation.description.steps if part.name in readers}
    deep = {name: max(1, value) for name, value in (depths | dict(numbers)).items()}
    shallow = {name: max(1, value // SHALLOW) if name in depths else value for name, value in deep.items()}
    counts: dict[str, list[list[float]]] = {}
    times: dict[str, list[list[float]]] = {}
    whole: list[float] = []
    pipelines = [simulation.real(depths) for depths in (deep, shallow)]
    for pipeline in pipelines:
        pipeline.trace(queries[:1], k)  # compiling and loading on first use is not part of a query's time
    if simulation.asks:  # what was asked once is answered at once: each query is timed at one depth
        queries = queries[1:] or queries
    with progress("timing", len(queries), "queries") as advance:
        for place, query in enumerate(queries):
            for level in (place % 2,) if simulation.asks else (0, 1):
                pipeline = pipelines[level]
                trace = pipeline.trace([query], k)
                counted = simulation.num_read(trace, pipeline.steps)
                read = {name: by_query.get(query.query_id, 0) for name, by_query in counted.items()}
                read["documents"] = max(k, *read.values()) if read else k
                for name, ms in trace.milliseconds.items():
                    times.setdefault(name, [[], []])[level].append(ms)
                    counts.setdefault(name, [[], []])[level].append(float(read.get(name, 0)))
                if level == 0:
                    whole.append(sum(trace.milliseconds.values()))
            advance()
    lines = {name: _line(counts[name], times[name]) for name in times}
    return {
        "steps": {
            name: {"fixed_ms": line.fixed} | ({"ms_per_document": line.each} if any(map(any, counts[name])) else {})
            for name, line in lines.items()
        },
        "measured": {"middle_ms": float(np.median(whole)), "p95_ms": float(np.quantile(whole, 0.95))},
    }


def _line(counts: Sequence[Sequence[float]], times: Sequence[Sequence[float]]) -> CostLine:
    """Fit a line through the middles of both depths, which outliers do not move."""
    return cost_line(
        np.array([np.median(some) for some in counts if some], dtype=float),
        np.array([np.median(some) for some in times if some], dtype=float),
    )


def report(
    tried: Tried,
    *,
    folds: int,
    measure: str = "quality",
    budget_ms: float | None = None,
    target_quality: float | None = None,
    errors: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Choose a setting, and say what each budget is worth.

    Args:
        budget_ms: the most that what is chosen may cost (None: as much as it likes).
        target_quality: choose the first point of the front whose `held_out` is at least this, in place of the best
            (None: the best).
        errors: as for `best_setting`.

    Returns:
        `chosen`: the best numbers, what they cost and are worth, and the comparison with the pipeline as it was, over
        queries that had no part in the choice; `plain`: the pipeline as it was; `front`: the settings that none
        beats in both quality and cost, the cheapest first, each with `value`, its quality on all queries, and
        `held_out`, that of choosing the best within its cost.

    Raises:
        UserError: no setting is within the budget, or none reaches the target.
    """
    parts = deal_folds(tried.values.shape[1], folds, seed=seed)
    within = partial(held_out, tried.values, tried.ms, parts)
    places = on_front(tried)
    helds = [within(allowed=tried.ms <= tried.ms[place]) for place in places]
    front = [_point(tried, place, held) for place, held in zip(places, helds, strict=True)]
    if target_quality is not None:
        reached = cheapest_reaching([point["held_out"] for point in front], target_quality)
        if reached is None:
            said = best_reached({"front": front, "measure": measure})
            raise UserError(f"--target-quality {target_quality:g}: no setting is so good; {said}.")
        best, held = places[reached], helds[reached]
    else:
        allowed = tried.ms <= (np.inf if budget_ms is None else budget_ms)
        if not allowed.any():
            raise UserError(
                f"--budget-ms {budget_ms:g}: no setting takes so little; the least that is reachable is "
                f"{_up(float(tried.ms.min()))} ms."
            )
        best = best_setting(tried.values, tried.ms, allowed=allowed, errors=errors)
        held = within(allowed=allowed, errors=errors)
    return {"chosen": _compared(tried, best, held), "plain": _point(tried, 0, tried.values[0]), "front": front}


def _compared(tried: Tried, place: int, held: Float[np.ndarray, " queries"]) -> dict[str, Any]:
    """Describe what is chosen, and compare it with the pipeline as it was."""
    gains = held - tried.values[0]
    return _point(tried, place, held) | {
        "difference": float(gains.mean()),
        "p": randomisation_test(gains),
        "better": int((gains > 1e-9).sum()),
        "worse": int((gains < -1e-9).sum()),
    }


def depth_losses(
    simulation: Simulation, judged: JudgedQueries, costs: StepCosts, tried: Tried, chosen: Numbers
) -> dict[str, list[dict[str, Any]]]:
    """Measure what each varied depth loses, with all other numbers as chosen.

    A step that the choice leaves out has its other numbers from the best setting with that step.

    Returns:
        By number, such as `pairs.depth`: its values, the described one too, each with its cost, its quality on all
        queries, and what it loses to the best of them.
    """
    found = {}
    own = {f"{part.name}.depth": part.depth for part in simulation.description.steps}
    for name in dict.fromkeys(name for numbers in tried.settings for name in numbers if name.endswith(".depth")):
        step = name.removesuffix("depth")
        values = sorted({numbers.get(name, own.get(name)) for numbers in tried.settings} - {None})
        base = chosen if chosen.get(name) != 0 else {**chosen, **_own_numbers(tried, step)}
        points = []
        for depth in values:
            numbers = {key: value for key, value in base.items() if depth or not key.startswith(step)} | {name: depth}
            measured, read = judged.values(simulation, numbers)
            points.append({"depth": depth, "ms": forecast_of(costs, read, judged), "value": float(measured.mean())})
        best = max(point["value"] for point in points)
        found[name] = [point | {"ms": round(point["ms"], 4), "lost": best - point["value"]} for point in points]
    return found


def _own_numbers(tried: Tried, step: str) -> Numbers:
    """Return a step's numbers in the best setting that has it.

    Args:
        step: its name with a dot.
    """
    means = tried.values.mean(axis=1)
    places = [place for place, numbers in enumerate(tried.settings) if numbers.get(f"{step}depth")]
    best = max(places, key=lambda place: means[place], default=0)
    return {key: value for key, value in tried.settings[best].items() if key.startswith(step)}


def on_front(tried: Tried) -> list[int]:
    """Return the settings that none beats, the cheapest first; of equal ones the first."""
    means = tried.values.mean(axis=1)
    places = np.flatnonzero(frontier(tried.ms, means))
    by_cost = {(float(tried.ms[place]), float(means[place])): int(place) for place in places[::-1]}
    return [by_cost[both] for both in sorted(by_cost)]


def _point(tried: Tried, place: int, held: Float[np.ndarray, " queries"]) -> dict[str, Any]:
    return {
        "numbers": {name: _plain(value) for name, value in tried.settings[place].items()},
        "ms": round(float(tried.ms[place]), 4),
        "pairs": round(sum(tried.pairs[place].values()), 3),
        "value": float(tried.values[place].mean()),
        "held_out": float(held.mean()),
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _up(ms: float) -> str:
    """Write milliseconds so that they can be asked for: rounded up."""
    return f"{np.ceil(ms * 100) / 100:g}"


def run(config: Config) -> None:
    """Try the settings, and write the chosen pipeline and the costs."""
    k = _checked_k(config)
    description = read_description(config.pipeline, collection=config.collection)
    if (name := description.collection) is None:
        raise UserError("--collection is missing: it says where the queries and documents are.")
    if any(getattr(description, name) is not None for name in BUDGETS):
        raise UserError(f"{config.pipeline}: has a budget; leave out {', '.join(BUDGETS)}, which `tune` finds out.")
    opener = Opener()
    judged = _judged(config, name, k)
    settings = _settings(config, description, opener)
    inputs: dict[str, Any] = {
        "pipeline": _digest(known_by_contents(with_own_indexes(description), opener)),
        "collection": _digest((judged.queries, judged.qrels, judged.exclude)),
    }
    files = {"qrels": config.qrels, "queries": config.queries}
    inputs |= {flag: identity(path) for flag, path in files.items() if path is not None}
    spec = JobSpec("tune", inputs, folder=True, parts=KNOWN_FILE, writes=[f"{KNOWN_FILE}*"])
    job = start_job(config, spec)
    if not job.done:
        start = time.perf_counter()
        log = AnswerLog(job.out / KNOWN_FILE)
        costs = _tune(config, job, Simulation(description, opener, log=log), judged, settings)
        log.close()
        with job.result() as folder:
            write_json(folder / COSTS_FILE, costs)
            with atomic_write(folder / PIPELINE) as file:
                best = with_numbers(description, costs["chosen"]["numbers"])
                yaml.safe_dump(written(best), file, sort_keys=False)
        seconds = round(time.perf_counter() - start, 3)
        counts = {name: costs[name] for name in ("queries", "settings", "pairs_scored", "pairs_asked", "chosen")}
        for path in job.out.glob(f"{KNOWN_FILE}*"):
            path.unlink()
        job.finish(counts, seconds=seconds)
    costs = read_json(job.out / COSTS_FILE)
    print(json.dumps(costs) if config.json else _front_in_words(costs))


def _checked_k(config: Config) -> int:
    """Refuse settings that do not go together, and return the number of hits to measure."""
    for flag, least in {"settings": 2, "most_queries": 2, "folds": 2, "timed_queries": 1}.items():
        if getattr(config, flag) < least:
            raise UserError(f"--{flag.replace('_', '-')} is {getattr(config, flag)}; expected {least} or more.")
    if config.errors < 0:
        raise UserError(f"--errors is {config.errors:g}; expected 0 or more.")
    if config.k is not None and config.k < 1:
        raise UserError(f"--k is {config.k}; expected at least 1.")
    if config.queries is not None and config.qrels is None:
        raise UserError("--queries without --qrels: the judgements of these queries are missing.")
    for flag, held in {"queries": "queries", "qrels": "judgements"}.items():
        path = getattr(config, flag)
        if path is not None and not path.is_file():
            raise UserError(f"--{flag} {path}: no such file; expected {held}.")
    check_budget(config.budget_ms, config.target_quality)
    if (config.target_quality or 0) > 1 and not config.measure.startswith("Num"):
        raise UserError(f"--target-quality is {config.target_quality:g}; {config.measure} is never above 1.")
    if config.target_quality is not None and config.errors != Config.errors:
        raise UserError(
            "--errors with --target-quality: the target itself says what is good enough; leave out --errors."
        )
    measure = parse_measures([config.measure])[config.measure]
    cutoff = measure.params.get("cutoff")
    if config.k is not None and isinstance(cutoff, int) and config.k < cutoff:
        raise UserError(f"--measure {config.measure} reads {cutoff} documents, and --k is {config.k}; raise --k.")
    return config.k or (cutoff if isinstance(cutoff, int) else ALL_HITS)


def _judged(config: Config, name: str, k: int) -> JudgedQueries:
    """Read the judged queries, and draw some if there are too many."""
    collection = open_collection(name)
    qrels = collection.qrels(config.split) if config.qrels is None else read_qrels(config.qrels)
    asked = collection.queries(config.split) if config.queries is None else read_queries(config.queries)
    queries = [query for query in asked if qrels.get(query.query_id)]
    if len(queries) < config.folds:
        where = config.qrels or f"{name} ({config.split})"
        of = f"of split {config.split!r}" if config.queries is None else f"in {config.queries}"
        raise UserError(f"{where}: judges {len(queries)} queries {of}; expected at least --folds {config.folds}.")
    drawn = np.random.default_rng(config.seed).permutation(len(queries))[: config.most_queries]
    queries = [queries[place] for place in sorted(drawn.tolist())]
    return JudgedQueries(
        queries,
        {query.query_id: qrels[query.query_id] for query in queries},
        config.measure,
        k,
        config.relevance_level,
        shares_ids(name) if config.exclude_self is None else config.exclude_self,
        find_excluded(None, name, config.split).by_query,
    )


def _settings(config: Config, description: Description, opener: Opener) -> list[Numbers]:
    """List the settings to try."""
    listwise = [part.name for part in description.steps if part.kind == "rank" and reads_whole_lists(part, opener)]
    choices = parse_choices(config.vary)
    if not choices:
        choices = usual_choices(description, partial(reads_whole_lists, opener=opener))
    if not choices:
        raise UserError(
            f"{config.pipeline}: has no free number, such as the weights of a fusion or the depth of a reranker; add a "
            "step, or name numbers with --vary."
        )
    for name, values in choices.items():
        for value in values:
            with_numbers(description, {name: value}, where="--vary" if config.vary else str(config.pipeline))
    for name in listwise:
        say(
            f"tune: {name} reads whole lists, so that its scores of another list are not known: each other list is "
            "read anew" + ("." if config.vary else ", and only shares from there on vary.")
        )
    return draw_settings(description, choices, most=config.settings, seed=config.seed)


def _tune(
    config: Config, job: Job, simulation: Simulation, judged: JudgedQueries, settings: Sequence[Numbers]
) -> dict[str, Any]:
    """Time the steps, try the settings, and choose."""
    places = np.linspace(0, len(judged.queries) - 1, min(config.timed_queries, len(judged.queries))).astype(int)
    some = [judged.queries[place] for place in places]
    timed = job.decide("timed", lambda: time_steps(simulation, some, judged.k, greatest(settings)))
    tried = try_settings(simulation, judged, settings, timed["steps"])
    told = report(
        tried,
        folds=config.folds,
        measure=config.measure,
        budget_ms=config.budget_ms,
        target_quality=config.target_quality,
        errors=config.errors,
        seed=config.seed,
    )
    asked = round(sum(sum(read.values()) for read in tried.pairs) * len(judged.queries))
    varied = list(dict.fromkeys(name for numbers in settings for name in numbers))
    return {
        "measure": config.measure,
        "k": judged.k,
        "queries": len(judged.queries),
        "folds": min(config.folds, len(judged.queries)),
        "settings": len(settings),
        "pairs_scored": simulation.num_scored,
        "pairs_asked": asked,
        **timed,
        "varied": varied,
        "of": steps_without(simulation.description, varied),
        **told,
        "depths": depth_losses(simulation, judged, timed["steps"], tried, told["chosen"]["numbers"]),
    }


def _front_in_words(costs: Mapping[str, Any]) -> str:
    """Write the front as a table, and what the chosen pipeline is worth."""
    measure, chosen, plain = costs["measure"], costs["chosen"], costs["plain"]
    lines = [
        f"{costs['settings']:,} settings over {costs['queries']:,} queries: {costs['pairs_scored']:,} pairs scored, "
        f"{costs['pairs_asked']:,} asked for",
        f"{'ms':>9} {'pairs':>7} {measure:>9} {'chosen on':>9}  numbers",
    ]
    rows = [("", point) for point in costs["front"]] + [("plain: ", plain)]
    for label, point in rows:
        numbers = _in_words(point["numbers"]) or "as described"
        lines.append(
            f"{point['ms']:9.2f} {point['pairs']:7.1f} {point['held_out']:9.4f} {point['value']:9.4f}  {label}{numbers}"
        )
    losses = [
        f"{point['ms']:9.2f} {point['value']:9.4f} {point['lost']:9.4f}  {name}={point['depth']}"
        for name, points in costs["depths"].items()
        for point in points
    ]
    if losses:
        losses = [
            "what each depth loses, the other numbers as chosen, on all queries:",
            f"{'ms':>9} {measure:>9} {'lost':>9}  depth",
            *losses,
        ]
    chance = "" if chosen["p"] is None else f", p = {chosen['p']:.3g}"
    lines += [
        f"the column {measure} is of queries that had no part in the choice ({costs['folds']} folds); `chosen on` is "
        "of those that had",
        *losses,
        f"chosen: {_in_words(chosen['numbers']) or 'as described'}, {chosen['ms']:.2f} ms",
        f"{measure} {chosen['held_out']:.4f}, {chosen['difference']:+.4f} over the pipeline as described{chance}; "
        f"{chosen['better']:,} queries are better, {chosen['worse']:,} worse",
    ]
    return "\n".join(lines)


def _in_words(numbers: Numbers) -> str:
    return " ".join(f"{name}={_written(value)}" for name, value in numbers.items())


def _written(value: Any) -> str:
    return ":".join(f"{part:g}" for part in value) if isinstance(value, list | tuple) else f"{value:g}"


def _digest(value: Any) -> str:
    return f"sha256:{sha256(repr(value).encode()).hexdigest()}"
