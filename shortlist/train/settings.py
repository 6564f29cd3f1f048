"""Settings of a training run, with its losses."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from shortlist.errors import UserError
from shortlist.models.kinds import named_kind
from shortlist.settings.feedback import check_feedback
from shortlist.settings.parts import OpenPart, source_parts
from shortlist.settings.reward import check_reward, parse_rewarded
from shortlist.settings.sparsity import parse_regulariser
from shortlist.settings.train import Config, check, parse_scoring
from shortlist.train.layers import parse_sampling
from shortlist.train.losses import TEMPERATURE, Term, needs, parse_losses
from shortlist.train.optimizers import parse_optimizer
from shortlist.train.similarity import SCORINGS
from shortlist.train.sparsity import Sparsity


def check_settings(config: Config) -> None:
    """Refuse invalid settings.

    Raises:
        UserError: a setting is out of range, names something unknown, or contradicts another.
    """
    check(config)
    check_reward(config)
    check_feedback(config)
    parse_optimizer(config.optimizer, sharded=config.sharded)
    if config.layers_sampled:
        parse_sampling(config.layers_sampled)
    terms = [term for part in source_parts(config) for term in losses(part.config)] + prompt_losses(config)
    if config.lol and (whole := [term.name for term in terms if "shared documents" in needs(term)]):
        raise UserError(f"--lol: compares the losses of single queries, and --loss {whole[0]} has none; leave out one.")
    if config.temperature is not None and not any(TEMPERATURE in term.parameters for term in terms):
        raise UserError("--temperature: no loss of --loss has a temperature; leave it out.")


def objective_options(config: Config, model: Any) -> dict[str, Any]:
    """Return the arguments of the objective that the settings choose."""
    options: dict[str, Any] = {"stop_id": model.stop_id} if has_stop(config) else {}
    if config.dims or config.mix_negatives:
        options |= {"dims": config.dims, "weights": config.dims_weights, "mixed": config.mix_negatives}
        options |= {"unit": model.reading.normalize}
    if config.scoring != Config.scoring:
        name, chosen = parse_scoring(config.scoring)
        options |= {"similarity": partial(SCORINGS[name], **chosen)}
    return options


def sparsity_of(config: Config, model: Any, *, steps: int) -> Sparsity | None:
    """Return what keeps a sparse model's weights sparse; None for other kinds."""
    if config.kind != "sparse":
        return None
    looked_up = model.reading.queries == "lookup"
    sides = {name: getattr(config, f"{name}_sparsity") for name in ("query", "document")}
    parsed = {name: parse_regulariser(text, f"--{name}-sparsity") for name, text in sides.items()}
    parsed |= {"query": None} if looked_up else {}
    return Sparsity(parsed, steps=steps, idf=model.looked_up if looked_up else None)


def text_options(config: Config, step: int) -> dict[str, Any]:
    """Return the arguments of `make_example` that say how a step's inputs are made."""
    if not config.corruption:
        return {}
    return {"texts": {"corruption": config.corruption, "rng": view_rng(config, step)}}


def view_rng(config: Config, step: int) -> np.random.Generator:
    """Make the generator of a step's changes to texts."""
    return np.random.default_rng([config.seed, step])


def has_stop(config: Config) -> bool:
    """Whether a language model predicts only what comes after a stop."""
    return config.attention_stop or config.corruption > 0


def losses(config: Config) -> list[Term]:
    """Return the losses to minimise, with all defaults filled in.

    A language model without a prompt has none, as it ranks nothing; with one, the default is to learn its answers.

    With a reward there are none unless some are named, and none of groups with preferences.

    Raises:
        UserError: `--loss` does not fit.
    """
    if config.preferences or (config.reward and config.loss == Config.loss):
        return []
    asked = named_kind(config.kind).role == "language-model"
    if asked and not config.prompt:
        return []
    words = ("lm",) if asked and config.loss == Config.loss else config.loss
    terms = parse_losses(words, temperature=_temperature(config))
    if not asked and (written := [term.name for term in terms if term.is_of_answers]):
        raise UserError(f"--loss {written[0]}: is for answers to a --prompt, and a {config.kind} writes none.")
    return terms


@contextmanager
def said_of_prompt_loss() -> Iterator[None]:
    """Let errors about losses name `--prompt-loss`."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("--loss", "--prompt-loss")) from None


def prompt_losses(config: Config) -> list[Term]:
    """Return the losses of rankings by the vector of a retriever's prompt, if any.

    Raises:
        UserError: `--prompt-loss` does not fit.
    """
    if not config.prompt or config.kind != "retriever":
        return []
    with said_of_prompt_loss():
        terms = parse_losses(config.prompt_loss, temperature=_temperature(config))
    if written := [term.name for term in terms if term.is_of_answers]:
        raise UserError(f"--prompt-loss {written[0]}: is for answers, and a retriever writes none.")
    return terms


def compares(parts: Sequence[OpenPart]) -> bool:
    """Whether a loss compares with the model as it was before training."""
    if any(rewarded.reads_start for part in parts if (rewarded := parse_rewarded(part.config))):
        return True
    terms = [term for part in parts for term in losses(part.config) + prompt_losses(part.config)]
    return any("start" in needs(term) for term in terms)


def view_losses(config: Config) -> list[Term]:
    """Return the loss of views beside groups: no teacher or judge knows their documents."""
    return parse_losses(["infonce"], temperature=_temperature(config))


def _temperature(config: Config) -> float:
    return named_kind(config.kind).temperature if config.temperature is None else config.temperature
