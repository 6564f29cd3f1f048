"""Reranking in one context: a language model reads all candidates at once."""

from typing import Unpack

from shortlist.errors import UserError
from shortlist.math import permutation
from shortlist.rerankers.language import LanguageModelSettings, Orders, by_language_model, in_orders, is_server
from shortlist.rerankers.prepared import Prepared
from shortlist.text.prompts import named_prompt


def in_context(*, orders: Orders = 1, **model: Unpack[LanguageModelSettings]) -> Prepared:
    """Prepare a reranker that shows a whole list in one context (https://arxiv.org/abs/2406.13121).

    A document's score is the log-probability that the answer begins with its number. With `answers` text the numbers
    are generated instead, and with `logits` they are read at one position, where each is one token.

    Args:
        orders: in how many orders the list is shown; after two, the mean of both answers counts.
        model: the language model and its prompt, which asks for an order.

    Raises:
        UserError: as for `by_language_model`, or the prompt has labels for a few documents only.
    """
    name = model.get("model")
    prompt = named_prompt(model.get("prompt") or "context")
    if (most := prompt.most_documents()) is not None:
        raise UserError(
            f"--prompt: {prompt.name!r} has labels for {most} documents, and this method shows all at once; choose one "
            "with numbers, such as context."
        )
    if is_server(name) and (model.get("answers") or prompt.reads) != "text":
        raise UserError(
            f"--model {name}: a server does not tell how likely every number is; have them generated with --answers "
            "text, or name a model's folder or hub name."
        )
    return by_language_model(
        "context",
        ("order",),
        lambda prompt: in_orders(permutation.all_at_once, orders),
        settings={"orders": None if orders == 1 else orders},
        model=model,
    )
