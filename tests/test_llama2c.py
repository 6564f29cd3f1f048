from pathlib import Path

import pytest
import torch
from llama2c import convert
from transformers import LlamaForCausalLM

from shortlist.text.tokenizer import load_tokenizer

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball."
)


def test_stories260k_continues_the_known_sentence(shared_data: Path, tmp_path: Path):
    stories = shared_data / "stories260K"
    folder = convert(stories / "stories260K.bin", stories / "tok512.model", tmp_path)
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), load_tokenizer(folder)
    prompt = torch.tensor([[1, *tokenizer("Once upon a time", add_special_tokens=False)["input_ids"]]])
    written = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=60, do_sample=False)
    assert tokenizer.decode(written[0], skip_special_tokens=True).startswith(STORY)


def test_babyllama_knows_its_language(shared_data: Path, tmp_path: Path):
    """This story costs 0.18 bits a piece; with rows in the wrong order 5.4, by chance log2(105) = 6.7."""
    baby = shared_data / "babyllama"
    folder = convert(baby / "model5000.bin", baby / "tok105.model", tmp_path)
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder), load_tokenizer(folder)
    ids = torch.tensor([[1, *tokenizer(STORY, add_special_tokens=False)["input_ids"]]])
    with torch.inference_mode():
        loss = model(ids, labels=ids).loss
    assert loss / torch.tensor(2.0).log() < 0.5


def test_a_file_cut_short_is_refused(shared_data: Path, tmp_path: Path):
    stories = shared_data / "stories260K"
    short = tmp_path / "short.bin"
    short.write_bytes((stories / "stories260K.bin").read_bytes()[:-4])
    with pytest.raises(ValueError, match="numbers in the file"):
        convert(short, stories / "tok512.model", tmp_path)
