"""Tasks of MTEB and data sets of ir_datasets that are made where they are used, with nothing to fetch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from shortlist.records import Document, Qrels, Query


def small_task(
    documents: Sequence[Document],
    queries: Sequence[Query],
    qrels: Qrels,
    candidates: dict[str, list[str]] | None = None,
) -> Any:
    """A retrieval task of MTEB; with candidates for each query a reranking task."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    kind = "Reranking" if candidates else "Retrieval"
    unknown = ["date", "domains", "license", "annotations_creators", "dialect", "sample_creation", "bibtex_citation"]
    known = {
        "name": f"Small{kind}",
        "type": kind,
        "description": "A handful of texts.",
        "reference": None,
        "dataset": {"path": "nowhere", "revision": "none"},
        "eval_splits": ["test"],
        "eval_langs": ["eng-Latn"],
        "main_score": "ndcg_at_10",
        "category": "t2t",
    }

    class SmallTask(AbsTaskRetrieval):
        metadata = TaskMetadata(**dict.fromkeys(unknown) | known)

        def load_data(self, *_, **__) -> None:
            split = {
                "corpus": Dataset.from_list([{"id": d.doc_id, "title": d.title, "text": d.text} for d in documents]),
                "queries": Dataset.from_list([{"id": query.query_id, "text": query.text} for query in queries]),
                "relevant_docs": qrels,
                "top_ranked": candidates,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    return SmallTask()


def small_dataset(
    folder: Path, documents: Sequence[Document], queries: Sequence[Query], qrels: Qrels, *, monkeypatch: Any
) -> Any:
    """A data set of ir_datasets, its files in a folder."""
    monkeypatch.setenv("IR_DATASETS_HOME", str(folder / "home"))
    ir_datasets = pytest.importorskip("ir_datasets")
    from ir_datasets.formats import TrecQrels, TsvDocs, TsvQueries
    from ir_datasets.util import LocalDownload

    judgements = [
        (query_id, "0", doc_id, f"{grade}") for query_id in qrels for doc_id, grade in qrels[query_id].items()
    ]
    files = {}
    for name, rows in {"docs": [d[:2] for d in documents], "queries": queries, "qrels": judgements}.items():
        (folder / name).write_text("".join("\t".join(row) + "\n" for row in rows))
        files[name] = LocalDownload(folder / name)
    return ir_datasets.Dataset(TsvDocs(files["docs"]), TsvQueries(files["queries"]), TrecQrels(files["qrels"], {}))
