"""Query likelihood: a language model says how likely the query is behind each candidate."""

from dataclasses import replace
from functools import partial
from typing import Literal, Unpack

from shortlist.errors import UserError
from shortlist.math import permutation
from shortlist.rerankers.language import LanguageModelSettings, by_language_model, is_server
from shortlist.rerankers.prepared import Prepared


def by_likelihood(*, likelihood: Literal["mean", "sum"] = "mean", **model: Unpack[LanguageModelSettings]) -> Prepared:
    """Prepare a reranker by the likelihood of the query (https://arxiv.org/abs/2204.07496).

    The model reads a document, then the query, and a score is the log-probability of the query's tokens (nats). Nothing
    is generated. An encoder-decoder reads the document, and its decoder the query.

    Args:
        likelihood: whether a score is the mean over the query's tokens or their sum; the order is the same, and means
            compare across queries.
        model: the language model and its prompt, which asks for likelihood.

    Raises:
        UserError: as for `by_language_model`, or the model is a server's.
    """
    name = model.get("model")
    if is_server(name):
        raise UserError(
            f"--model {name}: a server does not tell how likely a given text is; name a model's folder or hub name."
        )
    if model.get("answers"):
        raise UserError("--answers: nothing is answered where the query's likelihood is read; leave it out.")
    return by_language_model(
        "likelihood",
        ("likelihood",),
        lambda prompt: partial(permutation.groups, size=1),
        settings={},
        model=model,
        adjust=lambda prompt: replace(prompt, likelihood=likelihood),
    )
