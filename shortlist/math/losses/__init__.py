"""Losses that training minimises, by the names that `train --loss` takes."""

from collections.abc import Callable, Mapping

from jaxtyping import Float
from torch import Tensor

from shortlist.math.losses.answers import lm
from shortlist.math.losses.contrastive import infonce
from shortlist.math.losses.distillation import js, judge, kl, pld, sinkhorn
from shortlist.math.losses.listwise import approxndcg, listmle, listnet
from shortlist.math.losses.pairwise import hinge, lambdarank, margin_mse, ranknet, yes_no
from shortlist.math.losses.policy import policy
from shortlist.math.losses.regularise import anchor, bands

Loss = Callable[..., Float[Tensor, ""]]
"""A function of a Ranking and of keyword parameters that all have defaults."""

LOSSES: dict[str, Loss] = {
    "infonce": infonce,
    "hinge": hinge,
    "ranknet": ranknet,
    "lambdarank": lambdarank,
    "yes_no": yes_no,
    "listnet": listnet,
    "listmle": listmle,
    "approxndcg": approxndcg,
    "kl": kl,
    "js": js,
    "judge": judge,
    "margin_mse": margin_mse,
    "pld": pld,
    "sinkhorn": sinkhorn,
    "policy": policy,
    "bands": bands,
    "anchor": anchor,
}

ANSWER_LOSSES: dict[str, Loss] = {"lm": lm}
"""Losses of the answers that a language model writes to a prompt: functions of `Likelihoods`, not of a Ranking."""

NEEDS: dict[str, tuple[str, ...]] = {
    "kl": ("teacher",),
    "js": ("teacher",),
    "judge": ("teacher",),
    "margin_mse": ("teacher",),
    "pld": ("teacher",),
    "sinkhorn": ("teacher", "shared documents"),
    "bands": ("grades",),
    "anchor": ("start",),
}
"""Data that a loss needs and not every training has: a `teacher`, `grades` beyond marking the positive, the scores of
the model at the `start`, or `shared documents`, which every query of a batch ranks."""

NEEDS_NO_POSITIVE: dict[str, Mapping[str, str]] = {
    "kl": {},
    "js": {},
    "judge": {},
    "pld": {},
    "sinkhorn": {},
    "anchor": {},
    "margin_mse": {"pairs": "all"},
    "ranknet": {"order": "teacher"},
    "listmle": {"order": "teacher"},
}
"""Losses that learn from a query without any relevant document, if their parameters are these."""
