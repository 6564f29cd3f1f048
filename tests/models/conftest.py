"""Backbones whose weights are large enough that a wrong token, position or mask shows in every output."""

from pathlib import Path

import pytest
import torch
from llama2c import convert
from samples import TEXTS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from shortlist.text.tokenizer import train_bpe


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA as its makers save one, language-model head and all: two layers, grouped key-value heads."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=300, initializer_range=0.2, bos_token_id=1, eos_token_id=2, **shape, **heads)
    LlamaForCausalLM(config).save_pretrained(folder)
    train_bpe(TEXTS * 5, vocab_size=300).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with a tokenizer that adds [CLS] and [SEP] by itself."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertModel(BertConfig(vocab_size=200, initializer_range=0.2, **shape)).save_pretrained(folder)
    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in TEXTS for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    fast.pre_tokenizer = split
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=fast, **special).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def stories(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real stories260K."""
    source = shared_data / "stories260K"
    return convert(source / "stories260K.bin", source / "tok512.model", tmp_path_factory.mktemp("stories"))
