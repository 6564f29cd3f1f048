"""Tiny late-interaction models with random weights, in the layouts of other tools."""

import json
import string
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny import NAMES, PARTS, SHAPE
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

SIGNS = [".", ",", "!", "?", "-"]
"""Punctuation in the vocabulary; all other signs are unknown."""
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]", "which", "the", "has", "a", "of"]
TEXTS = ["the apple has a colour.", "which boat, which desk!", "zebra (unknown) - the fern?", "lamp", ""]
DIM = 12


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, with BERT's special tokens, [unused0] and [unused1]."""
    vocabulary = {word: i for i, word in enumerate([*WORDS, *SIGNS, *PARTS, *NAMES])}
    fast = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer()
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=fast, model_max_length=512, **special)


def bert(seed: int = 0, **settings: Any) -> BertModel:
    """A BERT of one layer."""
    torch.manual_seed(seed)
    return BertModel(BertConfig(vocab_size=len(bert_tokenizer()), pad_token_id=0, **SHAPE | settings)).eval()


def write_stanford(folder: Path, **metadata: Any) -> Path:
    """A folder of Stanford's ColBERT."""
    folder.mkdir(parents=True)
    model = bert()
    weight = torch.randn(DIM, model.config.hidden_size) * 0.2
    state = {f"bert.{key}": value.contiguous() for key, value in model.state_dict().items()}
    save_file(state | {"linear.weight": weight}, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"architectures": ["HF_ColBERT"]}
    (folder / "config.json").write_text(json.dumps(config))
    bert_tokenizer().save_pretrained(folder)
    known = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_token": "[Q]", "doc_token": "[D]"}
    known |= {"query_maxlen": 10, "doc_maxlen": 14, "dim": DIM, "mask_punctuation": True, "similarity": "cosine"}
    known |= {"attend_to_mask_tokens": False}
    (folder / "artifact.metadata").write_text(json.dumps(known | metadata))
    return folder


PUNCTUATION = list(string.punctuation)
