"""The inputs of late interaction: markers, what fills queries up, and tokens that give no vector."""

from dataclasses import replace
from typing import Any

import pytest
from late import bert_tokenizer
from tiny import tokenizer as words_tokenizer

from shortlist.errors import UserError
from shortlist.records import Document, Query
from shortlist.text.contract import Form, InputContract, Reading, named_contract, presets
from shortlist.text.inputs import Inputs
from shortlist.text.marks import NO_VECTOR, TOKEN_ID, UNREAD, unmarked
from shortlist.text.proof import proved_inputs

COLBERT = named_contract("colbert").form.with_lengths(query=8, document=8)
CLS, SEP, MASK, QUERY, DOCUMENT = 2, 3, 4, 5, 6
LATE = [name for name in presets() if named_contract(name).reading.pooling == "tokens"]


def made(**change: Any) -> Inputs:
    return proved_inputs(replace(COLBERT, **change), bert_tokenizer())


def query_ids(inputs: Inputs, text: str = "which boat") -> list[int]:
    return inputs.query_ids([Query("q", text)])[0]


def document_ids(inputs: Inputs, text: str) -> list[int]:
    return inputs.document_ids([Document("d", text)])[0]


def test_a_query_is_filled_up_with_tokens_that_are_not_read():
    which, boat = query_ids(made())[2:4]
    assert query_ids(made()) == [CLS, QUERY, which, boat, SEP] + [MASK | UNREAD] * 3
    assert query_ids(made(expansion_read=True)) == [CLS, QUERY, which, boat, SEP] + [MASK] * 3
    assert query_ids(made(expansion="")) == [CLS, QUERY, which, boat, SEP]


def test_a_long_query_is_cut_to_its_length_and_has_its_end():
    ids = query_ids(made(), "which boat " * 9)
    assert len(ids) == 8
    assert ids[-1] == SEP


def test_queries_may_be_filled_up_to_less_than_their_longest():
    inputs = made(expansion_length=6)
    assert query_ids(inputs)[5:] == [MASK | UNREAD]
    assert len(query_ids(inputs, "which boat " * 9)) == 8
    assert len(query_ids(made(expansion_length=99))) == 8  # positions may be fewer than that


def test_a_query_without_text_has_markers_and_what_fills_it_up():
    assert query_ids(made(), "") == [CLS, QUERY, SEP] + [MASK | UNREAD] * 5


def test_what_fills_queries_up_may_be_any_token_of_the_vocabulary():
    assert query_ids(made(expansion="<token:[SEP]>"))[4:] == [SEP] + [SEP | UNREAD] * 3
    with pytest.raises(UserError, match=r"expansion of the input contract: '\[MASK\]' is no token"):
        made(expansion="[MASK]")
    with pytest.raises(UserError, match=r"has no '\[unused9\]' token"):
        made(query=("<cls>", "<token:[unused9]>", "{query}"))


def test_skipped_tokens_of_documents_are_marked_and_read():
    boat, sign = document_ids(made(), "boat.")[2:4]
    assert sign & NO_VECTOR
    assert document_ids(made(), "boat.") == [CLS, DOCUMENT, boat, sign, SEP]
    assert document_ids(made(skipped=()), "boat.") == [CLS, DOCUMENT, boat, sign & TOKEN_ID, SEP]
    assert not any(token & NO_VECTOR for token in query_ids(made(), "boat."))
    assert query_ids(made(skipped_in_queries=True), "boat.")[3] == sign


def test_a_skipped_word_that_the_vocabulary_lacks_takes_nothing_away():
    inputs = made(skipped=("#", "nope"))
    assert inputs.skipped == {}
    assert document_ids(inputs, "zebra # boat") == unmarked(document_ids(inputs, "zebra # boat"))


def test_texts_are_lower_cased_where_the_form_says_so():
    inputs = Inputs(Form(query=("{query}",), document=("{text}",), lower_case=True), words_tokenizer())
    assert query_ids(inputs, "WHICH Apple") == query_ids(inputs, "which apple")
    plain = Inputs(Form(query=("{query}",), document=("{text}",)), words_tokenizer())
    assert query_ids(plain, "WHICH Apple") != query_ids(plain, "which apple")


def test_what_is_of_queries_alone_makes_no_other_vectors_of_documents():
    contract = named_contract("colbert")
    form = replace(contract.form, expansion="", expansion_read=True, expansion_length=9, skipped_in_queries=True)
    assert replace(contract, form=form).of_documents() == contract.of_documents()
    fewer = replace(contract, form=replace(contract.form, skipped=(".",)))
    assert fewer.of_documents() != contract.of_documents()


def test_a_form_without_limits_is_filled_up_as_before():
    [ids] = Inputs(COLBERT.uncut(), bert_tokenizer()).query_ids([Query("q", "boat")])
    assert len(ids) == 8


def test_a_tokenizer_without_a_mask_token_fills_nothing_up():
    form = named_contract("colbert-text").form.fitted(words_tokenizer())
    assert (form.expansion, form.expansion_read) == ("", False)
    assert form.skipped == named_contract("colbert-text").form.skipped


@pytest.mark.parametrize("name", LATE)
def test_every_preset_survives_json(name: str):
    contract = named_contract(name)
    assert InputContract.from_dict(contract.to_dict(), where="contract.json") == contract


def test_marks_leave_ids_and_are_no_bits_of_one():
    assert unmarked([7, 7 | UNREAD, 7 | NO_VECTOR, 7 | UNREAD | NO_VECTOR]) == [7] * 4
    assert (UNREAD | NO_VECTOR) < 2**31  # as ids are kept in 32 bits
    assert Reading().pooling != "tokens"
