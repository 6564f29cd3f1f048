#!/usr/bin/env bash
# transformers 5.23.0: `transformers serve` takes `logprobs` and `n` of OpenAI's API and does neither, without a word.
#
# Its chat completions answer a request for two samples with their log-probabilities by 200 with one sample and no
# log-probabilities. A client that reads a model's certainty or votes over samples has to look whether they are there.
#
# Seen: status 200, 1 choice of 2, logprobs None.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2> /dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 "transformers[serving]==5.23.0"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

letters = ["<s>", "</s>", *pre_tokenizers.ByteLevel.alphabet()]
fast = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="</s>", pad_token="</s>")
tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
tokenizer.save_pretrained("model")
shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
LlamaForCausalLM(LlamaConfig(**shape, vocab_size=len(letters), **ends)).save_pretrained("model")
PYTHON
"$folder/venv/bin/transformers" serve --host 127.0.0.1 --port 18234 > serve.log 2>&1 &
"$folder/venv/bin/python" - <<'PYTHON'
import json
import time
import urllib.error
import urllib.request

body = {"model": "./model", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
body |= {"stream": False, "temperature": 1.0, "n": 2, "logprobs": True, "top_logprobs": 3}
request = urllib.request.Request(
    "http://127.0.0.1:18234/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
)
for _ in range(120):
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, found = answer.status, json.load(answer)
        break
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{error.code}: {error.read()[:300]}")
    except urllib.error.URLError:
        time.sleep(1)
print(status, len(found["choices"]), found["choices"][0].get("logprobs"))
assert status == 200
assert len(found["choices"]) == 1
assert found["choices"][0].get("logprobs") is None
PYTHON
