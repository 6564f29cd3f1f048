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


def write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values))


def write_pylate(folder: Path, *, residual: bool = False, **settings: Any) -> Path:
    """A folder of PyLate, whose prefixes are tokens that end in a space."""
    (folder / "1_Dense").mkdir(parents=True)
    tokenizer = bert_tokenizer()
    tokenizer.add_tokens(["[Q] ", "[D] "])
    model = bert()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sizes = {"in_features": model.config.hidden_size, "out_features": DIM}
    weights = {"linear.weight": torch.randn(DIM, sizes["in_features"])}
    weights |= {"residual.weight": torch.randn(DIM, sizes["in_features"])} if residual else {}
    save_file(weights, folder / "1_Dense/model.safetensors")
    identity = {"bias": False, "activation_function": "torch.nn.modules.linear.Identity", "use_residual": residual}
    write_json(folder / "1_Dense/config.json", sizes | identity)
    kinds = {"": "sentence_transformers.models.Transformer", "1_Dense": "pylate.models.Dense.Dense"}
    listed = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(kinds.items())]
    write_json(folder / "modules.json", listed)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 13, "do_lower_case": False})
    known = {"model_type": "ColBERT", "similarity_fn_name": "MaxSim", "query_prefix": "[Q] ", "document_prefix": "[D] "}
    known |= {"query_length": 10, "document_length": 14, "attend_to_expansion_tokens": False}
    known |= {"skiplist_words": [".", ",", "#"], "do_query_expansion": True, "prompts": {}}
    write_json(folder / "config_sentence_transformers.json", known | settings)
    return folder
