"""Stage `train`: fine-tune a retriever, a reranker, or a language model.

It runs in one process, or in the several that torchrun starts.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from shortlist.data.claims import claim_output
from shortlist.data.collections import Collection, open_collection
from shortlist.data.groups import GroupSource
from shortlist.data.manifest import start_job
from shortlist.math.sampling import shortfall
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.models.kinds import for_kind, named_kind
from shortlist.models.save import Trainable, save_model
from shortlist.progress import say
from shortlist.records import Qrels
from shortlist.settings.train import CHECKPOINTS, Config, documents_source, job_of, views_alone
from shortlist.text.views import VIEWS
from shortlist.train.build import adapted_model, build_model, collect_groups, weights_dtype
from shortlist.train.examples import Batch, batches, learn_together, num_steps
from shortlist.train.forecast import forecast
from shortlist.train.gather import ALONE, World, in_turn, meet, on_any, own_device
from shortlist.train.heldout import EVALUATIONS, Evaluation, draw_heldout
from shortlist.train.log import DRAWING, LOG, MEASURE, Record, TrainingLog, draw_loss, read_log
from shortlist.train.loop import TOKENS, fit, new_optimizer
from shortlist.train.objectives import make_example
from shortlist.train.resume import (
    State,
    drop_checkpoints,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    whole_weights,
)
from shortlist.train.settings import check_settings, losses, objective_options, text_options, view_losses, view_rng
from shortlist.train.steps import Example, compute_outputs
from shortlist.train.views import joined_examples, viewed


def run(config: Config) -> None:
    """Train the model and save it with its contract and manifest.

    Under torchrun, all processes train together.
    """
    check_settings(config)
    start = time.perf_counter()
    with meet() as world:
        collection = open_collection(config.collection)
        config, source = collect_groups(config, collection)
        backbone = open_folder(config.backbone, wanted=named_kind(config.kind).role, weights=not config.dry_run)
        config = replace(config, backbone=backbone.name)
        empty, _ = adapted_model(
            config, backbone, empty=True, attention=config.attention
        )  # refuses what does not fit together
        if config.heldout_split and not views_alone(config):
            _warn_of_one_split(config, collection.qrels(config.heldout_split), source)
        if config.dry_run:
            if world.leads:
                _foresee(config, empty, collection, source, world)
            return
        job = start_job(config, **job_of(config, backbone, collection, source)) if world.leads else None
        if on_any(job is not None and job.done, world):  # where the others wait for the first one's claim
            if job and config.keep == 1 and (config.out / CHECKPOINTS).exists():  # a kill interrupted their removal
                with claim_output(config.out, folder=True, stage="train"):
                    drop_checkpoints(config.out)
            return
        train(config, backbone, collection, source, world)
        if job:
            draw_loss(config.out)
            counts = {"num_groups": len(source.groups), "short_groups": shortfall(source.groups, config.negatives or 0)}
            seconds = round(time.perf_counter() - start, 1)
            decided = {term.name: {"weight": term.weight, **term.parameters} for term in losses(config)}
            results = {**counts, "processes": world.size, "seconds": seconds, "losses": decided, **_results(config.out)}
            job.finish(aside=(LOG, DRAWING, "tensorboard", CHECKPOINTS), **results)
            if config.keep == 1:
                with claim_output(config.out, folder=True, stage="train"):
                    drop_checkpoints(config.out)


def train(
    config: Config, backbone: ModelFolder, collection: Collection, source: GroupSource, world: World = ALONE
) -> None:
    """Train from the newest checkpoint in `config.out`, if any; save the model there."""
    device, bf16 = own_device(world), config.precision == "bf16"
    model, adapter = in_turn(partial(build_model, config, backbone, device, world), world)
    optimizer = new_optimizer(model, learning_rate=config.learning_rate)
    state = State(token_budget=config.token_budget or TOKENS[device.type], cached=config.grad_cache)
    if before := load_checkpoint(config.out, model, optimizer, adapter=adapter is not None):
        say(f"train: continuing after step {before.step}.")
        smaller = min(before.token_budget, state.token_budget)  # than either, if memory ran out in the meantime
        state = before._replace(token_budget=smaller, cached=before.cached or state.cached)
    steps, evaluation = _num_steps(config, source), _evaluation(config, collection, model)
    files: dict[str, Any] = {"adapter": adapter, "base": config.backbone}

    def after(state: State, record: Record) -> State:
        write(record)
        if evaluation and (state.step % config.heldout_steps == 0 or state.step == steps):
            model.eval()
            computing = {"token_budget": state.token_budget, "bf16": bf16, "world": world}
            score = evaluation.mrr(compute_outputs(model, evaluation.token_ids, **computing))
            model.train()
            write({"step": state.step, MEASURE: round(score, 6)})
            say(f"step {state.step}: held-out MRR@10 {score:.4f}")
            if score > state.best_score:
                state = state._replace(best_step=state.step, best_score=score)
        if state.step == state.best_step or (state.step % config.checkpoint_steps == 0 and state.step < steps):
            save_checkpoint(config.out, model, optimizer, state, keep=config.keep, world=world, **files)
        return state

    with _log(config, state, world) as write:
        state = fit(
            model,
            _examples(config, collection, source, model, range(state.step, steps)),
            optimizer,
            state,
            steps=steps,
            learning_rate=config.learning_rate,
            warmup_steps=config.warmup_steps,
            bf16=bf16,
            seed=config.seed,
            after=after,
            world=world,
        )
    if evaluation and state.best_step != state.step:
        load_weights(config.out, model, state.best_step, adapter=adapter is not None)
    weights = whole_weights(model, adapter=adapter is not None, world=world)
    if world.leads:
        save_model(model, config.out, weights=weights, **files)


def _foresee(config: Config, model: Trainable, collection: Collection, source: GroupSource, world: World) -> None:
    """Print what training would take; the model needs no weights."""
    device = own_device(world)
    expected = forecast(
        config.kind,
        model,
        source.groups,
        source.queries,
        collection,
        batch_size=config.batch_size,
        negatives=config.negatives,
        steps=_num_steps(config, source),
        merge=_merge(config, source),
        seed=config.seed,
        token_budget=config.token_budget or TOKENS[device.type],
        processes=world.size,
        sharded=config.sharded,
        cached=config.grad_cache,
        device=device,
        bf16=config.precision == "bf16",
        dtype=weights_dtype(config, device),
        four_bit=config.four_bit,
        change=change_of(config, 0) if views_alone(config) else None,
    )
    print("\n".join(expected.lines()))


def _warn_of_one_split(config: Config, heldout: Qrels, source: GroupSource) -> None:
    """Say how many held-out queries are trained on, too."""
    judged = {query_id for query_id, grades in heldout.items() if max(grades.values(), default=0) > 0}
    if shared := judged & {group.query_id for group in source.groups}:
        say(
            f"train: {len(shared):,} of {len(judged):,} queries of --heldout-split {config.heldout_split} are trained "
            "on, too, so the best step is chosen by what was learned by heart; name a split of other queries."
        )


def _num_steps(config: Config, source: GroupSource) -> int:
    merge = _merge(config, source)
    return config.steps or num_steps(len(source.groups), config.batch_size, config.epochs, merge=merge)


def _merge(config: Config, source: GroupSource) -> bool:
    """Whether a query left over in an epoch joins the step before it."""
    return learn_together(named_kind(config.kind).role, source.groups, config.negatives)


def _examples(
    config: Config, collection: Collection, source: GroupSource, model: Trainable, steps: range
) -> Iterator[Example]:
    """Make the examples of these steps, and say how many texts were cut."""
    terms, counts = losses(config), dict[str, list[int]]()
    options = objective_options(config, model)

    def count(kind: str, num_cut: int, num_texts: int) -> None:
        counts[kind] = [a + b for a, b in zip(counts.get(kind, [0, 0]), (num_cut, num_texts), strict=True)]

    model.inputs.on_cut = count
    drawing: dict[str, Any] = {"batch_size": config.batch_size, "seed": config.seed}
    drawing |= {"first_step": steps.start, "steps": steps.stop}
    drawn = batches(
        source.groups,
        source.queries,
        collection,
        negatives=config.negatives,
        merge=_merge(config, source),
        judged=source.judged,
        **drawing,
    )
    views = documents_source(collection) if config.views_weight else None
    views_drawn = batches(views.groups, views.queries, collection, negatives=None, **drawing) if views else None
    for step, batch in enumerate(drawn, steps.start):
        batch = change_of(config, step)(batch) if views_alone(config) else batch
        texts = text_options(config, step)
        example = make_example(config.kind, model.inputs, batch, terms, **texts, **options)
        if views_drawn and config.views_weight:
            second = change_of(config, step)(next(views_drawn))
            second_example = make_example(config.kind, model.inputs, second, view_losses(config), **options)
            example = joined_examples(example, second_example, weight=config.views_weight)
        yield example
    form = model.inputs.form
    longest = {"queries": form.query_length, "documents": form.document_length, "pairs": form.pair_length}
    for kind, (num_cut, num_texts) in counts.items():
        if num_cut:
            say(f"train: of {num_texts:,} {kind} read, {num_cut:,} were cut at {longest[kind]} tokens.")


def change_of(config: Config, step: int) -> Callable[[Batch], Batch]:
    """Return the function that makes a batch of documents one of views."""
    if config.views is None:
        return lambda batch: batch
    return partial(viewed, view=VIEWS[config.views], rng=view_rng(config, step))


def _evaluation(config: Config, collection: Collection, model: Trainable) -> Evaluation | None:
    if config.heldout_split is None:
        return None
    sizes = {"num_queries": config.heldout_queries, "num_docs": config.heldout_docs}
    heldout = draw_heldout(
        collection, config.heldout_split, **sizes, seed=config.seed, skip_missing=config.skip_missing
    )
    return for_kind(EVALUATIONS, config.kind)(model, heldout)


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
    training = [record for record in records if MEASURE not in record]
    measured = [record for record in records if MEASURE in record]
    best: Record = max(measured, key=lambda record: record[MEASURE], default={})
    return {**training[-1], **({"best_step": best["step"], MEASURE: best[MEASURE]} if best else {})}
