import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from shortlist.errors import UserError
from shortlist.text.tokenizer import from_sentencepiece, load_tokenizer, train_bpe


@pytest.fixture(scope="module")
def model_file(shared_data: Path) -> Path:
    return shared_data / "llama-tokenizer/tokenizer.model"


@pytest.fixture(scope="module")
def llama(model_file: Path) -> Any:
    return from_sentencepiece(model_file)


@pytest.fixture(scope="module")
def original(model_file: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(model_file))


def ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def test_the_published_vectors_come_out(llama: Any, shared_data: Path):
    vectors = json.loads((shared_data / "llama-tokenizer/test_vectors.json").read_text("utf-8"))
    assert len(vectors) == 12
    assert [[1, *row] for row in ids(llama, [v["text"] for v in vectors])] == [v["ids"] for v in vectors]


def test_real_texts_come_out_as_from_sentencepiece(llama: Any, original: SentencePieceProcessor, shared_data: Path):
    texts = []
    for name in ("msmarco-dl19", "scifact"):
        with open(shared_data / name / "corpus.jsonl", encoding="utf-8") as file:
            texts += [json.loads(line)["text"] for line in list(file)[::40]]
    assert len(texts) > 400
    assert ids(llama, texts) == original.encode(texts)


@settings(max_examples=200)
@given(text=st.text(st.sampled_from(" \n\tab,.–é東🦙Ꙋ▁"), max_size=30))
def test_odd_strings_come_out_as_from_sentencepiece(llama: Any, original: SentencePieceProcessor, text: str):
    assert ids(llama, [text]) == [original.encode(text)]


@pytest.mark.parametrize("name", ["stories260K/tok512.model", "babyllama/tok105.model"])
def test_small_models_come_out_as_from_sentencepiece(name: str, shared_data: Path):
    tokenizer, original = from_sentencepiece(shared_data / name), SentencePieceProcessor(str(shared_data / name))
    texts = ["Once upon a time, there was a girl.", "  two  spaces ", "naïve café 東京 🦙", "line\n\nline", ""]
    assert ids(tokenizer, texts) == original.encode(texts)


def test_ids_become_text_again(llama: Any):
    text = "a  b\nc 東京 🦙 – ok"
    assert llama.decode(ids(llama, [text])[0]) == text


def test_special_tokens_are_those_of_the_model(llama: Any):
    assert (llama.unk_token_id, llama.bos_token_id, llama.eos_token_id, llama.pad_token_id) == (0, 1, 2, 0)
    assert llama.padding_side == "right"
    assert len(llama) == 32_000


def test_a_folder_with_only_tokenizer_model_loads(model_file: Path, tmp_path: Path, original: SentencePieceProcessor):
    shutil.copy(model_file, tmp_path / "tokenizer.model")
    assert ids(load_tokenizer(tmp_path), ["query:  what is x"]) == [original.encode("query:  what is x")]


def test_a_saved_tokenizer_loads_as_it_was(llama: Any, tmp_path: Path):
    texts = [" grabbed", "query:  what is x", "a\n b", "🦙"]
    llama.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert ids(loaded, texts) == ids(llama, texts)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (1, 2, 0)


def test_tokenizer_json_is_believed_whatever_class_the_folder_names(llama: Any, tmp_path: Path):
    llama.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizer"}))
    texts = [" grabbed", "query:  what is x", "a\n b"]
    assert ids(load_tokenizer(tmp_path), texts) == ids(llama, texts)


def test_a_vocabulary_of_word_pieces_loads(tmp_path: Path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "some", "text", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert ids(load_tokenizer(tmp_path), ["some texts"]) == [[5, 6, 7]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (None, b""),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b'{"model": 3}'),
        ("tokenizer.model", b""),
        ("tokenizer.model", b"no such thing"),
    ],
)
def test_what_is_no_tokenizer_is_refused(name: str | None, content: bytes, tmp_path: Path):
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer|SentencePiece"):
        load_tokenizer(tmp_path)


def test_a_sentencepiece_model_that_is_not_bpe_is_refused(tmp_path: Path):
    from sentencepiece import SentencePieceTrainer

    texts = ["some text to learn pieces from", "query passage document title double spaces", "what is x"] * 20
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=32,
        model_type="unigram",
        minloglevel=2,
    )
    with pytest.raises(UserError, match="not a BPE model that can be converted"):
        load_tokenizer(tmp_path)


def test_a_byte_level_bpe_loses_nothing():
    tokenizer = train_bpe(["def parse(text): return text", "some text"] * 3, vocab_size=300)
    text = " def  parse(été)\n\t🦙 "
    assert tokenizer.decode(ids(tokenizer, [text])[0]) == text
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


@pytest.mark.parametrize("words_only", [False, True])
def test_a_trained_bpe_keeps_to_its_size_and_is_the_same_each_time(words_only: bool):
    texts = ["the quick brown fox jumps over the lazy dog " * 3, "quick brown dogs jump over foxes"] * 5
    first, second = (train_bpe(texts, vocab_size=310, words_only=words_only) for _ in range(2))
    assert len(first) <= 310
    assert ids(first, texts) == ids(second, texts)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("parseISODate(x)", ["parse", "iso", "date", "x"]),
        ("some_long_name", ["some", "long", "name"]),
        ("HTTPServer  v2 = a.b;\n", ["http", "server", "v2", "a", "b"]),
        ("naïve Café", ["naïve", "café"]),
        ("ＤＡＴＥ ﬁle", ["date", "file"]),
        ("--- !!", []),
    ],
)
def test_words_only_sees_words_numbers_and_parts_of_identifiers(text: str, words: list[str]):
    corpus = ["parse iso date x some long name http server v2 a b naïve café file"] * 20
    tokenizer = train_bpe(corpus, vocab_size=400, words_only=True)
    core = tokenizer.backend_tokenizer
    cut = core.pre_tokenizer.pre_tokenize_str(core.normalizer.normalize_str(text))
    assert [word for word, _ in cut] == words
    assert tokenizer.convert_ids_to_tokens(ids(tokenizer, [text])[0]) == words


def test_a_tokenizer_that_was_trained_survives_a_folder(tmp_path: Path):
    tokenizer = train_bpe(["parse iso date"] * 5, vocab_size=100, words_only=True)
    tokenizer.save_pretrained(tmp_path)
    assert ids(load_tokenizer(tmp_path), ["parseISODate"]) == ids(tokenizer, ["parseISODate"])
