from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from shortlist.errors import UserError
from shortlist.models.encoder_decoder import EncoderDecoder, load_encoder_decoder
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.models.outputs import split

PROMPTS = [[[5, 6, 7, 8, 9, 10, 11]], [[12, 13]], [[14, 15, 16, 17]], [[5, 9, 5, 9]]]
APART = [[[5, 6, 7], [8, 9, 10, 11, 12]], [[13, 14]], [[15], [16, 17, 18], [19, 20, 21, 22]]]
BEGUN = [[0, 30, 31], [0], [0], [0, 30, 31]]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=90, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, pad_token_id=0
    )
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # or all answers are nearly alike
    return model


def alone(model: Any, inputs: list[list[int]]) -> BaseModelOutput:
    """The states of each input by itself, next to one another."""
    encoder = model.get_encoder()
    return BaseModelOutput(torch.cat([encoder(input_ids=torch.tensor([ids])).last_hidden_state for ids in inputs], 1))


@pytest.mark.parametrize("prompts", [PROMPTS, APART], ids=["one input", "apart"])
@pytest.mark.parametrize("budget", [4, 100])
@torch.inference_mode()
def test_logits_are_those_of_each_prompt_alone(model: Any, prompts: list[list[list[int]]], budget: int):
    begun, tokens = BEGUN[: len(prompts)], [40, 41, 7]
    found = EncoderDecoder(model, token_budget=budget).logits(prompts, begun, tokens=tokens)
    for row, inputs, ids in zip(found, prompts, begun, strict=True):
        expected = model(encoder_outputs=alone(model, inputs), decoder_input_ids=torch.tensor([ids])).logits
        torch.testing.assert_close(row, expected[0, -1, tokens], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prompts", [PROMPTS, APART], ids=["one input", "apart"])
@pytest.mark.parametrize("budget", [4, 100])
@torch.inference_mode()
def test_log_probs_are_those_of_each_answer_alone(model: Any, prompts: list[list[list[int]]], budget: int):
    begun, answers = BEGUN[: len(prompts)], [[40, 41, 7], [8], [9, 10], [11]][: len(prompts)]
    found = split(EncoderDecoder(model, token_budget=budget).log_probs(prompts, begun, answers))
    for row, inputs, start, answer in zip(found, prompts, begun, answers, strict=True):
        ids = torch.tensor([[*start, *answer]])
        logs = model(encoder_outputs=alone(model, inputs), decoder_input_ids=ids).logits[0].log_softmax(-1)
        expected = logs[len(start) - 1 : -1].gather(1, torch.tensor(answer)[:, None])[:, 0]
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prompts", [PROMPTS, APART], ids=["one input", "apart"])
@torch.inference_mode()
def test_generation_is_that_of_each_prompt_alone(model: Any, prompts: list[list[list[int]]]):
    begun = BEGUN[: len(prompts)]
    expected = []
    for inputs, ids in zip(prompts, begun, strict=True):
        said = list(ids)
        for _ in range(7):
            logits = model(encoder_outputs=alone(model, inputs), decoder_input_ids=torch.tensor([said])).logits
            said.append(int(logits[0, -1].argmax()))
        expected.append(said[len(ids) :])
    stop = {expected[0][3]}
    ends = [next((place + 1 for place, token in enumerate(ids) if token in stop), len(ids)) for ids in expected]
    found = EncoderDecoder(model).generate(prompts, begun, most=7, stop=stop)
    assert found == [ids[:end] for ids, end in zip(expected, ends, strict=True)]


def test_a_folder_is_loaded_and_int8_refused(model: Any, tmp_path: Path):
    model.save_pretrained(tmp_path)
    folder: ModelFolder = open_folder(str(tmp_path))
    loaded = load_encoder_decoder(folder, device="cpu")
    found = loaded.logits(PROMPTS, BEGUN, tokens=[3, 4])
    torch.testing.assert_close(found, EncoderDecoder(model).logits(PROMPTS, BEGUN, tokens=[3, 4]))
    with pytest.raises(UserError, match="int8 is not for"):
        load_encoder_decoder(folder, precision="int8")
