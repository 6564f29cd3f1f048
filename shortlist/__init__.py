"""Fine-tune language models to search.

These are the names that programs need; each is imported when it is first used.
"""
# ruff: noqa: F401 (type checkers read the imports, and programs `HOMES`)

from importlib import import_module
from typing import TYPE_CHECKING, Any

from shortlist.version import __version__

if TYPE_CHECKING:
    from shortlist import (
        ask,
        average,
        convert,
        cut,
        encode,
        export,
        fuse,
        index,
        init,
        inspect,
        mcp,
        mine,
        mix,
        pool,
        prune,
        rerank,
        search,
        select,
        serve,
        train,
        verify,
    )
    from shortlist.data.collections import open_collection
    from shortlist.data.formats import read_qrels, write_corpus, write_qrels, write_queries
    from shortlist.data.groups import open_groups, write_groups
    from shortlist.data.runs import read_run, write_run
    from shortlist.data.stores.terms import TermReader, TermWriter
    from shortlist.data.stores.tokens import TokenReader, TokenWriter
    from shortlist.data.stores.vectors import VectorReader, VectorWriter
    from shortlist.errors import UserError
    from shortlist.evaluation import agree, diagnose, evaluate, lengths, report, table
    from shortlist.evaluation.measure import per_query
    from shortlist.index.bm25 import BM25Index
    from shortlist.index.flat import FlatIndex
    from shortlist.index.late import LateIndex
    from shortlist.index.sparse import SparseIndex
    from shortlist.math.fusion import rrf
    from shortlist.math.maxsim import TokenVectors
    from shortlist.math.terms import TermWeights
    from shortlist.models.late_retriever import LateRetriever
    from shortlist.models.retriever import Retriever
    from shortlist.models.sparse_retriever import SparseRetriever
    from shortlist.pipeline import Answer, Pipeline, Result
    from shortlist.records import Document, Group, Hit, Query
    from shortlist.rerankers.kinds import load_reranker
    from shortlist.rerankers.reranker import CrossEncoder, Reranker
    from shortlist.text.contract import InputContract

HOMES = {
    "data.collections": "open_collection",
    "data.formats": "read_qrels write_corpus write_qrels write_queries",
    "data.groups": "open_groups write_groups",
    "data.runs": "read_run write_run",
    "data.stores.terms": "TermReader TermWriter",
    "data.stores.tokens": "TokenReader TokenWriter",
    "data.stores.vectors": "VectorReader VectorWriter",
    "errors": "UserError",
    "evaluation.measure": "per_query",
    "index.bm25": "BM25Index",
    "index.flat": "FlatIndex",
    "index.late": "LateIndex",
    "index.sparse": "SparseIndex",
    "math.fusion": "rrf",
    "math.maxsim": "TokenVectors",
    "math.terms": "TermWeights",
    "models.late_retriever": "LateRetriever",
    "models.retriever": "Retriever",
    "models.sparse_retriever": "SparseRetriever",
    "pipeline": "Answer Pipeline Result",
    "records": "Document Group Hit Query",
    "rerankers.kinds": "load_reranker",
    "rerankers.reranker": "CrossEncoder Reranker",
    "text.contract": "InputContract",
}
"""The public names, by the module that defines them. Commands are modules, by their names:
`shortlist.train.run(shortlist.train.Config(...))`."""

__all__ = [name for names in HOMES.values() for name in names.split()]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    for home, names in HOMES.items():
        if name in names.split():
            return getattr(import_module(f"shortlist.{home}"), name)
    from shortlist.commands import COMMANDS

    if name in COMMANDS:
        return import_module(f"shortlist.{COMMANDS[name].module}")
    raise AttributeError(f"module 'shortlist' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
