"""Settings of training a feedback encoder, which reads queries with documents."""

import math
from typing import Any, NamedTuple

from shortlist.errors import UserError
from shortlist.settings.train import Config

QUERY_LENGTH = 512
"""Most tokens of a query with its documents, if the settings name no other limit and the model has the positions."""
OF_FEEDBACK = ("feedback_docs", "feedback_depth", "lol", "lol_compare")
"""Settings that say nothing without --feedback."""
NOT_WITH: dict[str, str] = {
    "sources": "a run is of one collection",
    "guide": "no negative is left out",
    "refresh_steps": "the documents' vectors stay as they are",
    "views": "documents are no queries of the run",
    "prompt": "a prompt shows documents too",
    "dims": "the documents' vectors stay as they are",
    "mix_negatives": "the documents' vectors stay as they are",
    "heldout_split": "its queries would be read without documents",
}
"""Settings that do not go with --feedback, and why."""


class FeedbackSettings(NamedTuple):
    """Documents that queries are read with, all defaults filled in."""

    docs: int
    """The most documents of a query."""
    depth: int
    """First documents of the run to draw them from."""
    versions: int
    """How often a query is read in a step, each time with another number of documents."""
    lol: float
    """Weight of what a query loses more with more documents (0: none)."""


def feedback_settings(config: Config) -> FeedbackSettings | None:
    """Return the settings of a feedback encoder; None for other trainings."""
    if config.feedback is None:
        return None
    docs = config.feedback_docs or (5 if config.lol else 3)
    depth = config.feedback_depth or (max(20, docs) if config.lol else docs)
    return FeedbackSettings(docs, depth, 1 + config.lol_compare if config.lol else 1, config.lol)


def check_feedback(config: Config) -> None:
    """Refuse settings that do not go with a feedback encoder, or not without one.

    Raises:
        UserError: a setting is out of range or contradicts another.
    """

    def changed(name: str) -> Any:
        return getattr(config, name) != getattr(Config, name)

    if config.feedback is None:
        for name in filter(changed, OF_FEEDBACK):
            raise UserError(f"--{name.replace('_', '-')}: says how a run's documents are read; add --feedback RUN.")
        return
    if config.kind != "retriever":
        raise UserError(f"--feedback: is for a retriever, and says nothing about a {config.kind}.")
    for name in filter(changed, NOT_WITH):
        raise UserError(f"--feedback: {NOT_WITH[name]}; leave out --{name.replace('_', '-')}.")
    if not 0 <= config.lol < math.inf:
        raise UserError(f"--lol is {config.lol}; expected a weight of 0 or more.")
    for name in ("feedback_docs", "feedback_depth", "lol_compare"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; expected at least 1.")
    if changed("lol_compare") and not config.lol:
        raise UserError("--lol-compare: says how many versions --lol compares; add it, or leave this out.")
    found = feedback_settings(config)
    assert found is not None  # --feedback is there; for the type checker
    if found.depth < found.docs:
        raise UserError(
            f"--feedback-depth is {found.depth}, and queries are read with {found.docs} documents; expected as many or "
            "more."
        )
    if found.versions > found.docs + 1:
        raise UserError(
            f"--lol-compare {config.lol_compare}: with 0 to {found.docs} documents a query has {found.docs + 1} "
            f"versions; expected at most {found.docs}."
        )
