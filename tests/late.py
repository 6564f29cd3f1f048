"""Tiny late-interaction models with random weights, in the layouts of other tools."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny import NAMES, PARTS, SHAPE
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from shortlist.text.tokenizer import train_bpe

SIGNS = [".", ",", "!", "?", "-"]
"""Punctuation in the vocabulary; all other signs are unknown."""
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]", "which", "the", "has", "a", "of"]
TEXTS = ["the apple has a colour.", "which boat, which desk!", "zebra (unknown) - the fern?", "lamp", ""]
DIM = 12


def write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values))


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
    options: dict[str, Any] = {"vocab_size": len(bert_tokenizer()), "pad_token_id": 0, **SHAPE, **settings}
    return BertModel(BertConfig(**options)).eval()


def write_stanford(folder: Path, **metadata: Any) -> Path:
    """A folder of Stanford's ColBERT."""
    folder.mkdir(parents=True)
    model = bert()
    weight = torch.randn(DIM, model.config.hidden_size) * 0.2
    state = {f"bert.{key}": value.contiguous() for key, value in model.state_dict().items()}
    save_file(state | {"linear.weight": weight}, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", model.config.to_dict() | {"architectures": ["HF_ColBERT"]})
    bert_tokenizer().save_pretrained(folder)
    known = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_token": "[Q]", "doc_token": "[D]"}
    known |= {"query_maxlen": 10, "doc_maxlen": 14, "dim": DIM, "mask_punctuation": True, "similarity": "cosine"}
    known |= {"attend_to_mask_tokens": False}
    write_json(folder / "artifact.metadata", known | metadata)
    return folder


def write_pylate(folder: Path, *, residual: bool = False, **settings: Any) -> Path:
    """A folder of PyLate, whose prefixes are tokens that end in a space."""
    (folder / "1_Dense").mkdir(parents=True)
    tokenizer = bert_tokenizer()
    tokenizer.add_tokens(["[Q] ", "[D] "])
    model = bert()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sizes: dict[str, int] = {"in_features": model.config.hidden_size, "out_features": DIM}
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


def write_decoder(folder: Path) -> Path:
    """A LLaMA whose tokenizer adds no special tokens and has no mask token."""
    fast = train_bpe(TEXTS * 3, vocab_size=400)
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "vocab_size": len(fast),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **SHAPE,
    }
    LlamaModel(LlamaConfig(**options)).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_t5(folder: Path) -> Path:
    """T5's encoder, whose tokenizer ends texts with </s>."""
    fast = train_bpe(TEXTS * 3, vocab_size=400)
    end = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    fast.backend_tokenizer.post_processor = end
    torch.manual_seed(0)
    shape: dict[str, Any] = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    T5EncoderModel(T5Config(vocab_size=len(fast), pad_token_id=0, eos_token_id=2, **shape)).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_bert(folder: Path) -> Path:
    """A BERT alone."""
    bert().save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    return folder


def write_encoder(folder: Path, backbone: Path, *, mask: dict[str, Any] | None = None, **settings: Any) -> Path:
    """A MultiVectorEncoder, saved by sentence-transformers itself."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.base.modules.dense import Dense
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    prompts = settings.pop("prompts", {"query": "which ", "document": "the "})
    transformer, tokens = Transformer(str(backbone), **settings), "token_embeddings"
    torch.manual_seed(3)
    dense = Dense(32, DIM, bias=False, activation_function=torch.nn.Identity(), module_input_name=tokens)
    modules = [transformer, dense, MultiVectorMask(**mask or {}), Normalize(module_input_name=tokens)]
    MultiVectorEncoder(modules=modules, prompts=prompts, device="cpu").save_pretrained(str(folder))
    return folder
