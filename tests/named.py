"""What loads models, by the names of their folders: tests name hundreds of them."""

from functools import wraps
from typing import Any

from shortlist.models import load, loading_late
from shortlist.models.folder import open_folder
from shortlist.models.kinds import load_model


def _by_name(function: Any, wanted: str) -> Any:
    @wraps(function)
    def named(name: str, *args: Any, **options: Any) -> Any:
        return function(open_folder(name, wanted=wanted), *args, **options)

    return named


def load_retriever(name: str, contract: Any = None, **options: Any) -> Any:
    """The module of a retriever, as it was saved."""
    return load_model(open_folder(name), "document", contract, **options)


def load_reranker(name: str, contract: Any = None, **options: Any) -> Any:
    """The module of a reranker of whichever kind, as it was saved."""
    return load_model(open_folder(name, wanted="reranker"), "pair", contract, **options)


retriever_to_train = _by_name(load.dense_to_train, "retriever")
reranker_to_train = _by_name(load.pointwise_to_train, "reranker")
late_to_train = _by_name(loading_late.late_to_train, "retriever")
language_model_to_train = _by_name(load.language_model_to_train, "retriever")
