"""WikiQA's labelled pairs as a collection in BEIR's layout, for recipes/reranker.yaml.

    python benchmarks/wikiqa.py --pairs ../shared/data/wikiqa --out data/wikiqa

Reads train.jsonl and dev.jsonl, lines of qid, query, passage and label. Questions without an answer are left out; each
passage is a document once; labels, 0 too, are judgements.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.data.lines import parse_json, read_lines
from shortlist.records import Document, Qrels, Query

SPLITS = ("train", "dev")


@dataclass(frozen=True, kw_only=True)
class Config:
    pairs: Path
    """Folder with train.jsonl and dev.jsonl."""
    out: Path
    """Folder to write."""


def answered(pairs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The pairs of questions that have an answer."""
    known = {pair["qid"] for pair in pairs if pair["label"]}
    return (pair for pair in pairs if pair["qid"] in known)


def main(config: Config) -> None:
    documents: dict[str, Document] = {}
    queries: dict[str, Query] = {}
    for split in SPLITS:
        qrels: Qrels = {}
        for pair in answered(list(read_lines(config.pairs / f"{split}.jsonl", parse_json))):
            query_id = f"{split}-{pair['qid']}"
            queries[query_id] = Query(query_id, pair["query"])
            text = pair["passage"]
            document = documents.setdefault(text, Document(f"p{len(documents)}", text))
            judged = qrels.setdefault(query_id, {})
            judged[document.doc_id] = max(judged.get(document.doc_id, 0), int(pair["label"]))
        write_qrels(config.out / "qrels" / f"{split}.tsv", qrels)
    write_corpus(config.out / "corpus.jsonl", documents.values())
    write_queries(config.out / "queries.jsonl", queries.values())
    print(json.dumps({"documents": len(documents), "queries": len(queries)}))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
