import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import Tiny

from shortlist.data.collections import open_collection
from shortlist.data.formats import full_text
from shortlist.records import Document, Query
from shortlist.rerankers import Candidates
from shortlist.rerankers.reranker import Reranker
from shortlist.text.extracts import choose_pieces, extract, pair_extracts, sentences, word_weights, words_of

TEXT = "Otters live in rivers. They eat fish. Rivers are cold! Cold otters swim."


def spans(text: str) -> list[tuple[int, int]]:
    return [found.span() for found in re.finditer(r"\S+", text)]


def test_sentences_end_where_they_do_in_plain_and_in_tokenised_texts():
    assert [TEXT[start:end] for start, end in sentences(TEXT)] == [
        "Otters live in rivers. ",
        "They eat fish. ",
        "Rivers are cold! ",
        "Cold otters swim.",
    ]
    assert sentences("a b . c d . e") == [(0, 6), (6, 12), (12, 13)]


@given(st.text(alphabet="aB.! \n"))
def test_sentences_are_the_whole_text(text: str):
    found = sentences(text)
    assert "".join(text[start:end] for start, end in found) == text


def test_words_weigh_more_the_fewer_candidates_hold_them():
    weights = word_weights("the otters and heron", ["the otter", "the fish", "the vole"])
    assert weights == {
        "the": pytest.approx(math.log(1 + 0.5 / 3.5)),
        "otter": pytest.approx(math.log(1 + 2.5 / 1.5)),
    }
    assert words_of("Otters' gas, 2 as") == {"otter", "gas", "2", "as"}


def test_a_sentence_with_new_words_comes_before_one_with_the_same_again():
    pieces = [{"a", "b"}, {"a", "b"}, {"c"}, set()]
    weights = {"a": 1.0, "b": 1.0, "c": 1.5}
    assert choose_pieces(pieces, [4] * 4, weights, room=8, decay=0.5) == {0: 4, 2: 4}  # 2, then 1.5 before 1
    assert choose_pieces(pieces, [4] * 4, weights, room=8, decay=1.0) == {0: 4, 1: 4}
    assert choose_pieces(pieces, [4] * 4, weights, room=10, decay=0.5) == {0: 4, 1: 2, 2: 4}  # the last one is cut
    assert choose_pieces(pieces[3:] * 3, [4] * 3, weights, room=8) == {0: 4, 1: 4}  # the beginning, if nothing fits


def test_an_extract_is_in_the_order_of_the_text():
    weights = {"fish": 1.0, "swim": 2.0}
    assert extract(TEXT, spans(TEXT), weights, room=6) == "They eat fish. Cold otters swim."
    assert extract(TEXT, spans(TEXT), weights, room=5) == "They eat Cold otters swim."
    assert extract(TEXT, spans(TEXT), {}, room=4) == "Otters live in rivers."


@pytest.fixture(scope="module")
def reranker(tiny: Tiny) -> Reranker:
    return Reranker.load(str(tiny.reranker), segments="extract", window=24)


def test_a_reranker_reads_an_extract_beside_the_title(reranker: Reranker):
    query = Query("q", "which price has the apple")
    text = "the fern has a colour. " * 20 + "The apple has a price. " + "the boat has a weight. " * 20
    documents = [Document("d", text, title="harbour"), Document("short", "the lamp")]
    shorter = pair_extracts(reranker.inputs, query, documents)
    assert shorter[1] == documents[1]
    assert (shorter[0].title, "The apple has a price." in shorter[0].text) == ("harbour", True)
    [ids] = reranker.inputs.pair_ids([(query, shorter[0])], cut=False)
    assert len(ids) <= 24
    whole = Reranker(reranker.model)
    assert reranker.score(query, documents).tolist() == pytest.approx(whole.score(query, shorter).tolist())
    assert reranker.score(query, documents)[0] != pytest.approx(whole.score(query, documents)[0])


def test_scores_of_a_list_do_not_depend_on_the_lists_beside_it(reranker: Reranker):
    long = [
        Document(f"d{i}", f"the {name} has a price. " * (9 + i)) for i, name in enumerate(("apple", "boat", "fern"))
    ]
    lists = [Candidates(Query("q1", "price of the boat"), long), Candidates(Query("q2", "the fern"), long[1:])]
    parts = list(reranker.score_lists(lists))
    numbers, scores = (np.concatenate([part[place] for part in parts]).tolist() for place in (0, 1))
    together = dict(zip(numbers, scores, strict=True))
    alone = np.concatenate([reranker.score(query, documents) for query, documents in lists])
    assert [together[number] for number in range(5)] == pytest.approx(alone.tolist(), abs=1e-6)
    assert list(reranker.score_lists([])) == []


SHARES = {
    ("scifact", 32): (0.444, 0.797, 0.787),
    ("scifact", 64): (0.666, 0.947, 0.926),
    ("scifact", 128): (0.864, 0.992, 0.977),
    ("cranfield", 32): (0.556, 0.787, 0.782),
    ("cranfield", 64): (0.709, 0.943, 0.919),
    ("cranfield", 128): (0.844, 0.993, 0.979),
}
"""Share of the weights of a query's words in relevant documents that survives, of the first words and of extracts with
decay 0.5 and without, measured elsewhere with other rules for words and sentences."""


@pytest.mark.parametrize("name", ["scifact", "cranfield"])
def test_an_extract_keeps_most_of_the_weight_of_a_querys_words(shared_data: Path, name: str):
    collection = open_collection(shared_data / name)
    documents = {document.doc_id: full_text(document) for document in collection.corpus()}
    words = {doc_id: words_of(text) for doc_id, text in documents.items()}
    counts = Counter(word for found in words.values() for word in found)
    queries = {query.query_id: words_of(query.text) for query in collection.queries("test")}
    relevant = {q: [d for d, grade in judged.items() if grade > 0] for q, judged in collection.qrels("test").items()}
    pairs = [(query_id, doc_id) for query_id, found in relevant.items() for doc_id in found if doc_id in words]
    shares: dict[int, list[list[float]]] = {32: [], 64: [], 128: []}
    for query_id, doc_id in pairs[:: max(1, len(pairs) // 300)]:
        text, here = documents[doc_id], queries[query_id] & words[doc_id]
        weights = {w: math.log(1 + (len(words) - counts[w] + 0.5) / (counts[w] + 0.5)) for w in here}
        tokens, mass = spans(text), sum(weights.values())
        for room in [room for room in shares if len(tokens) > room and mass]:
            kept = [
                text[: tokens[room - 1][1]],
                *(extract(text, tokens, weights, room=room, decay=d) for d in (0.5, 1.0)),
            ]
            shares[room].append([sum(weights[w] for w in words_of(part) & here) / mass for part in kept])
    for room, found in shares.items():
        first, decayed, plain = np.mean(found, axis=0)
        assert [decayed, plain] == pytest.approx(SHARES[name, room][1:], abs=0.03)
        assert decayed >= plain > first
