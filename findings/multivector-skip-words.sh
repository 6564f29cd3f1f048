#!/usr/bin/env bash
# sentence-transformers 6.2.0: a skip word that is no token is left out, except where a tokenizer has no unknown token.
#
# MultiVectorMask says that words which are not in the vocabulary are dropped with a warning. It knows them by the id of
# the unknown token, which byte-level tokenizers (GPT's, Qwen's, LLaMA 3's) do not have: there the model cannot be made.
#
# Seen: TypeError: 'NoneType' object cannot be interpreted as an integer; with an unknown token, 1 skipped id.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

letters = ["<s>", "</s>", "<unk>", *pre_tokenizers.ByteLevel.alphabet()]


def tokenizer(**special):
    """A byte-level tokenizer of single bytes."""
    fast = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="</s>", pad_token="</s>", **special)


words = [".", "..."]  # the second is three tokens
known = MultiVectorMask(skiplist_words=words)
known.resolve_with_tokenizer(tokenizer(unk_token="<unk>"))
print("with an unknown token:", len(known._skiplist_ids), "skipped id")
assert len(known._skiplist_ids) == 1
try:
    MultiVectorMask(skiplist_words=words).resolve_with_tokenizer(tokenizer())
except TypeError as error:
    print("without one: TypeError:", error)
else:
    raise SystemExit("the word is dropped now, whatever the tokenizer")
PYTHON
