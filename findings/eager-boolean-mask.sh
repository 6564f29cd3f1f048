#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0: a boolean attention mask of four dimensions hides nothing where attention is eager.
#
# The documentation of attention masks allows a model to be given its own mask of shape [batch, 1, queries, keys]. With
# attention "sdpa" a boolean one hides what is False. With "eager" the same mask is added to the scores as 0 and 1: what
# is to be hidden is seen, without an error or a warning. Gemma 2 takes eager attention by itself.
#
# Seen: sdpa 0.0, eager more than 0.001 (how much the last state changes when a hidden token is another one).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from transformers import LlamaConfig, LlamaModel

changes = {}
for attention in ("sdpa", "eager"):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    model = LlamaModel(LlamaConfig(**shape, attn_implementation=attention)).eval()
    one, other = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[9, 4, 5, 6]])
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    mask[1:, 0] = False  # nobody but the first token itself sees the first token
    with torch.no_grad():
        states = [model(ids, attention_mask=mask[None, None]).last_hidden_state[0, -1] for ids in (one, other)]
    changes[attention] = (states[0] - states[1]).abs().max().item()
print(changes)
assert changes["sdpa"] == 0
assert changes["eager"] > 1e-3
PYTHON
