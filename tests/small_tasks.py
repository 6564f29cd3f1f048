"""Tasks of MTEB that are made where they are used, with nothing to fetch."""

from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from shortlist.records import Document, Qrels, Query


def small_task(
    documents: list[Document], queries: list[Query], qrels: Qrels, candidates: dict[str, list[str]] | None = None
) -> AbsTaskRetrieval:
    """A retrieval task; with candidates for each query a reranking task."""
    kind = "Reranking" if candidates else "Retrieval"
    told = {"path": "nowhere", "revision": "none"}
    unknown = ["date", "domains", "license", "annotations_creators", "dialect", "sample_creation", "bibtex_citation"]

    class SmallTask(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=f"Small{kind}",
            type=kind,
            description="A handful of texts.",
            reference=None,
            dataset=told,
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            task_subtypes=[],
            modalities=["text"],
            category="t2t",
            **dict.fromkeys(unknown),
        )

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
