"""Every kind of head gives the scores that transformers' own model gives for the same ids, one pair at a time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from named import load_reranker, reranker_to_train
from samples import PAIRS, TEXTS
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from shortlist.errors import UserError
from shortlist.models.run import for_inference, score_pairs
from shortlist.rerankers import Candidates
from shortlist.rerankers.reranker import Reranker
from shortlist.text.contract import named_contract
from shortlist.text.inputs import Inputs
from shortlist.text.tokenizer import train_bpe

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"initializer_range": 0.2}
WIDE = SHAPE | {"hidden_size": 128, "intermediate_size": 128}


def save(folder: Path, model: PreTrainedModel, tokenizer: Any) -> PreTrainedModel:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.eval()


def words() -> PreTrainedTokenizerFast:
    """A tokenizer with BERT's special tokens."""
    fast = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    fast.train_from_iterator(TEXTS * 5, trainers.WordPieceTrainer(vocab_size=200, special_tokens=names))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=fast, **special)


def pieces() -> PreTrainedTokenizerFast:
    """A tokenizer as T5's: pieces that know of the space before them."""
    names = [f"▁{word}" for word in ("true", "false", "Query", "Document", "Relevant", "what", "long", "list")]
    letters = sorted({letter for text in [*TEXTS, "Query: Document: Relevant:"] for letter in text if letter != " "})
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<extra_id_10>", 0.0)]
    vocabulary += [(name, -2.0) for name in names] + [(letter, -6.0) for letter in ["▁", *letters]]
    fast = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=fast, **special, extra_special_tokens=["<extra_id_10>"])


@torch.inference_mode()
def alone(ids: list[list[int]], model: Callable[..., torch.Tensor]) -> np.ndarray:
    return np.array([float(model(torch.tensor([row]))) for row in ids])


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert expected.std() > 0.03  # else any two would be close
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=1e-6)


def classifiers(num_labels: int) -> dict[str, PreTrainedModel]:
    size, special = {"vocab_size": 200, "num_labels": num_labels}, {"pad_token_id": 0}
    torch.manual_seed(0)
    return {
        "bert": BertForSequenceClassification(BertConfig(**SHAPE, **size)),
        "roberta": RobertaForSequenceClassification(RobertaConfig(**SHAPE, **size, **special)),
        "distilbert": DistilBertForSequenceClassification(
            DistilBertConfig(dim=64, hidden_dim=96, n_layers=2, n_heads=4, initializer_range=0.2, **size)
        ),
        "modernbert": ModernBertForSequenceClassification(
            ModernBertConfig(**SHAPE, **size, **special, bos_token_id=2, cls_token_id=2, eos_token_id=3, sep_token_id=3)
        ),
    }


@pytest.mark.parametrize("num_labels", [1, 2])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_a_cross_encoder_scores_with_its_own_head(family: str, num_labels: int, tmp_path: Path):
    reference = save(tmp_path, classifiers(num_labels)[family], words())
    contract = "cross-encoder-roberta" if family == "roberta" else "cross-encoder"
    reranker = load_reranker(str(tmp_path), contract=contract)
    ids = reranker.inputs.pair_ids(PAIRS)

    def theirs(row: torch.Tensor) -> torch.Tensor:
        first_end = (row[0] == 3).nonzero()[0]
        types = {"token_type_ids": (torch.arange(row.shape[1]) > first_end).long()[None]} if family == "bert" else {}
        logits = reference(input_ids=row, **types).logits[0]
        return logits[0] if num_labels == 1 else logits[1] - logits[0]

    expected = alone(ids, theirs)
    close(score_pairs(reranker, PAIRS), expected)
    for_inference(reranker)
    close(score_pairs(reranker, PAIRS), expected)


def test_token_types_tell_the_query_from_the_document(tmp_path: Path):
    save(tmp_path, classifiers(1)["bert"], words())
    reranker = load_reranker(str(tmp_path), contract="cross-encoder")
    scores = score_pairs(reranker, PAIRS)
    reranker.backbone.bert.embeddings.token_type_embeddings.weight.data[1, :32] += 1  # type: ignore[union-attr]
    assert np.abs(score_pairs(reranker, PAIRS) - scores).min() > 1e-3


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("contract", ["monot5", "rankt5"])
def test_an_encoder_decoder_scores_by_its_first_answer(contract: str, tied: bool, tmp_path: Path):
    torch.manual_seed(0)
    tokenizer = pieces()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=0,
        tie_word_embeddings=tied, feed_forward_proj="relu" if tied else "gated-gelu",
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    reference = save(tmp_path, model, tokenizer)
    reranker = load_reranker(str(tmp_path), contract=contract)
    ids = reranker.inputs.pair_ids(PAIRS)
    answers = tokenizer.convert_tokens_to_ids(list(named_contract(contract).reading.answer))
    assert tokenizer.unk_token_id not in answers

    def theirs(row: torch.Tensor) -> torch.Tensor:
        logits = reference(input_ids=row, decoder_input_ids=torch.tensor([[0]])).logits[0, 0]
        return logits[answers[0]] - logits[answers[1]] if len(answers) == 2 else logits[answers[0]]

    expected = alone(ids, theirs)
    close(score_pairs(reranker, PAIRS), expected)
    for_inference(reranker)
    close(score_pairs(reranker, PAIRS), expected)


def test_the_t5_form_equals_the_whole_text_tokenised_at_once(tmp_path: Path):
    torch.manual_seed(0)
    tokenizer = pieces()
    config = T5Config(vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=96, num_layers=1, num_heads=4)
    save(tmp_path, T5ForConditionalGeneration(config), tokenizer)
    reranker = load_reranker(str(tmp_path), contract="monot5")
    query, document = PAIRS[0]
    text = f"Query: {query.text} Document: {document.title} {document.text} Relevant:"
    [ids] = reranker.inputs.pair_ids([PAIRS[0]])
    assert ids == [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_scores_by_yes_and_no(tied: bool, tmp_path: Path):
    torch.manual_seed(0)
    tokenizer = train_bpe(["yes no yes no", *TEXTS] * 5, vocab_size=300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    heads = {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": tied}
    reference = save(tmp_path, Qwen3ForCausalLM(Qwen3Config(vocab_size=302, **SHAPE, **heads)), tokenizer)
    reranker = load_reranker(str(tmp_path), contract="qwen3-reranker")
    ids = reranker.inputs.pair_ids(PAIRS)
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])

    def theirs(row: torch.Tensor) -> torch.Tensor:
        logits = reference(input_ids=row).logits[0, -1]
        return logits[yes] - logits[no]

    expected = alone(ids, theirs)
    close(score_pairs(reranker, PAIRS), expected)
    for_inference(reranker)
    close(score_pairs(reranker, PAIRS), expected)


@pytest.mark.parametrize(
    ("contract", "answer", "config", "model"),
    [
        ("mxbai-rerank-v2", ("1", "0"), Qwen2Config, Qwen2ForCausalLM),
        ("bge-reranker-v2-gemma", ("Yes",), GemmaConfig, GemmaForCausalLM),
    ],
)
def test_a_language_model_scores_by_the_answer_of_its_contract(
    contract: str, answer: tuple[str, ...], config: Any, model: Any, tmp_path: Path
):
    torch.manual_seed(0)
    tokenizer = train_bpe(["Yes No"] * 50 + TEXTS * 5, vocab_size=300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    heads = {"num_key_value_heads": 2, "head_dim": 16}
    reference = save(tmp_path, model(config(vocab_size=302, **SHAPE, **heads)), tokenizer)
    reranker = load_reranker(str(tmp_path), contract=contract)
    tokens = tokenizer.convert_tokens_to_ids(list(answer))

    def theirs(row: torch.Tensor) -> torch.Tensor:
        logits = reference(input_ids=row).logits[0, -1]
        return logits[tokens[0]] - (logits[tokens[1]] if len(tokens) > 1 else 0)

    close(score_pairs(reranker, PAIRS), alone(reranker.inputs.pair_ids(PAIRS), theirs))


@pytest.mark.parametrize("num_labels", [1, 2])
def test_a_decoders_classifier_may_have_one_label_or_two(num_labels: int, tmp_path: Path):
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(vocab_size=300, num_labels=num_labels, **SHAPE))
    reference = save(tmp_path, model, train_bpe(TEXTS * 5, vocab_size=300))
    reranker = load_reranker(str(tmp_path), contract="rankllama")

    def theirs(row: torch.Tensor) -> torch.Tensor:
        logits = reference(input_ids=row).logits[0]
        return logits[-1] - logits[0] if num_labels == 2 else logits[0]

    close(score_pairs(reranker, PAIRS), alone(reranker.inputs.pair_ids(PAIRS), theirs))


@pytest.mark.parametrize(("family", "message"), [("bert", "its head has 3 labels"), ("llama", "its head has 3 labels")])
def test_a_head_of_three_labels_is_none_for_reranking(family: str, message: str, tmp_path: Path):
    llama = LlamaForSequenceClassification(LlamaConfig(vocab_size=300, num_labels=3, **SHAPE))
    model = classifiers(3)["bert"] if family == "bert" else llama
    save(tmp_path, model, words() if family == "bert" else train_bpe(TEXTS, vocab_size=300))
    with pytest.raises(UserError, match=message):
        load_reranker(str(tmp_path), contract="cross-encoder" if family == "bert" else "rankllama")


def test_a_cross_encoder_whose_head_is_missing_is_refused(bert: Path, tmp_path: Path):
    model = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=1)
    save(tmp_path, model, words())
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith("classifier")}
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"2 weights are missing, classifier\.bias among them"):
        load_reranker(str(tmp_path), contract="cross-encoder")


def test_a_bare_encoder_is_no_cross_encoder(bert: Path):
    with pytest.raises(UserError, match="has no head for scores"):
        load_reranker(str(bert), contract="cross-encoder")


def test_a_tokenizer_without_the_answer_is_refused(llama: Path):
    with pytest.raises(UserError, match="has no token '▁true', whose logit is the score"):
        load_reranker(str(llama), contract="monot5")


def test_training_does_not_throw_a_trained_head_away(tmp_path: Path, llama: Path):
    save(tmp_path, classifiers(1)["bert"], words())
    with pytest.raises(UserError, match="is a cross-encoder, whose own head training here would replace"):
        reranker_to_train(str(tmp_path), seed=0)
    with pytest.raises(UserError, match=r"has no token '<\|im_start\|>'"):
        reranker_to_train(str(llama), named_contract("qwen3-reranker"), seed=0)


@pytest.mark.parametrize("segments", ["maxp", "avgp"])
@pytest.mark.parametrize("token_budget", [None, 40])
def test_segments_are_scored_by_themselves_and_put_together(segments: Any, token_budget: int | None, tmp_path: Path):
    save(tmp_path, classifiers(1)["bert"], words())
    reranker = load_reranker(str(tmp_path), contract="cross-encoder")
    reranker.inputs = Inputs(reranker.inputs.form.with_lengths(document=30), reranker.inputs.tokenizer)
    from shortlist.text.segments import pair_segments

    parts = pair_segments(reranker.inputs, PAIRS, stride=10)
    assert max(map(len, parts)) > 1
    combine = {"maxp": np.max, "avgp": np.mean}[segments]
    expected = np.array([combine(score_pairs(reranker, some)) for some in parts])
    scores = np.full(len(PAIRS), np.nan)
    ranker = Reranker(reranker, token_budget=token_budget, segments=segments, stride=10)
    for places, some, _ in ranker.score_lists([Candidates(query, [document]) for query, document in PAIRS]):
        assert np.isnan(scores[places]).all()  # each once
        scores[places] = some
    close(scores, expected)


@pytest.mark.parametrize("segments", ["maxp", "avgp"])
def test_one_segment_that_covers_the_document_equals_no_segmentation(segments: Any, tmp_path: Path):
    save(tmp_path, classifiers(1)["bert"], words())
    reranker = load_reranker(str(tmp_path), contract="cross-encoder")
    scores = np.empty(len(PAIRS))
    ranker = Reranker(reranker, segments=segments, stride=10)
    for places, some, _ in ranker.score_lists([Candidates(query, [document]) for query, document in PAIRS]):
        scores[places] = some
    np.testing.assert_array_equal(scores.astype(np.float32), score_pairs(reranker, PAIRS))
