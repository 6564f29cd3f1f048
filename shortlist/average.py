"""Stage `average`: make one model whose weights are the average of several models' weights."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import tyro

from shortlist.config import NotInJob, refuse_idle
from shortlist.data.collections import Collection, open_collection
from shortlist.data.jobs import JobSpec, start_job
from shortlist.errors import UserError
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.models.kinds import for_kind, load_model
from shortlist.progress import say
from shortlist.records import Document, Hit, Qrels, Query, Run

if TYPE_CHECKING:
    from torch import Tensor

RETRIEVED, RERANKED = 1000, 50
"""Documents per query that a retriever finds, and hits of BM25 that a reranker orders, to be measured."""


@dataclass(frozen=True, kw_only=True)
class Config:
    models: tyro.conf.Positional[tuple[str, ...]]
    """Retrievers or rerankers trained from the same start: folders, checkpoints in them, or hub names."""
    out: NotInJob[Path]
    """Folder for the model."""
    weights: tuple[float, ...] = ()
    """Weight of each model, which is divided by their sum (default: all the same)."""
    greedy: bool = False
    """Add one model after another, the best first, and leave out those with which the average gets worse."""
    collection: str | None = None
    """With --greedy: collection to measure on, as a folder, `irds:` or `hf:` name; its whole corpus is embedded for
    each model."""
    split: str = "dev"
    """With --greedy: split with the judgements to choose by; it should not be the one to evaluate on."""
    measure: str = "nDCG@10"
    """With --greedy: measure to choose by, named as in `shortlist evaluate`."""
    contract: str | None = None
    """Input contract by name, for model folders without one."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


class Trial(NamedTuple):
    """A search task to measure models on."""

    documents: list[Document]
    queries: list[Query]
    qrels: Qrels
    measure: str


def check(config: Config) -> None:
    """Refuse settings that do not go together.

    Raises:
        UserError: fewer than two models, weights that do not fit, or a measure or collection that is missing.
    """
    if len(config.models) < 2:
        raise UserError(f"average: {len(config.models)} model is named; expected two or more.")
    if config.weights and len(config.weights) != len(config.models):
        raise UserError(
            f"--weights has {len(config.weights)} numbers for {len(config.models)} models; expected as many."
        )
    if not all(0 <= weight < math.inf for weight in config.weights) or (config.weights and not sum(config.weights)):
        raise UserError(f"--weights is {config.weights}; expected numbers of at least 0, one of them above.")
    if config.greedy and config.weights:
        raise UserError("--weights: --greedy gives all models that it takes the same weight; leave out one of the two.")
    if config.greedy != (config.collection is not None):
        raise UserError("--greedy chooses models by a measure on --collection; name both, or neither.")
    if not config.greedy:
        refuse_idle(config, ("split", "measure"), "is for --greedy")


def average(models: Sequence[ModelFolder], reads: str, shares: Sequence[float], contract: str | None = None) -> Any:
    """Load the average of several models.

    Args:
        reads: `document` for retrievers, `pair` for rerankers.
        shares: the share of each model; they should add up to 1.
        contract: input contract by name (None: the models' own).

    Raises:
        UserError: the models differ in kind, contract or shape.
    """
    from shortlist.math.averaging import average_weights

    first = _loaded(models[0], reads, contract)
    own = first.state_dict()

    def states() -> Any:
        yield own
        for folder in models[1:]:
            other = _loaded(folder, reads, contract)
            if difference := first_difference(_described(first), _described(other)):
                raise UserError(
                    f"{folder.name}: {difference} in {models[0].name}; only models of the same kind and shape, which "
                    "read texts in the same way, are averaged."
                )
            yield other.state_dict()

    first.load_state_dict(average_weights(states(), shares))
    return first


def first_difference(first: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Say in which of their properties two models differ first; None if in none."""
    for name in [*first, *(name for name in other if name not in first)]:
        values = [described.get(name, "missing") for described in (other, first)]
        if values[0] != values[1]:
            return f"{name} is {values[0]} here, and {values[1]}"
    return None


def _described(model: Any) -> dict[str, Any]:
    """Describe what must be the same in all models: kind, contract, shapes of weights."""
    shapes = {f"the shape of {name}": list(value.shape) for name, value in model.state_dict().items()}
    contract = {f"`{name}` of the contract": value for name, value in model.contract.to_dict().items()}
    return {"the kind": model.kind, "the architecture": type(model.backbone).__name__, **contract, **shapes}


def _loaded(folder: ModelFolder, reads: str, contract: str | None) -> Any:
    from shortlist.models.save import has_more_layers

    model = load_model(folder, reads, contract)
    if has_more_layers(model):
        raise UserError(f"{folder.name}: has dense layers behind its backbone, which are not averaged here.")
    return model


def score(model: Any, reads: str, trial: Trial) -> float:
    """Measure a model on a search task.

    A retriever searches all documents, and a reranker orders the best ones of BM25.

    Args:
        reads: as for `average`.
    """
    from shortlist.evaluation.measure import of_run, per_query
    from shortlist.models.run import pick_device

    run = {"document": _searched, "pair": _reranked}[reads](model.eval().to(pick_device()), trial)
    return of_run(trial.measure, per_query(run, trial.qrels, [trial.measure], complete=True)[trial.measure])


def _searched(model: Any, trial: Trial) -> Run:
    from shortlist.math.scoring import top_k

    found = {}
    for query, row in zip(trial.queries, for_kind(COMPARED, model.kind)(model, trial), strict=True):
        scores, columns = top_k(row[None], RETRIEVED)
        pairs = zip(columns[0].tolist(), scores[0].tolist(), strict=True)
        found[query.query_id] = [Hit(trial.documents[column].doc_id, value) for column, value in pairs]
    return found


def _dot_products(model: Any, trial: Trial) -> "Iterator[Tensor]":
    """Yield the scores of all documents for one query after another."""
    import torch

    from shortlist.models.run import embed_documents, embed_queries

    documents = torch.from_numpy(embed_documents(model, trial.documents))
    return (documents @ vector for vector in torch.from_numpy(embed_queries(model, trial.queries)))


def _best_matches(model: Any, trial: Trial) -> "Iterator[Tensor]":
    """Yield the scores of late interaction of all documents for one query after another."""
    import torch

    from shortlist.math.interaction import maxsim_scores
    from shortlist.models.late_retriever import LateRetriever

    retriever = LateRetriever(model)
    queries, documents = retriever.encode_queries(trial.queries), retriever.encode_documents(trial.documents)
    read = torch.from_numpy(documents.values), torch.from_numpy(documents.counts)
    return (maxsim_scores(torch.from_numpy(query), torch.tensor([len(query)]), *read)[0] for query in queries)


COMPARED: dict[str, Callable[..., "Iterator[Tensor]"]] = {"retriever": _dot_products, "late": _best_matches}
"""Functions that score every document for every query, by kind of model or role."""


def _reranked(model: Any, trial: Trial) -> Run:
    from shortlist.index.bm25 import BM25Index
    from shortlist.models.run import score_pairs

    texts = {document.doc_id: document for document in trial.documents}
    hits = BM25Index.build(trial.documents).search(trial.queries, RERANKED)
    pairs = [(query, texts[hit.doc_id]) for query in trial.queries for hit in hits[query.query_id]]
    values = iter(score_pairs(model, pairs).tolist())
    scored = {name: [Hit(hit.doc_id, next(values)) for hit in row] for name, row in hits.items()}
    return {name: sorted(row, key=lambda hit: -hit.score) for name, row in scored.items()}


def _trial(config: Config, collection: Collection) -> Trial:
    from shortlist.evaluation.measure import parse_measures

    parse_measures([config.measure])
    qrels = {name: grades for name, grades in collection.qrels(config.split).items() if max(grades.values()) > 0}
    queries = [query for query in collection.queries(config.split) if query.query_id in qrels]
    if not queries:
        raise UserError(f"{config.collection}: no query of split {config.split!r} has a relevant document.")
    return Trial(list(collection.corpus()), queries, qrels, config.measure)


def run(config: Config) -> None:
    """Average the models and save the result with its contract and manifest."""
    check(config)
    folders = [open_folder(name) for name in config.models]
    reads = "document" if folders[0].any_contract(config.contract).form.document else "pair"
    collection = open_collection(config.collection) if config.collection else None
    inputs: dict[str, Any] = {"models": [folder.identity for folder in folders]}
    if collection:
        inputs["collection"] = collection.identity("corpus", "queries", f"qrels/{config.split}")
    reading = [folder.whole.path for folder in folders]
    job = start_job(config, JobSpec("average", inputs, folder=True, reads=reading))
    if job.done:
        return
    if any(folder.base for folder in folders):
        say("average: adapters are merged into their bases first, so the average is a whole model.")
    results: dict[str, Any] = {}
    shares = [weight / sum(config.weights) for weight in config.weights] or [1 / len(folders)] * len(folders)
    if collection:
        chosen, results = _chosen(config, folders, reads, _trial(config, collection))
        folders, shares = [folders[number] for number in chosen], [1 / len(chosen)] * len(chosen)
    from shortlist.models.save import save_model

    with job.result() as out:
        save_model(average(folders, reads, shares, config.contract), out)
    job.finish(averaged=[folder.name for folder in folders], shares=shares, **results)


def _chosen(
    config: Config, folders: Sequence[ModelFolder], reads: str, trial: Trial
) -> tuple[list[int], dict[str, Any]]:
    """Choose the models to average, and return the measurements for the manifest."""
    from shortlist.math.averaging import choose_greedily

    def score_of(numbers: Sequence[int]) -> float:
        models, shares = [folders[number] for number in numbers], [1 / len(numbers)] * len(numbers)
        value = score(average(models, reads, shares, config.contract), reads, trial)
        say(f"average: {' + '.join(model.name for model in models)}: {config.measure} {value:.4f}")
        return value

    scores = [score_of([number]) for number in range(len(folders))]
    chosen, best = choose_greedily(scores, score_of)
    return chosen, {"scores": [round(value, 6) for value in scores], config.measure: round(best, 6)}
