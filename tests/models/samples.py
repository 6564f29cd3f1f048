"""A few queries and documents of very different lengths."""

from shortlist.records import Document, Query

QUERIES = [Query("q1", "what is a searcher"), Query("q2", "who ranks"), Query("q3", "why")]
DOCUMENTS = [
    Document("d1", "A retriever finds a long list, a reranker turns it into a short one.", title="Two stages"),
    Document("d2", "short"),
    Document("d3", "What every reader of lists has known for long: who ranks first is read first. " * 2),
    Document("d4", "", title="only a title"),
]
PAIRS = [(query, document) for query in QUERIES for document in DOCUMENTS]
TEXTS = [q.text for q in QUERIES] + [f"{d.title} {d.text}" for d in DOCUMENTS]
