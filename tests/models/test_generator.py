import inspect
from copy import deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from samples import DECODERS, small
from transformers import AutoModelForCausalLM, GraniteConfig, PreTrainedModel

from shortlist.errors import UserError
from shortlist.models.drafts import Draft
from shortlist.models.generator import Generator, _num_right
from shortlist.models.heads import OutputHead
from shortlist.models.outputs import split
from shortlist.models.prefixes import shared_prefixes
from shortlist.models.run import prepare_backbone

GRANITE = GraniteConfig(
    vocab_size=100,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    logits_scaling=3.0,
    initializer_range=0.2,
)
FAMILIES = DECODERS | {"granite": GRANITE}


def whole_model(family: str) -> Any:
    """A causal model of transformers with its head."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(deepcopy(FAMILIES[family])).eval()


def generator_of(causal: Any, **options: Any) -> Generator:
    backbone: PreTrainedModel = causal.base_model
    config = causal.config
    head = OutputHead(
        causal.lm_head.weight.detach(),
        times=1 / getattr(config, "logits_scaling", 1.0),
        cap=getattr(config, "final_logit_softcapping", None),
    )
    return Generator(backbone, head, **{"token_budget": 60, **options})


def some_prompts(count: int = 9, *, common: int = 7) -> list[list[int]]:
    """Prompts of unequal lengths, most of which begin alike in one of two ways."""
    draw = np.random.default_rng(0)
    beginnings = [draw.integers(3, 100, common).tolist(), draw.integers(3, 100, common + 4).tolist()]
    rests = [draw.integers(3, 100, draw.integers(1, 12)).tolist() for _ in range(count)]
    return [beginnings[i % 2] + rest for i, rest in enumerate(rests)] + [rests[0], rests[1][:1]]


def alone(causal: Any, ids: list[int]) -> torch.Tensor:
    """The logits after each id, of a prompt by itself."""
    with torch.no_grad():
        return causal(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_each_prompt_alone(family: str, share: bool):
    causal, prompts = whole_model(family), some_prompts()
    tokens = [5, 99, 17]
    found = generator_of(causal, share=share).logits(prompts, tokens=tokens)
    expected = torch.stack([alone(causal, prompt)[-1, tokens] for prompt in prompts])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2-windows", "gemma3"])
def test_log_probs_are_those_of_the_tokens_one_after_another(family: str, share: bool):
    causal, prompts = whole_model(family), some_prompts()
    answers = [[4, 8, 15], [16], [23, 42]] * 3 + [[], [7]]
    rows = split(generator_of(causal, share=share).log_probs(prompts, answers))
    for row, prompt, answer in zip(rows, prompts, answers, strict=True):
        every = alone(causal, prompt + answer).log_softmax(-1)
        expected = [every[len(prompt) - 1 + i, token] for i, token in enumerate(answer)]
        torch.testing.assert_close(row, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_hidden_states_are_those_at_the_marked_positions():
    causal, prompts = whole_model("qwen3"), some_prompts()
    positions = [[0, len(prompt) - 1] for prompt in prompts[:-1]] + [[]]
    rows = split(generator_of(causal).hidden(prompts, positions))
    for row, prompt, places in zip(rows, prompts, positions, strict=True):
        with torch.no_grad():
            states = causal.base_model(input_ids=torch.tensor([prompt]), use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(row, states[places], atol=1e-5, rtol=1e-5)


def continued(causal: Any, prompt: list[int], most: int, stop: set[int]) -> list[int]:
    """What transformers generates after a prompt by itself."""
    ids = causal.generate(
        torch.tensor([prompt]),
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=sorted(stop),
        pad_token_id=0,
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
    )
    return ids[0, len(prompt) :].tolist()


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_is_that_of_each_prompt_alone_token_for_token(family: str, share: bool):
    causal, prompts = whole_model(family), some_prompts()
    stop = {
        ids[4] if len(ids) > 4 else ids[-1] for ids in (continued(causal, prompt, 9, {1}) for prompt in prompts[:4])
    }
    found = generator_of(causal, share=share).generate(prompts, most=9, stop=stop)
    assert found == [[continued(causal, prompt, 9, stop)] for prompt in prompts]
    assert len({len(ids) for [ids] in found}) > 1


@pytest.mark.parametrize("precision", ["fp32"])
def test_fused_layers_generate_the_same(precision: Any):
    causal, prompts = whole_model("llama"), some_prompts()
    expected = [[continued(causal, prompt, 9, {1})] for prompt in prompts]
    logits = generator_of(causal).logits(prompts, tokens=range(100))
    generator = generator_of(causal)
    prepare_backbone(generator.backbone, torch.device("cpu"), precision=precision)
    assert type(generator.backbone.layers[0]).__name__ == "FusedLayer"
    assert generator.generate(prompts, most=9, stop={1}) == expected
    torch.testing.assert_close(generator.logits(prompts, tokens=range(100)), logits, atol=1e-4, rtol=1e-4)


def test_only_allowed_ids_follow_and_those_without_a_choice_cost_no_pass(monkeypatch: pytest.MonkeyPatch):
    causal, prompts = whole_model("llama"), some_prompts()
    passes: list[tuple[int, ...]] = []
    states = Generator._states

    def counted(self: Generator, ids: Any, *args: Any, **options: Any) -> Any:
        passes.append(tuple(ids.shape))
        return states(self, ids, *args, **options)

    monkeypatch.setattr(Generator, "_states", counted)

    def allowed(number: int, said: Any) -> set[int] | None:
        return {90} if number == 0 else {10 + number, 40} if len(said) % 2 else {7}

    found = generator_of(causal).generate(prompts, most=6, allowed=allowed)
    assert found[0] == [[90] * 6]
    for number, [ids] in enumerate(found[1:], start=1):
        assert ids[::2] == [7] * 3
        assert {*ids[1::2]} <= {10 + number, 40}
        for place in range(1, 6, 2):
            logits = alone(causal, prompts[number] + ids[:place])[-1]
            assert ids[place] == max((10 + number, 40), key=lambda token: logits[token])
    steps = [shape for shape in passes if shape[0] == len(prompts) - 1]
    assert 1 <= len(steps) <= 2  # the first id is read with the prompt, the last one is not read, and some are guessed
    assert steps[0] == (len(prompts) - 1, 2)


class Echo:
    """Chooses as told by a function of what was said, and ends at 0."""

    def __init__(self, following: Any) -> None:
        self.following = following

    def __call__(self, states: Any, names: Any, said: Any) -> list[int]:
        return [self.following(name[0], ids) for name, ids in zip(names, said, strict=True)]

    def has_ended(self, said: Any) -> bool:
        return len(said) >= 9 or bool(said and said[-1] == 0)


def test_a_guess_is_right_as_far_as_the_model_would_have_said_the_same():
    choice: Any = Echo(lambda number, said: len(said) + 1 if len(said) < 4 else 0)
    seen = [torch.zeros(1 + count, 2) for count in (3, 3, 0, 2, 4)]
    said = [[1], [1], [1, 2], [1, 2, 3], [1, 2, 3]]
    guesses = [[2, 3, 4], [2, 9, 4], [], [4, 0], [4, 0, 0, 0]]
    assert inspect.unwrap(_num_right)(choice, seen, [(row, 0) for row in range(5)], said, guesses) == [3, 1, 0, 2, 2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_guesses_change_no_answer_and_save_passes(temperature: float, monkeypatch: pytest.MonkeyPatch):
    generator, prompts = generator_of(whole_model("llama")), [[5, 6, 7, 8, 9, 5, 6], [5, 6], *some_prompts()]
    passes = {True: 0, False: 0}
    states, guess = Generator._states, Draft.guess

    def counted(self: Generator, ids: Any, *args: Any, **options: Any) -> Any:
        passes[guessing] += len(ids)
        return states(self, ids, *args, **options)

    monkeypatch.setattr(Generator, "_states", counted)
    found = {}
    for guessing in (True, False):
        monkeypatch.setattr(Draft, "guess", guess if guessing else lambda self, room: [])
        options: dict[str, Any] = {"temperature": temperature, "samples": 2, "seed": 1}
        found[guessing] = generator.generate(prompts, most=40, stop=[3], **options)
    assert found[True] == found[False]
    assert passes[True] < passes[False] or temperature


def test_a_draft_repeats_what_followed_the_same_ids():
    draft = Draft([1, 2, 3, 4, 5, 6, 7])
    draft.add([2, 3, 4])
    assert draft.guess(9) == [5, 6, 7]  # as in the prompt, where nothing in the answer is alike
    draft.add([9, 2])
    assert draft.guess(9) == [3, 4, 9, 2]
    assert draft.guess(2) == [3, 4]
    draft.learn(4, 4)
    assert draft.guess(9) == [3, 4, 9, 2, 3, 4, 9, 2]
    draft.learn(8, 0)
    assert draft.guess(9) == [3, 4]
    assert draft.guess(0) == []
    assert Draft([1]).guess(9) == []


def test_samples_depend_on_seed_and_number_and_not_on_the_batch():
    generator, prompts = generator_of(whole_model("llama")), some_prompts()
    found = generator.generate(prompts, most=5, samples=3, temperature=1.0, seed=4)
    assert generator.generate(prompts, most=5, samples=3, temperature=1.0, seed=5) != found
    assert generator.generate(prompts[:2], most=5, samples=3, temperature=1.0, seed=4) == found[:2]
    assert found[0][0] != found[0][1]


def test_samples_have_the_probabilities_of_the_model():
    causal, [prompt, *_] = whole_model("llama"), some_prompts()
    tokens = [5, 6, 7]
    probabilities = alone(causal, prompt)[-1, tokens].div(2).softmax(-1)
    found = generator_of(causal).generate([prompt], most=1, samples=600, temperature=2.0, allowed=lambda *_: tokens)
    counts = np.bincount([ids[0] for ids in found[0]], minlength=8)[5:]
    np.testing.assert_allclose(counts / 600, probabilities.numpy(), atol=0.06)


def test_no_time_means_no_answer():
    assert generator_of(whole_model("llama")).generate([[4, 5]], most=5, seconds=0.0) == [[[]]]


def test_nothing_is_made_of_nothing():
    generator = generator_of(whole_model("llama"))
    assert generator.logits([], tokens=[1]).shape == (0, 1)
    assert generator.generate([], most=3) == []
    with pytest.raises(ValueError, match="no ids"):
        generator.logits([[]], tokens=[1])


def test_a_model_that_sees_both_ways_is_refused():
    with pytest.raises(UserError, match="no causal decoder"):
        Generator(small("bert"), OutputHead(torch.randn(100, 64)))


def test_groups_hold_every_prompt_once_and_save_the_most():
    draw = np.random.default_rng(1)
    instruction, passages = draw.integers(0, 50, 20).tolist(), draw.integers(50, 100, (5, 30)).tolist()
    prompts = [[*instruction, *passages[i], *passages[j]] for i in range(5) for j in range(5) if i != j]
    groups = shared_prefixes(prompts, [1] * len(prompts))
    assert sorted(number for _, members in groups for number in members) == list(range(20))
    assert [length for length, _ in groups] == [50] * 5
    for length, members in groups:
        for one, other in pairwise(members):
            assert prompts[one][:length] == prompts[other][:length]
    assert shared_prefixes([[1, 2], [3, 4]], [1, 1])[0].length == 0
    assert shared_prefixes([[1, 2, 3]] * 3, [1, 1, 1]) == [(2, [0, 1, 2])]
    assert shared_prefixes([], []) == []
