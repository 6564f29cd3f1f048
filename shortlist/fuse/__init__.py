"""Stage `fuse`: make one run out of several."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shortlist.config import NotInJob, refuse_idle
from shortlist.data.collections import open_collection
from shortlist.data.exclusions import (
    Excluded,
    Exclusions,
    columns_without,
    find_excluded,
    judged_without,
    without_excluded,
)
from shortlist.data.files import read_json, write_json
from shortlist.data.fusers import Fuser, column_names, open_fuser, read_fuser
from shortlist.data.headers import header_of
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.manifest import identity, ms_per_query, stages
from shortlist.data.rules import stages_and_models
from shortlist.data.runs import StoredRun, open_run, read_run, write_run
from shortlist.errors import UserError, unknown
from shortlist.evaluation.measure import parse_measures, per_query
from shortlist.fuse.learning import LEARNERS, check_learner, importance, make_examples, mean_of, rehearse
from shortlist.math.fusion import FUSIONS, reorder, weight_grid
from shortlist.progress import say
from shortlist.records import Hit, Qrels, Run

LEARNED = "learned"
WEIGHT_STEPS = 20
"""Number of steps from 0 to 1 in the grid of weights to try."""


@dataclass(frozen=True, kw_only=True)
class Config:
    runs: tuple[Path, ...]
    """TREC run files, two or more."""
    out: NotInJob[Path]
    """Run file to write."""
    method: str = "rrf"
    """Fusion method: `rrf` adds up ranks, `weighted` adds up scores scaled to [0, 1], `zscore` adds up scores scaled to
    mean 0 and deviation 1, `merge` takes scores that are on one scale as they are, and `learned` learns from the judged
    queries of --dev-runs."""
    learner: Literal["logistic", "trees"] = "logistic"
    """To learn: a weighted sum (`logistic`), or small decision trees (`trees`, with LightGBM)."""
    fuser: Path | None = None
    """With --method learned, in place of --dev-runs: what an earlier command learned, its --out with `.fuser.json`."""
    weights: tuple[float, ...] | None = None
    """Weight of each run, one number per run (None: 1 for all)."""
    dev_runs: tuple[Path, ...] = ()
    """Runs of the same searchers, in the same order, for queries of --split, to choose the weights by, or to learn
    from. All weights that add up to 1 in steps of a twentieth are tried, and the best ones by --measure are used."""
    collection: str | None = None
    """With --dev-runs: collection with their judgements, as a BEIR or MS MARCO folder, `irds:` or `hf:` name."""
    split: str = "dev"
    """With --dev-runs: split with the judgements; it should not be the one to evaluate on."""
    measure: str = "MRR@10"
    """With --dev-runs: measure to choose the weights by, or to report on what was learned, named as in `shortlist
    evaluate`."""
    depth: int | None = None
    """Fuse only the first --depth documents of each run; the first run's other documents follow in their order. So a
    reranked run and its first-stage run are mixed only where the reranker has read."""
    exclude: Path | None = None
    """Documents that a query may not find, which are left out before fusing: lines `query document`, or JSON lines with
    `id` and `excluded_ids` as in BRIGHT (None: with --dev-runs, what the collection says for --split)."""
    k: int = 1000
    """Documents to keep per query."""
    ties: Literal["trec", "rank"] = "trec"
    """Order of a run's hits: by score and id as in trec_eval, or by the run's rank column."""
    header: bool = False
    """Write what the run was made from before its first line, as comments in the form of ir_metadata."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def fuse_first(
    fuse: Callable[..., Run], runs: Sequence[Run], *, depth: int | None, weights: Sequence[float] | None = None
) -> Run:
    """Fuse the first `depth` documents of each run.

    The other documents of the first run follow, with lower scores that are 1 apart.
    """
    if depth is None:
        return fuse(runs, weights=weights)
    fused = fuse([{query_id: hits[:depth] for query_id, hits in run.items()} for run in runs], weights=weights)
    return {query_id: _with_rest(hits, runs[0].get(query_id, [])) for query_id, hits in fused.items()}


def _with_rest(hits: list[Hit], others: list[Hit]) -> list[Hit]:
    found = {hit.doc_id for hit in hits}
    rest = [hit for hit in others if hit.doc_id not in found]
    return reorder([*hits, *rest], [*(hit.score for hit in hits), *[float("nan")] * len(rest)])


def one_by_one(
    fuse: Callable[..., Run], runs: Sequence[Run], *, weights: Sequence[float] | None, seconds: list[float]
) -> Iterator[tuple[str, list[Hit]]]:
    """Fuse one query after another.

    The hits of many queries would not fit into memory together.

    Args:
        seconds: list to which the time of each query is added.
    """
    for query_id in dict.fromkeys(query_id for run in runs for query_id in run):
        query_runs = [{query_id: run[query_id]} if query_id in run else {} for run in runs]
        start = time.perf_counter()
        hits = fuse(query_runs, weights=weights)[query_id]
        seconds.append(time.perf_counter() - start)
        yield query_id, hits


def choose_weights(
    runs: Sequence[Run], qrels: Qrels, fuse: Callable[..., Run], measure: str
) -> tuple[tuple[float, ...], float]:
    """Choose the weights whose fused run is best.

    All weights that add up to 1 in steps of a twentieth are tried.

    Args:
        runs: runs of judged queries.
        fuse: a function in math.fusion.FUSIONS.
        measure: name of the measure, averaged over the queries that are judged and found.

    Returns:
        The weights, and the value of the measure. Among equally good weights, those nearest to their middle are chosen.
    """
    means = {}
    for weights in weight_grid(len(runs), WEIGHT_STEPS):
        values = per_query(fuse(runs, weights=weights), qrels, [measure])[measure].values()
        means[weights] = sum(values) / max(1, len(values))
    best = max(means.values())
    good = np.array([weights for weights, mean in means.items() if mean == best])
    middle = good[np.abs(good - good.mean(0)).sum(1).argmin()]
    return tuple(middle.tolist()), best


def run(config: Config) -> None:
    """Fuse the runs and write the result."""
    _check(config)
    excluded = find_excluded(config.exclude, config.collection, config.split)
    qrels = _dev_qrels(config) if config.dev_runs else {}
    job = start_job(config, _spec(config, qrels, excluded))
    if job.done:
        if config.method == LEARNED and config.dev_runs:
            print(in_words(_read_again(fuser_path(job.out))))
        return
    qrels = judged_without(qrels, excluded.by_query)
    fuse, weights, chosen = _chosen(config, qrels, excluded.by_query)
    runs, told = _left(config, excluded)
    seconds: list[float] = []
    fused = one_by_one(fuse, runs, weights=weights, seconds=seconds)
    made_by = list(chain.from_iterable(map(stages, config.runs)))
    header = header_of(job.manifest, tag=config.method, made_by=made_by) if config.header else None
    write_run(job.out, ((query_id, hits[: config.k]) for query_id, hits in fused), tag=config.method, header=header)
    fuse_ms = 1000 * sum(seconds) / max(1, len(seconds))
    cost: dict[str, Any] = {"ms_per_query": round(fuse_ms + sum(map(ms_per_query, config.runs)), 3)}
    cost["stages"] = [*made_by, {"stage": "fuse", "ms": round(fuse_ms, 3)}]
    num_queries, in_all = len(seconds), len(set.intersection(*map(set, runs)))
    if config.method == LEARNED and (known := sum(query_id in qrels for query_id in set().union(*runs))):
        say(f"fuse: {known} of {num_queries} queries are among the judged ones it learned from: measure on others.")
    if in_all < num_queries:
        say(f"fuse: {num_queries - in_all} of {num_queries} queries are missing from at least one run.")
    job.finish(num_queries=num_queries, in_all_runs=in_all, **chosen, **told, **cost)


def _check(config: Config) -> None:
    if config.method not in {*FUSIONS, LEARNED}:
        raise UserError(f"--method: {unknown('fusion', config.method, [*FUSIONS, LEARNED])}")
    if len(config.runs) < 2:
        raise UserError(f"--runs names {len(config.runs)} file; expected two or more to fuse.")
    if config.weights is not None and len(config.weights) != len(config.runs):
        raise UserError(
            f"--weights has {len(config.weights)} numbers for {len(config.runs)} runs; expected one per run."
        )
    if config.dev_runs and (len(config.dev_runs) != len(config.runs) or config.weights is not None):
        raise UserError(
            f"--dev-runs names {len(config.dev_runs)} files for {len(config.runs)} runs; expected one per run, in the "
            "same order, and no --weights, which they choose."
        )
    if not config.dev_runs:
        refuse_idle(config, ("collection", "split", "measure"), "is for --dev-runs, and there are none")
    _check_learning(config)
    if config.dev_runs:
        check_learner(config.learner)
    for name, value in (("k", config.k), ("depth", 1 if config.depth is None else config.depth)):
        if value < 1:
            raise UserError(f"--{name} is {value}; expected 1 or more documents per query.")


def _spec(config: Config, qrels: Qrels, excluded: Excluded) -> JobSpec:
    inputs = {"runs": [identity(path) for path in config.runs]}
    if config.dev_runs:
        inputs["dev_runs"] = [*(identity(path) for path in config.dev_runs), sha256(repr(qrels).encode()).hexdigest()]
    if excluded.source:
        inputs["exclude"] = [excluded.identity]
    if config.fuser is not None:
        inputs["fuser"] = [identity(config.fuser)]
    return JobSpec("fuse", inputs)


def _chosen(
    config: Config, qrels: Qrels, exclude: Exclusions
) -> tuple[Callable[..., Run], Sequence[float] | None, dict[str, Any]]:
    """Learn a fusion or choose its weights, where that is wanted.

    Returns:
        The fusion, the weights, and what to tell of a choice.
    """
    if config.method == LEARNED:
        fuser = read_fuser(config.fuser) if config.fuser else _learn(config, qrels, exclude)
        _refuse_others(fuser, config)
        return partial(fuse_first, lambda runs, weights: fuser(runs), depth=config.depth), None, {}
    fuse = partial(fuse_first, FUSIONS[config.method], depth=config.depth)
    if not config.dev_runs:
        return fuse, config.weights, {}
    weights, value = choose_weights(_judged_runs(config, qrels, exclude), qrels, fuse, config.measure)
    say(f"fuse: weights {', '.join(f'{w:g}' for w in weights)}, with {config.measure} {value:.4f} on the dev runs.")
    return fuse, weights, {"weights": weights, "dev_value": round(value, 6)}


def _left(config: Config, excluded: Excluded) -> tuple[list[StoredRun], dict[str, int]]:
    """Read the runs without excluded documents, and count these if there is a list."""
    runs = [open_run(path, ties=config.ties) for path in config.runs]
    if not excluded.source:
        return runs, {}
    pairs = [columns_without(run.columns, excluded.by_query) for run in runs]
    num_excluded = sum(count for _, count in pairs)
    say(f"fuse: left out {num_excluded:,} hits that {excluded.source} excludes for their queries.")
    return [StoredRun(columns) for columns, _ in pairs], {"excluded": num_excluded}


def _without(run: Run, exclude: Exclusions) -> Run:
    return {query_id: without_excluded(hits, exclude.get(query_id, frozenset())) for query_id, hits in run.items()}


def _dev_qrels(config: Config) -> Qrels:
    if config.collection is None:
        raise UserError("--dev-runs without --collection: name what has the judgements of their queries.")
    parse_measures([config.measure])
    return open_collection(config.collection).qrels(config.split)


def _judged_runs(config: Config, qrels: Qrels, exclude: Exclusions) -> list[Run]:
    dev_runs = [_without(read_run(path, ties=config.ties), exclude) for path in config.dev_runs]
    if not any(qrels.keys() & run.keys() for run in dev_runs):
        raise UserError(f"--dev-runs: none of their queries is judged in {config.collection}, split {config.split!r}.")
    return dev_runs


def _check_learning(config: Config) -> None:
    """Refuse settings that do not go together with what is learned."""
    if config.method != LEARNED:
        if config.fuser is not None or config.learner != "logistic":
            flag = "--learner" if config.fuser is None else "--fuser"
            raise UserError(f"{flag} is for --method learned, and the method is {config.method}.")
        return
    if config.weights is not None:
        raise UserError("--weights is for other methods; --method learned learns what each run is worth.")
    if bool(config.dev_runs) == (config.fuser is not None):
        raise UserError(
            "--method learned takes either --dev-runs with --collection, to learn from, or --fuser, learned before."
        )
    if config.fuser is not None and config.learner != "logistic":
        raise UserError("--learner is for --dev-runs; the --fuser has been learned already.")


def fuser_path(out: Path) -> Path:
    """Return where `fuse` writes what it learned for a run."""
    return out.with_name(f"{out.name}.fuser.json")


def _read_again(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file, and its run is there; delete the run to learn again.")
    return read_json(path)


def _learn(config: Config, qrels: Qrels, exclude: Exclusions) -> Fuser:
    """Learn from the dev runs, write the fusion beside the run, and print its worth."""
    runs = _judged_runs(config, qrels, exclude)
    runs = [{name: hits[: config.depth] for name, hits in run.items()} for run in runs]
    content = learn(runs, qrels, config.learner, config.measure)
    content["runs"] = [
        {"run": path.name, "made_by": stages_and_models(stages(path)), "importance": lost}
        for path, lost in zip(config.dev_runs, content.pop("importance"), strict=True)
    ]
    write_json(fuser_path(config.out), content)
    measured = content["measured"]
    if measured["learned"] < (plain := max(measured["rrf"], measured["zscore"])):
        say(
            f"fuse: without learning, {config.measure} is {plain:.4f} and so higher for queries not seen: bring more "
            "judged queries, or take --method zscore or rrf."
        )
    print(in_words(content))
    return open_fuser(content, where=str(fuser_path(config.out)))


def learn(runs: Sequence[Run], qrels: Qrels, learner: str, measure: str) -> dict[str, Any]:
    """Learn a fusion, and measure what it is worth on queries not seen.

    Returns:
        `learner`, `features` and `parameters`; `measured`, with the measure over folds that were left out, and that of
        the best run, of `rrf` and of `zscore` for the same queries; `importance` of each run, and
        `feature_importance` of each feature, as in `learning.importance`.
    """
    features = LEARNERS[learner].features
    examples = make_examples(runs, qrels, features)
    rehearsal = rehearse(examples, learner)
    judged = [{name: run[name] for name in (example.query_id for example in examples) if name in run} for run in runs]
    measured: dict[str, Any] = {"measure": measure, "queries": len(examples)}
    measured["learned"] = mean_of(rehearsal.run(), qrels, measure)
    measured["best run"] = max(mean_of(run, qrels, measure) for run in judged if run)
    measured |= {name: mean_of(FUSIONS[name](judged), qrels, measure) for name in ("rrf", "zscore")}
    width, names = len(features), column_names(len(runs), features)
    whole_runs = [range(place * width, (place + 1) * width) for place in range(len(runs))]
    lost = importance(rehearsal, qrels, measure, [*whole_runs, *([place] for place in range(len(names)))])
    of_runs = [next(lost) for _ in runs]
    return {
        "learner": learner,
        "features": list(features),
        "measured": measured,
        "importance": of_runs,
        "feature_importance": dict(zip(names, lost, strict=True)),
        "parameters": LEARNERS[learner].fit(examples),
    }


def in_words(content: Mapping[str, Any]) -> str:
    """Say what a learned fusion is worth, and how much each run and feature adds."""
    measured, measure = content["measured"], content["measured"]["measure"]
    others = ", ".join(f"{name} {measured[name]:.4f}" for name in ("best run", "rrf", "zscore"))
    lines = [
        f"{measure} {measured['learned']:.4f} over {measured['queries']:,} queries, each fused by what others taught "
        f"({others})",
        "what is lost of it where a run says nothing: "
        + ", ".join(f"{run['importance']:.4f} {run['run']}" for run in content["runs"]),
    ]
    single = sorted(content["feature_importance"].items(), key=lambda item: -item[1])[:5]
    return "\n".join([*lines, "features that count most: " + ", ".join(f"{lost:.4f} {name}" for name, lost in single)])


def _refuse_others(fuser: Fuser, config: Config) -> None:
    """Refuse other runs than a fusion was learned from."""
    if len(config.runs) != fuser.num_runs:
        raise UserError(f"--runs names {len(config.runs)} files; --fuser was learned from {fuser.num_runs} runs.")
    for number, (path, before) in enumerate(zip(config.runs, fuser.made_by, strict=True), start=1):
        found = stages_and_models(stages(path))
        if found and before and found != before:
            raise UserError(
                f"{path}: was not made as run {number} that the fusion was learned from; expected runs of the same "
                "searchers, in the same order."
            )
