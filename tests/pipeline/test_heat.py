import re
from inspect import unwrap
from typing import Any

import numpy as np
import pytest
from late import TEXTS, write_stanford

from shortlist import LateRetriever
from shortlist.pipeline.heat import PassageTokens, WarmPiece, passage_tokens, warm_pieces


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LateRetriever:
    return LateRetriever.load(str(write_stanford(tmp_path_factory.mktemp("heat") / "model")))


@pytest.mark.parametrize("text", TEXTS[:2])
def test_every_word_gets_the_similarity_of_its_vector(model, text):
    tokens: Any = passage_tokens(model.inputs, text)
    query, passage = model.encode_queries("which boat"), model.encode_documents(text)
    pieces = warm_pieces(text, tokens, query, passage)
    assert "".join(piece.text for piece in pieces) == text
    warm: Any = [piece for piece in pieces if piece.similarity is not None]
    assert [piece.text for piece in warm] == re.findall(r"\w+", text)
    inside = (passage @ query.T).max(1)[2 : 2 + len(warm)]  # behind [CLS] and the marker; signs have no vectors
    np.testing.assert_allclose([piece.similarity for piece in warm], inside, atol=1e-6)


def test_a_word_gets_the_best_of_its_tokens():
    tokens = PassageTokens([5, 6, 7], [(0, 2), (2, 4), (5, 8)], [0, 1, 2])
    vectors = np.array([[0.5], [0.25], [-1.0]], dtype=np.float32)
    pieces = warm_pieces("boat the end", tokens, np.ones((1, 1), np.float32), vectors)
    found = [WarmPiece("boat", 0.5), WarmPiece(" "), WarmPiece("the", -1.0), WarmPiece(" "), WarmPiece("end")]
    assert pieces == found  # what the model has not read has no similarity


def test_a_passage_that_is_cut_is_warm_at_its_beginning(model):
    tokens: Any = passage_tokens(model.inputs, "apple " * 40)
    assert 0 < len(tokens.rows) < 14
    assert tokens.spans[0] == (0, 5)


def test_a_passage_without_words_has_no_tokens(model):
    assert passage_tokens(model.inputs, "") is None


def test_tokens_that_the_model_reads_otherwise_are_not_guessed(model):
    class Other:
        tokenizer = model.inputs.tokenizer
        token_spans = model.inputs.token_spans

        def document_ids(self, documents):
            return [[1, 1, 1]]

    assert unwrap(passage_tokens)(Other(), "apple") is None
