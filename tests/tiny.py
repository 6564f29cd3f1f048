"""A collection and models so small that a test can train them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from named import reranker_to_train, retriever_to_train
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.models.save import save_model
from shortlist.records import Document, Query
from shortlist.text.contract import Form, InputContract, Reading, named_contract
from shortlist.text.prompts import named_prompt
from shortlist.text.tokenizer import train_bpe

NAMES = ["apple", "boat", "cello", "desk", "engine", "fern", "goat", "harbour", "island", "jacket", "kettle", "lamp"]
PARTS = ["colour", "weight", "price", "owner", "history"]
DOCUMENTS = [
    Document(
        f"d{i}", f"the {name} has a {PARTS[i % 5]} and a {PARTS[(i + 2) % 5]} of the {name} " + "really " * (i % 4)
    )
    for i, name in enumerate(NAMES)
]
QUERIES = [Query(f"q{i}", f"which {PARTS[i % 5]} has the {name}") for i, name in enumerate(NAMES)]
WORDS = ["<pad>", "<s>", "</s>", "query", "passage", "document", ":", "which", "the", "has", "a", "and", "of", "really"]
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
YES_NO = InputContract(
    Form(pair=("<bos>", "is {text} what {query} asks for?"), pair_length=64),
    Reading(answer=("yes", "no"), normalize=False),
)
"""The contract of a language model that answers with yes or no."""
ZEPHYR_CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""A chat whose turns all end with the end token, as Zephyr's do."""
SHAPE |= {"initializer_range": 0.2}  # with the usual 0.02 a layer this small hardly tells texts apart


class Tiny(NamedTuple):
    """Folders to read; a test that changes one makes its own."""

    collection: Path
    llama: Path
    """A backbone alone."""
    bert: Path
    """A backbone alone, with dropout."""
    retriever: Path
    reranker: Path
    speaker: Path
    """A language model with a chat, whose tokenizer writes anything."""


def write_collection(folder: Path) -> Path:
    """12 documents and the query that each of them answers; the first 8 are for training, all are for tests."""
    write_corpus(folder / "corpus.jsonl", DOCUMENTS)
    write_queries(folder / "queries.jsonl", QUERIES)
    write_qrels(folder / "qrels" / "train.tsv", {f"q{i}": {f"d{i}": 1} for i in range(8)})
    write_qrels(folder / "qrels" / "test.tsv", {f"q{i}": {f"d{i}": 1} for i in range(12)})
    return folder


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, with the special tokens of LLaMA and of BERT."""
    vocabulary = {word: i for i, word in enumerate([*WORDS, *PARTS, *NAMES])}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", **ends)


def write_llama(folder: Path, seed: int = 0, **settings: int) -> Path:
    """A LLaMA of one layer."""
    torch.manual_seed(seed)
    LlamaModel(LlamaConfig(vocab_size=32, pad_token_id=0, **SHAPE | settings)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_speaker(folder: Path, *, tied: bool = True, chat: str | None = ZEPHYR_CHAT, **settings: int) -> Path:
    """A language model of one layer, whose tokenizer has a token for each letter and some for words."""
    torch.manual_seed(0)
    prompts = [text for name in ("first", "rank-zephyr") for _, text, *_ in named_prompt(name).turns]
    prompts += ["yes no", *named_contract("qwen3-reranker").form.pair]
    fast = train_bpe([document.text for document in DOCUMENTS] + prompts * 3, vocab_size=800)
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    fast.chat_template = chat
    shape: dict[str, Any] = {"vocab_size": len(fast), "pad_token_id": 0, "tie_word_embeddings": tied}
    LlamaForCausalLM(LlamaConfig(**SHAPE | shape | settings)).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_layerwise(folder: Path, kind: str = "minicpm", **changed: Any) -> Path:
    """A decoder with a head behind each of the layers 2 to 4, laid out as bge-reranker-v2-minicpm-layerwise is."""
    write_llama(folder, seed=3, num_hidden_layers=4, num_key_value_heads=1)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": kind, "start_layer": 2, "head_multi": True, "head_type": "simple"}
    config |= {"rope_theta": 10000.0, "auto_map": {"AutoModel": "modeling.Some"}}
    config |= {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 16} if kind == "minicpm" else {}
    (folder / "config.json").write_text(json.dumps(config | changed))
    weights = {f"model.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    for number in range(3):
        weights[f"lm_head.{number}.linear_head.weight"] = torch.randn(1, 32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_embedder(folder: Path) -> Path:
    """A decoder with a chat and the end token of E2Rank's texts."""
    write_speaker(folder)
    _with_tokens(folder, "<|endoftext|>")
    return folder


def write_projecting(folder: Path) -> Path:
    """A decoder with both marks and a projector, laid out as jina-reranker-v3 is."""
    write_speaker(folder, max_position_embeddings=900)
    _with_tokens(folder, "<|embed_token|>", "<|rerank_token|>")
    weights = load_file(folder / "model.safetensors")
    weights |= {"projector.0.weight": torch.randn(16, 32), "projector.2.weight": torch.randn(8, 16)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _with_tokens(folder: Path, *tokens: str) -> None:
    """Give a language model more special tokens."""
    fast = AutoTokenizer.from_pretrained(folder)
    fast.add_special_tokens({"additional_special_tokens": list(tokens)})
    fast.save_pretrained(folder)
    torch.manual_seed(1)
    model = LlamaForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(fast), mean_resizing=False)
    model.save_pretrained(folder)


def write_bert(folder: Path, **settings: int) -> Path:
    """A BERT of one layer, dropout 0.1."""
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=32, pad_token_id=0, **SHAPE, **settings)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def write_all(folder: Path) -> Tiny:
    """Everything there is, under one folder."""
    llama = write_llama(folder / "llama")
    save_model(retriever_to_train(str(llama), None), folder / "retriever")
    save_model(reranker_to_train(str(llama), None, seed=0), folder / "reranker")
    collection, bert = write_collection(folder / "collection"), write_bert(folder / "bert")
    speaker = write_speaker(folder / "speaker")
    return Tiny(collection, llama, bert, folder / "retriever", folder / "reranker", speaker)


def shaken(model: Any) -> Any:
    """The model with every weight that trains moved, as training would."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()
