from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from shortlist.errors import UserError
from shortlist.text.contract import Form, named_contract
from shortlist.text.inputs import Inputs
from shortlist.text.proof import prove, proved_inputs
from shortlist.text.tokenizer import load_tokenizer, train_bpe


@pytest.fixture
def tokenizer() -> Any:
    return train_bpe(["query: what is x", "passage: some long words"] * 5, vocab_size=300)


@pytest.mark.parametrize("name", ["repllama", "repllama-document", "rankllama", "rankllama-v1", "rankllama-v2"])
def test_what_is_as_it_should_be_passes(name: str, tokenizer):
    prove(Inputs(named_contract(name).form, tokenizer))


class Careless(Inputs):
    """Cuts an input at its end, whatever is there."""

    def _ids(self, template: Any, rows: Any, length: int | None, **_: Any) -> list[list[int]]:
        return [ids[:length] for ids in super()._ids(template, rows, None)]


@pytest.mark.parametrize(("name", "kind"), [("repllama", "query"), ("rankllama", "pair")])
def test_an_end_that_is_lost_by_cutting_is_seen(name: str, kind: str, tokenizer):
    with pytest.raises(UserError, match=f"the last token of a {kind} is .*, not <eos>"):
        prove(Careless(named_contract(name).form, tokenizer))


def test_a_pad_that_is_the_end_is_refused(tokenizer):
    inputs = Inputs(named_contract("repllama").form, tokenizer)
    inputs.pad_id = tokenizer.eos_token_id
    with pytest.raises(UserError, match="pads with its end token"):
        prove(inputs)


@pytest.mark.parametrize("token", ["<|nowhere|>", "<extra_id_7>"])
def test_a_special_token_that_is_only_letters_to_the_tokenizer_is_refused(token: str, tokenizer):
    with pytest.raises(UserError, match=f"has no token '{token}'".replace("|", r"\|")):
        prove(Inputs(Form(query=(f"{token}query: {{query}}",)), tokenizer))


def test_a_prompt_that_changes_with_what_follows_is_refused(tokenizer):
    class Backwards:
        """Reads a text from its end."""

        name_or_path, eos_token_id, pad_token_id = "backwards", 2, 0
        bos_token_id = 1

        def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
            return {"input_ids": [[ord(letter) for letter in reversed(text)] for text in texts]}

    form = Form(query=("query: {query}", "<eos>"))
    with pytest.raises(UserError, match="takes the prompt 'query: ' apart in another way"):
        prove(Inputs(form, Backwards()))


def test_a_loaded_tokenizer_never_pads_with_its_end(tmp_path, tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == "<s>"
    tokenizer.bos_token = None
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    inputs = Inputs(replace(named_contract("repllama").form, query=("{query}", "<eos>"), document=()), tokenizer)
    assert inputs.pad_id != tokenizer.eos_token_id
    prove(inputs)


def test_what_was_proved_stays_as_it_is(tokenizer):
    inputs = proved_inputs(named_contract("repllama").form, tokenizer)
    with pytest.raises(AttributeError):
        inputs.form = inputs.form.with_lengths(document=5)  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        inputs.form.document_length = 5  # type: ignore[misc]


def test_a_billion_tokens_are_proved_without_a_text_of_a_billion_words(tokenizer, monkeypatch: pytest.MonkeyPatch):
    seen, ids = [], Inputs._ids

    def counted(self: Inputs, template: Any, rows: Any, length: int | None, **options: Any) -> list[list[int]]:
        seen.extend(len(text) for row in rows for text in row.values())
        return ids(self, template, rows, length, **options)

    monkeypatch.setattr(Inputs, "_ids", counted)
    proved_inputs(named_contract("repllama").form.with_lengths(query=10**9, document=10**9), tokenizer)
    assert 100_000 < max(seen) < 1_000_000
