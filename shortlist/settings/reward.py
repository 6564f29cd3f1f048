"""Settings of training by reward: rewards, the losses of policies, and their options."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from shortlist.config import read_options
from shortlist.errors import UserError, unknown
from shortlist.math.rewards import ANSWER_REWARDS, LIST_REWARDS
from shortlist.models.adapter_settings import ADAPTERS, parse_adapter
from shortlist.models.kinds import named_kind
from shortlist.settings.train import Config
from shortlist.text.prompts import Asks, Prompt, named_prompt


class RewardKind(NamedTuple):
    """A reward, and what it is for."""

    asks: tuple[Asks, ...]
    """What the prompts of its answers may ask for."""
    prompt: str | None = None
    """The prompt of its answers, if nobody names one (None: it rewards rankings by scores then)."""
    needs_grades: bool = False
    """Whether it compares grades, beyond relevant or not."""


_LISTS: tuple[Asks, ...] = ("order", "top", "grades")

REWARD_KINDS: dict[str, RewardKind] = {
    "ndcg": RewardKind(_LISTS),
    "mrr": RewardKind(_LISTS),
    "recall": RewardKind(_LISTS),
    "label": RewardKind(("best", "pair"), "rank-r1"),
    "exclusion": RewardKind(("worst",), "iranker"),
    "group": RewardKind(("grades",), "grouprank", needs_grades=True),
    "list": RewardKind(("grade",), "erank"),
    "binary": RewardKind(("grade",), "prorank"),
}
"""Rewards by the names that `--reward` takes."""

RANKING_OPTIONS: dict[str, Any] = {"samples": 8, "temperature": 1.0, "k": 10}
"""Options of sampled rankings: how many for each query, what divides the scores, and the places that count."""
ANSWER_OPTIONS: dict[str, Any] = {"samples": 8, "temperature": 1.0, "tokens": 0}
"""Options of sampled answers: how many for each question, what divides the logits, and the most tokens of an answer
(0: as the prompt says)."""

POLICY_OPTIONS: dict[str, dict[str, Any]] = {
    "pg": {},
    "grpo": {"clip": 0.2, "kl": 0.001, "updates": 1},
    "dr-grpo": {"clip": 0.2, "kl": 0.0, "updates": 1},
    "dapo": {"clip": 0.2, "clip_above": 0.28, "updates": 1},
    "dpo": {"beta": 0.1, "updates": 1},
    "orpo": {"beta": 0.1, "length": "none", "per_token": 0.1, "updates": 1},
}
"""What `--policy` may name, with options and defaults; `updates` are the steps of the optimizer on what was sampled."""

LENGTH_CHOICES = ("none", "multiplied", "added")
"""How `orpo` may count that an answer is shorter, as in `math.losses.policy.LENGTH_TERMS`, which loads PyTorch."""

_AT_LEAST = {"samples": 2, "k": 1, "tokens": 0, "updates": 1, "clip": 0, "clip_above": 0, "kl": 0, "per_token": 0}
_ABOVE_0 = ("temperature", "beta")


class Rewarded(NamedTuple):
    """A reward and a policy's loss, with the values of all their options."""

    reward: str
    samples: int
    temperature: float
    tokens: int
    """The most tokens of an answer (0: as the prompt says)."""
    options: Mapping[str, Any]
    """The reward's own options."""
    policy: str
    updates: int
    policy_options: Mapping[str, Any]

    @property
    def reads_start(self) -> bool:
        """Whether the loss compares with the model as it was before training."""
        return self.policy == "dpo" or bool(self.policy_options.get("kl"))


def with_reward(config: Config) -> Config:
    """Complete a training by rewards of answers to the reward's prompt.

    A language model writes them. So a reranker that answers is trained as the language model that it is.
    """
    if config.reward is None or named_kind(config.kind).role == "retriever":
        return config
    kind = REWARD_KINDS.get(config.reward.partition(",")[0])
    prompt = config.prompt or (kind.prompt if kind else None)
    return replace(config, kind="language-model", prompt=prompt) if prompt else config


def parse_rewarded(config: Config) -> Rewarded | None:
    """Parse `--reward` and `--policy`; None without a reward.

    Raises:
        UserError: an unknown name or option, or a value out of range.
    """
    if config.reward is None:
        return None
    name, _, rest = config.reward.partition(",")
    where = f"--reward {config.reward}"
    if name not in REWARD_KINDS:
        raise UserError(f"{where}: {unknown('reward', name, REWARD_KINDS)}")
    defaults = ANSWER_OPTIONS | own_options(name) if config.prompt else RANKING_OPTIONS
    options = defaults | read_options(where, name, rest, defaults)
    _check(where, options)
    policy, given, chosen = _policy(config, POLICY_OPTIONS, "grpo" if config.prompt else "pg")
    said = f"--policy {config.policy}"
    updates = chosen.pop("updates", 1)
    if updates == 1 and (clip := next((option for option in given if option.startswith("clip")), None)):
        raise UserError(f"{said}: {clip} limits updates after the first one, and there is one; add updates=2, or more.")
    common = {option: options.pop(option, 0) for option in ("samples", "temperature", "tokens")}
    return Rewarded(reward=name, **common, options=options, policy=policy, updates=updates, policy_options=chosen)


def _policy(
    config: Config, known: Mapping[str, Mapping[str, Any]], default: str
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Parse `--policy`: its name, the options given, and all options.

    Raises:
        UserError: an unknown name or option, or a value out of range.
    """
    policy, _, rest = (config.policy or default).partition(",")
    said = f"--policy {config.policy}"
    if policy not in known:
        raise UserError(f"{said}: {unknown('policy', policy, known)}")
    given = read_options(said, policy, rest, known[policy])
    chosen = {**known[policy], **given}
    _check(said, chosen)
    return policy, given, chosen


def orpo_options(config: Config) -> dict[str, Any]:
    """Return the options of `--policy orpo`, by which preferences are learned.

    Raises:
        UserError: another policy is named, or an option does not fit.
    """
    known = {"orpo": {name: value for name, value in POLICY_OPTIONS["orpo"].items() if name != "updates"}}
    return _policy(config, known, "orpo")[2]


def own_options(name: str) -> dict[str, Any]:
    """Return the options of a reward of answers, with their defaults.

    The prompt says what the highest grade is."""
    found = inspect.signature((ANSWER_REWARDS | LIST_REWARDS)[name]).parameters.values()
    return {one.name: one.default for one in found if one.kind is one.KEYWORD_ONLY and one.name != "highest"}


def _check(where: str, options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name in _AT_LEAST and value < _AT_LEAST[name]:
            raise UserError(f"{where}: {name} is {value}; expected at least {_AT_LEAST[name]}.")
        if name == "length" and str(value) not in LENGTH_CHOICES:
            raise UserError(f"{where}: {unknown('length', str(value), LENGTH_CHOICES)}")
        if name in _ABOVE_0 and not value > 0:
            raise UserError(f"{where}: {name} is {value}; expected more than 0.")


def check_reward(config: Config) -> None:
    """Refuse settings that do not go together with a reward, or say nothing without one.

    Raises:
        UserError: there is no such reward or policy, or it does not fit the rest.
    """
    if config.preferences:
        orpo_options(config)
        return
    if config.reward is None:
        if config.policy is not None:
            raise UserError("--policy: says how rewards are learned from; add --reward, or leave it out.")
        return
    rewarded = parse_rewarded(config)
    assert rewarded is not None  # for the type checker
    where = f"--reward {rewarded.reward}"
    role = named_kind(config.kind).role
    if role == "retriever":
        raise UserError(f"{where}: rewards the rankings or the answers of a reranker, and a {config.kind} gives none.")
    losses = {word.partition("=")[0].partition(".")[0] for word in config.loss}
    if config.loss != Config.loss and config.prompt:
        raise UserError(f"--loss {config.loss[0]}: is not for sampled answers, whose loss is --policy; leave it out.")
    if "policy" in losses:
        raise UserError("--loss policy: rewards rankings as --reward does; leave out one of the two.")
    if config.prompt is None:
        if role == "language-model":
            raise UserError(f"{where}: rewards answers, and none are asked for; add --prompt, such as rank-zephyr.")
        return
    check_rewarded_prompt(config, named_prompt(config.prompt))
    if config.sharded:
        raise UserError("--sharded: answers are sampled with whole models between steps; leave it out.")
    if config.adapter and not ADAPTERS[kind := parse_adapter(config.adapter).kind].merges:
        raise UserError(f"--adapter {kind}: answers are not generated with it while it trains; take lora.")


def check_rewarded_prompt(config: Config, prompt: Prompt) -> None:
    """Refuse a prompt whose answers the reward does not read.

    Raises:
        UserError: it asks for something else, or shows fewer documents.
    """
    name = str(config.reward).partition(",")[0]
    kind = REWARD_KINDS.get(name)
    if kind is None:
        return  # `check_reward` says so
    if prompt.asks not in kind.asks or prompt.encoder:
        fitting = kind.prompt or "rank-zephyr or grouprank"
        raise UserError(
            f"--prompt {prompt.name}: --reward {name} does not read its answers; take another, such as {fitting}."
        )
    count = None if config.negatives is None else config.negatives + 1
    if count and prompt.asks != "grade" and count > (prompt.most_documents() or count):
        raise UserError(
            f"--negatives {config.negatives}: the prompt {prompt.name} shows at most {prompt.most_documents()} "
            "documents."
        )


def shows_one(config: Config) -> bool:
    """Whether each document of a group is asked about by itself."""
    return config.prompt is not None and named_prompt(config.prompt).asks == "grade"
