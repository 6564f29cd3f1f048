"""Attention read within fast passes: what transformers' plain attention says, whatever the pass computes together."""

from typing import Any

import pytest
import torch
from test_generator import generator_of, some_prompts, whole_model

from shortlist.data.heads import Head
from shortlist.errors import UserError
from shortlist.models.reading import all_heads, make_readable
from shortlist.models.run import prepare_backbone

FAMILIES = ["llama", "qwen2", "qwen3", "mistral"]


def asked(prompts: list[list[int]]) -> list[slice]:
    """The last half of each prompt, or its only token."""
    return [slice(len(prompt) - max(1, len(prompt) // 4), len(prompt)) for prompt in prompts]


def plain(causal: Any, prompt: list[int], asking: slice) -> torch.Tensor:
    """The mean over asking rows of transformers' own weights, all heads under one another."""
    causal.set_attn_implementation("eager")
    with torch.no_grad():
        weights = causal(input_ids=torch.tensor([prompt]), output_attentions=True, use_cache=False).attentions
    return torch.cat([layer[0, :, asking].mean(1) for layer in weights])


def generator_and_expected(family: str, prompts: list[list[int]], *, fused: bool, **options: Any) -> Any:
    causal = whole_model(family)
    expected = [plain(causal, prompt, span) for prompt, span in zip(prompts, asked(prompts), strict=True)]
    causal.set_attn_implementation("sdpa")
    generator = generator_of(causal, **options)
    make_readable(generator.backbone)
    if fused:
        prepare_backbone(generator.backbone, torch.device("cpu"))
    return generator, expected


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_mass_is_that_of_plain_attention(family: str, share: bool, fused: bool):
    prompts = some_prompts()
    generator, expected = generator_and_expected(family, prompts, fused=fused, share=share)
    for found, wanted in zip(generator.attention(prompts, asked(prompts)), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_chosen_heads_come_in_their_order_and_later_layers_are_not_run(fused: bool, monkeypatch: pytest.MonkeyPatch):
    prompts = some_prompts()
    generator, expected = generator_and_expected("llama", prompts, fused=fused)
    heads = [Head(0, 3), Head(0, 1)]
    layers = generator.backbone.layers
    if fused:
        monkeypatch.setattr(layers[0].down, "forward", None)  # an MLP of the last layer read
    monkeypatch.setattr(layers[1], "forward", None)
    for found, wanted in zip(generator.attention(prompts, asked(prompts), heads=heads), expected, strict=True):
        torch.testing.assert_close(found, wanted[[3, 1]], atol=1e-5, rtol=1e-5)


def test_reading_changes_nothing_that_the_model_computes():
    prompts, tokens = some_prompts(), range(100)
    before = generator_of(whole_model("qwen3")).logits(prompts, tokens=tokens)
    generator = generator_of(whole_model("qwen3"))
    generator.attention(prompts, asked(prompts))
    assert torch.equal(generator.logits(prompts, tokens=tokens), before)


@pytest.mark.parametrize("fused", [False, True])
def test_products_with_the_last_query_are_those_before_the_softmax(fused: bool):
    prompts = some_prompts()
    generator, _ = generator_and_expected("llama", prompts, fused=fused)
    last = [slice(len(prompt) - 1, len(prompt)) for prompt in prompts]
    mass = generator.attention(prompts, last)
    for found, wanted in zip(generator.attention(prompts, asked(prompts), signal="qk"), mass, strict=True):
        torch.testing.assert_close(found.softmax(-1), wanted, atol=1e-5, rtol=1e-5)
        assert found.abs().max() > 0.1


def test_a_model_that_is_not_read_says_which_are():
    generator = generator_of(whole_model("gemma2"))
    with pytest.raises(UserError, match=r"Gemma2\w+: its attention cannot be read here; .* such as LLaMA"):
        generator.attention([[3, 4, 5]], [slice(2, 3)])
    assert generator.backbone.config._attn_implementation == "eager"


def test_heads_that_are_not_there_are_refused():
    generator = generator_of(whole_model("llama"))
    assert len(all_heads(generator.backbone)) == 8
    with pytest.raises(UserError, match=r"head 2-0: the model has layers 0 to 1 with heads 0 to 3 each"):
        generator.attention([[3, 4]], [slice(1, 2)], heads=[Head(2, 0)])
    with pytest.raises(UserError, match="no heads are to be read"):
        generator.attention([[3, 4]], [slice(1, 2)], heads=[])
    with pytest.raises(UserError, match="unknown signal 'mas': perhaps 'mass'"):
        generator.attention([[3, 4]], [slice(1, 2)], signal="mas")
