"""Settings of a training run, with its losses."""

from typing import Any

from shortlist.errors import UserError
from shortlist.models.kinds import named_kind
from shortlist.settings.train import Config, check, parts_of
from shortlist.train.layers import parse_sampling
from shortlist.train.losses import TEMPERATURE, Term, parse_losses
from shortlist.train.optimizers import parse_optimizer


def check_settings(config: Config) -> None:
    """Refuse invalid settings.

    Raises:
        UserError: a setting is out of range, names something unknown, or contradicts another.
    """
    check(config)
    parse_optimizer(config.optimizer, sharded=config.sharded)
    if config.layers_sampled:
        parse_sampling(config.layers_sampled)
    terms = [term for part in parts_of(config) for term in losses(part.config)]
    if config.temperature is not None and not any(TEMPERATURE in term.parameters for term in terms):
        raise UserError("--temperature: no loss of --loss has a temperature; leave it out.")


def objective_options(config: Config, model: Any) -> dict[str, Any]:
    """Return the arguments of the objective that the settings choose."""
    if config.dims or config.mix_negatives:
        chosen = {"dims": config.dims, "weights": config.dims_weights, "mixed": config.mix_negatives}
        return chosen | {"unit": model.reading.normalize}
    return {}


def losses(config: Config) -> list[Term]:
    """Return the losses to minimise, with all defaults filled in.

    A language model has none, as it ranks nothing.

    Raises:
        UserError: `--loss` does not fit.
    """
    kind = named_kind(config.kind)
    if kind.role == "language-model":
        return []
    temperature = kind.temperature if config.temperature is None else config.temperature
    return parse_losses(config.loss, temperature=temperature)
