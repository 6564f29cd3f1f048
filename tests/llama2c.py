"""Convert a model of llama2.c (file format v0) into a Hugging Face folder: real trained weights for tests and recipes.

python tests/llama2c.py stories260K.bin tok512.model FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from shortlist.text.tokenizer import from_sentencepiece


def convert(weights: Path, tokenizer: Path, folder: Path) -> Path:
    """Write a LlamaForCausalLM with its tokenizer into a folder.

    Args:
        weights: 7 int32 (dim, hidden dim, layers, heads, key-value heads, vocabulary, length), then float32 matrices
            kind by kind, each kind for all layers.
        tokenizer: its SentencePiece model.
    """
    dim, hidden, layers, heads, kv_heads, vocabulary, length = np.fromfile(weights, dtype="<i4", count=7).tolist()
    config = LlamaConfig(
        vocab_size=abs(vocabulary),  # negative: the output matrix is another than the embeddings
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=vocabulary > 0,
        bos_token_id=1,
        eos_token_id=2,
    )
    state = _state(np.fromfile(weights, dtype="<f4", offset=28), config)
    model = LlamaForCausalLM(config)
    model.load_state_dict(state, strict=False)  # a tied output matrix is not in it
    model.save_pretrained(folder)
    from_sentencepiece(tokenizer).save_pretrained(folder)
    return folder


def _state(numbers: np.ndarray, config: LlamaConfig) -> dict[str, torch.Tensor]:
    """The weights by their Hugging Face names, in the order of the file."""
    dim, hidden, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    head_dim = dim // config.num_attention_heads
    kv_dim = head_dim * config.num_key_value_heads
    place = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal place
        start, place = place, place + int(np.prod(shape))
        return torch.from_numpy(numbers[start:place].reshape(shape).copy())

    state = {"model.embed_tokens.weight": take(config.vocab_size, dim)}
    kinds = {
        "input_layernorm": (dim,),
        "self_attn.q_proj": (dim, dim),
        "self_attn.k_proj": (kv_dim, dim),
        "self_attn.v_proj": (kv_dim, dim),
        "self_attn.o_proj": (dim, dim),
        "post_attention_layernorm": (dim,),
        "mlp.gate_proj": (hidden, dim),
        "mlp.down_proj": (dim, hidden),
        "mlp.up_proj": (hidden, dim),
    }
    for kind, shape in kinds.items():
        for layer, weight in enumerate(take(layers, *shape)):
            rotated = kind in ("self_attn.q_proj", "self_attn.k_proj")
            state[f"model.layers.{layer}.{kind}.weight"] = _halves(weight, head_dim) if rotated else weight
    state["model.norm.weight"] = take(dim)
    place += config.max_position_embeddings * head_dim  # cosines and sines
    if not config.tie_word_embeddings:
        state["lm_head.weight"] = take(config.vocab_size, dim)
    if place != len(numbers):
        raise ValueError(f"{len(numbers)} numbers in the file, {place} expected from its header")
    return state


def _halves(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of each head from pairs that rotate together (0 1, 2 3, ...) to Hugging Face's halves (0 2 ..., 1 3 ...)."""
    return weight.view(-1, head_dim // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


if __name__ == "__main__":
    print(convert(*map(Path, sys.argv[1:4])))
