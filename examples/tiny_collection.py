"""A collection small enough to read, in BEIR layout, for the examples beside it."""

import tempfile
from pathlib import Path

from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.records import Document, Query

ANIMALS = {  # name: where it lives, what it eats, how it sleeps
    "otter": ("in rivers and along quiet coasts", "fish, crabs and mussels", "afloat on its back, holding weed"),
    "badger": ("under woods, in a burrow of many rooms", "worms, roots and fallen fruit", "through the day on dry hay"),
    "owl": ("in barns and hollow trees", "mice and voles, bones and all", "by day, upright on a branch"),
    "bat": ("in caves and under old roofs", "moths and midges caught in flight", "upside down, in a crowd"),
    "salmon": ("in the sea, and goes back to its river to breed", "small fish and shrimp", "hovering, eyes open"),
    "hedgehog": ("in hedges and under leaves", "slugs, beetles and fallen fruit", "the whole winter, rolled up"),
    "swift": ("in the air, for months at a time", "flies and moths caught in flight", "gliding, high above towns"),
    "seal": ("on cold coasts and on ice", "fish and squid", "on the beach or afloat, nose in the air"),
}
ASKED = ("Where does the {} live?", "What does the {} eat?", "How does the {} sleep?")
SAID = ("The {} lives {}.", "The {} eats {}.", "The {} sleeps {}.")


def tiny_collection() -> str:
    """Write the collection into a new temporary folder, the last two animals as its test split; returns the folder."""
    folder = Path(tempfile.mkdtemp(prefix="shortlist-example-"))
    documents, queries, qrels = [], [], {}
    for animal, facts in ANIMALS.items():
        for number, (question, sentence, fact) in enumerate(zip(ASKED, SAID, facts, strict=True)):
            documents.append(Document(f"{animal}-{number}", sentence.format(animal, fact)))
            queries.append(Query(f"{animal}?{number}", question.format(animal)))
            qrels[queries[-1].query_id] = {documents[-1].doc_id: 1}
    write_corpus(folder / "corpus.jsonl", documents)
    write_queries(folder / "queries.jsonl", queries)
    write_qrels(folder / "qrels/train.tsv", dict(list(qrels.items())[:-6]))
    write_qrels(folder / "qrels/test.tsv", dict(list(qrels.items())[-6:]))
    return str(folder)
