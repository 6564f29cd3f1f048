"""Settings of methods that ask a language model: fit together, or refused in one line before anything is loaded."""

import math
from pathlib import Path
from typing import Any

import pytest
from replying import chat, serving
from tiny import DOCUMENTS, QUERIES, Tiny

from shortlist.errors import UserError
from shortlist.math.permutation import count_questions
from shortlist.rerankers.kinds import RERANKERS, load_reranker, prepare

SERVER = {"model": "http://127.0.0.1:1/v1", "model_name": "oracle"}
ASKING = [name for name in RERANKERS if name not in ("pointwise", "late", "attention", "block", "embedding")]


def refusal(method: str, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        prepare(method, settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("listwise", {"prompt": "rank-zefyr"}, "--prompt: unknown prompt 'rank-zefyr': perhaps 'rank-zephyr'"),
        ("listwise", {"prompt": "prp"}, "--prompt: 'prp' asks for the better of two; this method needs all documents"),
        ("setwise", {"prompt": "first"}, "'first' asks for all documents in order; this method needs the best one"),
        ("listwise", {"prompt": "jina-reranker-v3"}, "asks for hidden states; this method needs all documents"),
        ("listwise", {"prompt": "lit5"}, "--prompt: 'lit5' is for an encoder with a decoder, which is not asked here"),
        ("groupwise", {"answers": "logits"}, "--answers: what 'grouprank' asks for is not read from logits"),
        ("tournament", {"answers": "logits"}, "--answers: what 'tourrank' asks for is not read from logits"),
        ("listwise", {"window": 1}, "window must be at least 2, not 1 (--window, "),
        ("listwise", {"window": 0}, "window must be at least 2, not 0"),
        ("listwise", {"stride": 0}, "stride must be at least 1, not 0"),
        ("listwise", {"passes": 0}, "with these settings nothing is asked; expected at least 1 (--window, --stride, "),
        ("pairwise", {"top": 0}, "nothing is asked"),
        ("pairwise", {"sort": "all", "top": 3}, "--top is for --sort heap and bubble, and changes nothing with all"),
        ("pairwise", {"passes": 3}, "--passes is for --sort sliding, and changes nothing with heap"),
        ("pairwise", {"sort": "sliding", "top": 3}, "--top is for --sort heap and bubble"),
        ("pairwise", {"sort": "sliding", "passes": 0}, "nothing is asked"),
        ("setwise", {"top": -1}, "nothing is asked"),
        ("setwise", {"window": 0}, "must be at least 1, not -1"),
        ("setwise", {"window": 1}, "must be at least 1, not 0"),
        ("tournament", {"repeats": 0}, "nothing is asked"),
        ("exclusion", {"window": 1}, "window must be at least 2, not 1"),
        ("groupwise", {"window": 0}, "size must be at least 1, not 0"),
        ("groupwise", {"repeats": 0}, "nothing is asked"),
        ("pairwise", {"sort": "insertion"}, "--sort: unknown sort of the method 'pairwise' 'insertion': "),
        ("setwise", {"sort": "slide"}, "unknown sort of the method 'setwise' 'slide': known: bubble, heap, ins"),
        ("listwise", {"answers": "logit"}, "--answers: unknown answers of the method 'listwise' 'logit': perhaps"),
        ("listwise", {"prompt": "first", "window": 27}, "--window: shows 27 documents at once; the prompt 'first' has"),
        ("setwise", {"window": 24}, "the prompt 'setwise' has 23 labels"),
        ("setwise", {"passes": 3}, "unknown setting of the method 'setwise' 'passes'"),
        ("listwise", {"model_name": None}, "--model-name is missing: the name that the server has for the model."),
        ("listwise", {"precision": "bf16"}, "--precision: is the server's own business; leave it out."),
        ("listwise", {"token_budget": 9}, "--token-budget: is the server's own business"),
    ],
)
def test_settings_that_no_run_suits_are_refused_in_one_line(method: str, settings: dict[str, Any], words: str):
    assert words in refusal(method, **SERVER | settings)


def test_a_model_is_needed_and_only_a_server_names_it(tiny: Tiny, tmp_path: Path):
    for method in ASKING:
        assert "--model is missing: a language model's folder or hub name, or the address of" in refusal(method)
    assert "--model-name is a server's name" in refusal("listwise", model=str(tiny.llama), model_name="x")
    assert "no such folder" in refusal("listwise", model=str(tmp_path / "nothing"))


def test_python_names_parameters_where_the_command_names_flags():
    with pytest.raises(UserError, match=r"^model_name is missing: the name that the server has for the model"):
        load_reranker("listwise", model=SERVER["model"])


def test_settings_say_what_scores_depend_on():
    def settings(method: str = "listwise", **given: Any) -> str:
        return repr(sorted(prepare(method, SERVER | given).settings.items()))

    changes: list[dict[str, Any]] = [{"prompt": "rankgpt"}, {"window": 10}, {"stride": 5}, {"passes": 2}]
    changes += [{"answers": "logits"}, {"max_length": 100}]
    assert len({settings(), *(settings(**change) for change in changes)}) == 7
    assert settings() == settings(prompt="rank-zephyr", passes=1)
    assert settings("pairwise") == settings("pairwise", sort="heap", top=10)


def test_the_identity_of_a_server_is_its_address_and_the_name_of_the_model():
    one, other = (prepare("listwise", SERVER | {"model_name": name}).identities() for name in ("a", "b"))
    assert one == {"model": "http://127.0.0.1:1/v1 a"}
    assert other != one


@pytest.mark.parametrize(("window", "stride", "calls"), [(None, None, 9), (10, None, 19), (5, None, 49), (50, 25, 3)])
def test_windows_overlap_whatever_their_size(window: int | None, stride: int | None, calls: int):
    prepared = prepare("listwise", SERVER | {"window": window, "stride": stride})
    assert count_questions(prepared.open.keywords["plan"](100)).questions == calls  # type: ignore[attr-defined]


@pytest.mark.parametrize("gives", [True, False])
def test_a_certain_grade_of_a_server_takes_its_log_probabilities(gives: bool):
    tokens = [("<answer>", 0.0), ("1", -0.5), ("0", -0.25), ("</answer>", -3.0)]
    top = [{"token": "1", "logprob": -0.5}]
    content = [{"token": token, "logprob": value, "top_logprobs": top} for token, value in tokens]
    reply = chat("".join(token for token, _ in tokens))
    reply["choices"][0]["logprobs"] = {"content": content} if gives else None
    with serving() as server:
        server.says(reply)
        settings = {"model": server.url, "model_name": "any", "prompt": "erank"}
        if not gives:
            with pytest.raises(UserError, match="gives no log-probabilities, from which the prompt 'erank' learns"):
                load_reranker("graded", **settings)
            return
        scores = load_reranker("graded", **settings).score(QUERIES[0], DOCUMENTS[:1])
    assert scores == pytest.approx([10 * math.exp(-0.75)])
