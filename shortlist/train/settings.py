"""Settings of a training run, with its losses."""

from shortlist.errors import UserError
from shortlist.models.kinds import named_kind
from shortlist.settings.train import Config, check, source_parts
from shortlist.train.losses import TEMPERATURE, Term, parse_losses


def check_settings(config: Config) -> None:
    """Refuse invalid settings.

    Raises:
        UserError: a setting is out of range, names something unknown, or contradicts another.
    """
    check(config)
    terms = [term for part in source_parts(config) for term in losses(part.config)]
    if config.temperature is not None and not any(TEMPERATURE in term.parameters for term in terms):
        raise UserError("--temperature: no loss of --loss has a temperature; leave it out.")


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
