"""Stage `train`: fine-tune a retriever, a reranker, or a language model.

It runs in one process, or in several that the command line or torchrun has started.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

from shortlist.data.claims import claim_output
from shortlist.data.collections import Collection, open_collection
from shortlist.data.groups import asked_by, negative_counts
from shortlist.data.jobs import Job, start_job
from shortlist.data.preferences import read_preferences
from shortlist.errors import UserError
from shortlist.math.sampling import shortfall
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.models.kinds import for_kind, named_kind
from shortlist.models.run import Model
from shortlist.models.save import Trainable, save_model
from shortlist.progress import say
from shortlist.settings.parts import OpenPart, settled
from shortlist.settings.reward import orpo_options, parse_rewarded, with_reward
from shortlist.settings.train import Config, views_alone
from shortlist.settings.train_job import job_of, with_names
from shortlist.text.contract import Form
from shortlist.train.asking import asking_example, make_askings, preferring
from shortlist.train.build import adapted_model, build_model, collect_parts
from shortlist.train.feedback import Revisions, frozen_documents, make_revisions
from shortlist.train.forecast import foresee_training
from shortlist.train.gather import ALONE, World, in_turn, meet, on_any, own_device
from shortlist.train.guide import Guide, guide_of
from shortlist.train.heldout import EVALUATIONS, draw_heldout
from shortlist.train.layers import LayerSampling, hold_back, parse_sampling
from shortlist.train.log import HELDOUT_LOSS, MEASURE, REWARD, Record, TrainingLog, draw_loss, read_log
from shortlist.train.loop import TOKENS, fit
from shortlist.train.mixture import Mixture, Renewed, inputs_of
from shortlist.train.objectives import make_example
from shortlist.train.optimizers import check_available, new_optimizer, parse_optimizer
from shortlist.train.preferred import Preferring
from shortlist.train.prompted import make_prompted
from shortlist.train.refresh import NEGATIVES, Refresh, read_renewed, renew_negatives, renewed_json
from shortlist.train.resume import (
    State,
    checkpoints,
    drop_checkpoints,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    whole_weights,
)
from shortlist.train.rollout import RankingRollout, Sampler, heldout_batch
from shortlist.train.settings import (
    check_settings,
    compares,
    losses,
    objective_options,
    sparsity_of,
    text_options,
    view_losses,
    view_rng,
)
from shortlist.train.sparsity import Sparsity
from shortlist.train.start import Start
from shortlist.train.steps import Example, compute_outputs
from shortlist.train.views import change_of, joined_examples, view_batches


def run(config: Config) -> None:
    """Train the model and save it with its contract and manifest.

    The processes that the command line or torchrun has started train together; others are not started here.
    """
    config = with_reward(config)
    check_settings(config)
    start = time.perf_counter()
    with meet() as world:
        _check_processes(config, world)
        parts = collect_parts(config)
        config = settled(config, parts)
        mixture = Mixture(config, parts)
        backbone = open_folder(config.backbone, wanted=named_kind(config.kind).role, weights=not config.dry_run)
        config = with_names(config, backbone)
        empty, _ = adapted_model(
            config, backbone, steps=mixture.steps, empty=True, attention=config.attention
        )  # refuses what does not fit together
        check_askings(config, make_askings(config, parts, empty), empty)
        make_prompted(config, parts, empty)
        revisions = make_revisions(config, parts[0], empty.inputs)
        if config.layers_sampled:
            hold_back(empty, parse_sampling(config.layers_sampled))
        if config.heldout_split and not views_alone(config):
            _warn_of_one_split(config, heldout_collection(config, parts), parts)
        if config.dry_run:
            if world.leads:
                foresee_training(config, empty, mixture, world, revisions)
            return
        check_available(parse_optimizer(config.optimizer))
        job = start_job(config, job_of(config, backbone, parts)) if world.leads else None
        if on_any(job is not None and job.done, world):  # where the others wait for the first one's claim
            if job and config.keep == 1 and checkpoints(config.out):  # a kill interrupted their removal
                with claim_output(config.out, folder=True, stage="train"):
                    drop_checkpoints(config.out)
            return
        if job:
            _check_goes_on(config, job, world)
        train(config, backbone, mixture, world, job, revisions)
        if job:
            draw_loss(config.out)
            seconds = round(time.perf_counter() - start, 1)
            results = {**_counts(mixture), "processes": world.size, "seconds": seconds, **_results(config.out)}
            job.finish(**results)
            if config.keep == 1:
                with claim_output(config.out, folder=True, stage="train"):
                    drop_checkpoints(config.out)


def check_askings(config: Config, askings: Sequence[Any], model: Trainable) -> None:
    """Refuse preferences, held-out ones too, that the model cannot read whole.

    Raises:
        UserError: one is too long.
    """
    askings = [asking for asking in askings if isinstance(asking, Preferring)]
    if config.heldout_preferences:
        askings.append(preferring(config, read_preferences(config.heldout_preferences), model))
    for asking in askings:
        asking.check()


def _check_processes(config: Config, world: World) -> None:
    """Refuse a number of processes that is not at work.

    Raises:
        UserError: this is another number.
    """
    asked = config.processes
    if asked is not None and asked != world.size and not config.dry_run:
        raise UserError(
            f"--processes {asked}: {world.size} at work; the command line starts as many, torchrun by --nproc-per-node."
        )


def _check_goes_on(config: Config, job: Job, world: World) -> None:
    """Refuse to go on with another number of processes on a CPU.

    Raises:
        UserError: the training was begun with another number.
    """
    begun = job.decide("processes", lambda: world.size)
    if begun != world.size and own_device(world).type == "cpu":
        raise UserError(
            f"--out {config.out}: was begun with {begun} processes, and {world.size} would end with other last digits; "
            "leave out --processes (torchrun: start as many), or choose another --out."
        )


def train(
    config: Config,
    backbone: ModelFolder,
    mixture: Mixture,
    world: World = ALONE,
    job: Job | None = None,
    revisions: Revisions | None = None,
) -> None:
    """Train from the newest checkpoint in `config.out`, if any; save the model there.

    Args:
        job: the job in the leading process, whose result the model is.
        revisions: writes the queries of a feedback encoder.
    """
    device, bf16, steps = own_device(world), config.precision == "bf16", mixture.steps
    model, adapter = in_turn(partial(build_model, config, backbone, device, world, steps=steps), world)
    # before a checkpoint changes the weights
    start = Start(model, adapter=adapter is not None) if compares(mixture.parts) else None
    guide = in_turn(partial(guide_of, config, device), world)
    frozen = in_turn(partial(frozen_documents, config, backbone, device), world)
    settings = parse_optimizer(config.optimizer, sharded=config.sharded)
    optimizer = new_optimizer(model, learning_rate=config.learning_rate, settings=settings)
    sampling = _sampling(config, model)
    state = State(token_budget=config.token_budget or TOKENS[device.type], cached=config.grad_cache)
    if before := load_checkpoint(config.out, model, optimizer, adapter=adapter):
        say(f"train: continuing after step {before.step}.")
        smaller = min(before.token_budget, state.token_budget)  # than either, if memory ran out in the meantime
        state = before._replace(token_budget=smaller, cached=before.cached or state.cached)
    sparsity = sparsity_of(config, model, steps=steps)
    if sparsity and state.step:
        sparsity.restore(checkpoints(config.out)[-1])
    evaluation = _evaluation(config, mixture.parts, model)
    files: dict[str, Any] = {"adapter": adapter, "base": config.backbone}
    refresh, cut = _refresh(config), Cut(model.inputs.form)
    renewed: Renewed = ()
    if refresh and state.step > refresh.every and state.step % refresh.every:
        renewed = read_renewed(checkpoints(config.out)[-1])

    def after(state: State, record: Record) -> State:
        write(record)
        if sparsity:
            sparsity.steer(record)
        if evaluation and (state.step % config.heldout_steps == 0 or state.step == steps):
            model.eval()
            computing = {"token_budget": state.token_budget, "bf16": bf16, "world": world}
            score = evaluation.score(model, **computing)
            model.train()
            write({"step": state.step, evaluation.key: round(score, 6)})
            say(f"step {state.step}: held-out {evaluation.name} {score:.4f}")
            if evaluation.sign * score > state.best_score:
                state = state._replace(best_step=state.step, best_score=evaluation.sign * score)
        if state.step == state.best_step or (state.step % config.checkpoint_steps == 0 and state.step < steps):
            texts = {NEGATIVES: renewed_json(renewed)} if renewed else {}
            texts |= sparsity.texts() if sparsity else {}
            save_checkpoint(config.out, model, optimizer, state, keep=config.keep, texts=texts, world=world, **files)
        return state

    with _log(config, state, world) as write:
        while state.step < steps:
            span = refresh.span(state.step, steps) if refresh else range(state.step, steps)
            if refresh and span.start and span.start % refresh.every == 0:
                computing = {"token_budget": state.token_budget, "bf16": bf16, "world": world}
                renewed = renew_negatives(refresh, model, mixture, span, **computing)
            state = fit(
                model,
                _examples(config, mixture, model, span, renewed, cut, guide, sparsity, frozen, revisions),
                optimizer,
                state,
                steps=steps,
                learning_rate=config.learning_rate,
                warmup_steps=config.warmup_steps,
                bf16=bf16,
                seed=config.seed,
                after=after,
                start=start,
                guide=guide.model if guide else frozen,
                adapter=adapter,
                sampling=sampling,
                world=world,
            )
    cut.tell()
    if evaluation and state.best_step != state.step:
        load_weights(config.out, model, state.best_step, adapter=adapter is not None)
    weights = whole_weights(model, adapter=adapter is not None, world=world)
    if world.leads:
        with job.result() if job else nullcontext(config.out) as folder:
            save_model(model, folder, weights=weights, **files)


def _sampling(config: Config, model: Trainable) -> LayerSampling | None:
    if config.layers_sampled is None:
        return None
    return LayerSampling(model, parse_sampling(config.layers_sampled), seed=config.seed)


def _warn_of_one_split(config: Config, collection: Collection, parts: Sequence[OpenPart]) -> None:
    """Say how many held-out queries are trained on, too."""
    qrels = collection.qrels(config.heldout_split or "")
    judged = {query_id for query_id, grades in qrels.items() if max(grades.values(), default=0) > 0}
    alike = [part for part in parts if part.collection.name == collection.name]
    if shared := set[str]().union(*(asked_by(part.source.groups, judged) for part in alike)):
        say(
            f"train: {len(shared):,} of {len(judged):,} queries of --heldout-split {config.heldout_split} are trained "
            "on, too, so the best step is chosen by what was learned by heart; name a split of other queries."
        )


def _counts(mixture: Mixture) -> dict[str, Any]:
    """Return what the groups are, and which losses were minimised, for the manifest."""
    parts = mixture.parts
    short = [shortfall(negative_counts(part.source.groups), part.config.negatives) for part in parts]
    terms = {part.name: {t.name: {"weight": t.weight, **t.parameters} for t in losses(part.config)} for part in parts}
    if parts[0].preferences:
        terms = {name: {"orpo": orpo_options(parts[0].config)} for name in terms}
    if rewarded := parse_rewarded(parts[0].config):
        terms = {name: found | {"reward": rewarded._asdict()} for name, found in terms.items()}
    each = {name: found | {"losses": terms[name]} for name, found in mixture.results().items()}
    return {
        "num_groups": sum(len(part.source.groups) for part in parts),
        "short_groups": sum(short),
        **({"sources": each} if each else {"losses": terms[parts[0].name]}),
    }


@final
class Cut:
    """Counts the texts that were too long for the model, by kind."""

    def __init__(self, form: Form) -> None:
        longest = {"queries": form.query_length, "documents": form.document_length, "pairs": form.pair_length}
        self._how = {kind: f"cut at {length} tokens" for kind, length in longest.items()}
        shared = f"cut, so that a query and its documents have {form.query_length} tokens"
        self._how |= {"queries": shared, "feedback documents": shared} if form.feedback else {}
        self._counts: dict[str, tuple[int, int]] = {}

    def count(self, kind: str, num_cut: int, num_texts: int) -> None:
        """Add texts of a kind, and how many of them were cut."""
        before = self._counts.get(kind, (0, 0))
        self._counts[kind] = (before[0] + num_cut, before[1] + num_texts)

    def tell(self) -> None:
        """Say how many texts were cut."""
        for kind, (num_cut, num_texts) in self._counts.items():
            if num_cut:
                say(f"train: of {num_texts:,} {kind} read, {num_cut:,} were {self._how[kind]}.")


def _refresh(config: Config) -> Refresh | None:
    if config.refresh_steps is None:
        return None
    return Refresh(config.refresh_steps, config.refresh_depth, config.refresh_docs, config.seed)


def _examples(
    config: Config,
    mixture: Mixture,
    model: Trainable,
    steps: range,
    renewed: Renewed,
    cut: Cut,
    guide: Guide | None = None,
    sparsity: Sparsity | None = None,
    frozen: Model | None = None,
    revisions: Revisions | None = None,
) -> Iterator[Example]:
    """Make the examples of these steps."""
    terms, options = [losses(part.config) for part in mixture.parts], objective_options(config, model)
    rewarded = parse_rewarded(config)
    askings, prompted = make_askings(config, mixture.parts, model), make_prompted(config, mixture.parts, model)
    inputs = [inputs_of(part, model.inputs) for part in mixture.parts]
    for own in inputs:
        own.on_cut = cut.count
    revisions = revisions.with_inputs(inputs[0]) if revisions else None
    views = view_batches(config, mixture.parts[0].collection, steps) if config.views_weight else None
    for step, (number, batch) in enumerate(mixture.batches(steps, renewed), steps.start):
        batch = change_of(config, step)(batch) if views_alone(config) else batch
        if askings:
            yield asking_example(askings[number], batch, terms[number], rng=view_rng(config, step))
            continue
        if revisions and frozen:
            yield revisions.example(batch, terms[number], frozen.inputs, rng=view_rng(config, step), **options)
            continue
        texts = text_options(config, step)
        if sparsity:
            options["penalty"] = partial(sparsity.penalty, step=step)
        if rewarded:
            options["outcome"] = RankingRollout(rewarded, terms[number])
        example = make_example(config.kind, inputs[number], batch, terms[number], guide=guide, **texts, **options)
        if prompted:
            example = prompted[number].beside(example, batch, rng=view_rng(config, step))
        if views and config.views_weight:
            viewed_example = make_example(config.kind, inputs[number], next(views), view_losses(config), **options)
            example = joined_examples(example, viewed_example, weight=config.views_weight)
        if rewarded:
            example = example._replace(
                reads_start=example.reads_start or rewarded.reads_start, updates=rewarded.updates
            )
        yield example


def heldout_collection(config: Config, parts: Sequence[OpenPart]) -> Collection:
    """Return the collection to measure on: the one named, or the first source's."""
    return open_collection(config.heldout_collection) if config.heldout_collection else parts[0].collection


class Measuring(NamedTuple):
    """The held-out measure of a training."""

    key: str
    """Its key in the log."""
    name: str
    score: Callable[..., float]
    """Computes it: `score(model, token_budget=..., bf16=..., world=...)`."""
    sign: int = 1
    """1 where higher is better, -1 where lower is."""


def _evaluation(config: Config, parts: Sequence[OpenPart], model: Trainable) -> Measuring | None:
    """Prepare the held-out measure, with the prompts of the source whose collection it is on."""
    if config.heldout_preferences:
        asking = preferring(config, read_preferences(config.heldout_preferences), model)
        return Measuring(HELDOUT_LOSS, "loss", asking.loss, sign=-1)
    if config.heldout_split is None:
        return None
    collection = heldout_collection(config, parts)
    sizes = {"num_queries": config.heldout_queries, "num_docs": config.heldout_docs}
    heldout = draw_heldout(
        collection, config.heldout_split, **sizes, seed=config.seed, skip_missing=config.skip_missing
    )
    own = next((part for part in parts if part.collection.name == collection.name), None)
    if config.prompt and config.reward:
        number = parts.index(own) if own else 0
        sampler = make_askings(config, parts, model)[number]
        batch = heldout_batch(heldout, negatives=parts[number].config.negatives)
        assert isinstance(sampler, Sampler)  # only answers that are rewarded are measured; for the type checker
        return Measuring(REWARD, "reward", partial(sampler.mean_reward, batch=batch, seed=config.seed))
    evaluation = for_kind(EVALUATIONS, config.kind)(inputs_of(own, model.inputs) if own else model.inputs, heldout)

    def mrr(model: Trainable, **computing: Any) -> float:
        return evaluation.mrr(compute_outputs(model, evaluation.token_ids, **computing))

    return Measuring(MEASURE, "MRR@10", mrr)


@contextmanager
def _log(config: Config, state: State, world: World) -> Iterator[Callable[[Record], None]]:
    """Open the training log; only the leading process writes to it."""
    if not world.leads:
        yield lambda record: None
        return
    with TrainingLog(config.out, first_step=state.step, tensorboard=config.tensorboard) as log:
        yield log.write


def _results(out: Path) -> Record:
    """Read the last step's measurements and the best held-out one from the log."""
    records = read_log(out)
    training = [record for record in records if "loss" in record]
    key = next((key for key in (REWARD, HELDOUT_LOSS) if any(key in record for record in records)), MEASURE)
    sign = -1 if key == HELDOUT_LOSS else 1
    best: Record = max((r for r in records if key in r), key=lambda record: sign * record[key], default={})
    return {**training[-1], **({"best_step": best["step"], key: best[key]} if best else {})}
