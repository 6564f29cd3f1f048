"""Rollouts: samples of a model with the weights of the step, and their rewards.

A reranker's rankings are sampled from its scores, which a step computes anyway. A language model's answers are
generated before the step's forward passes, never ahead of the step.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple, final

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from shortlist.errors import UserError
from shortlist.index.bm25 import BM25Index
from shortlist.math.losses.policy import POLICIES, draw_rankings, k3, ranked
from shortlist.math.ranking import Ranking, Rollout
from shortlist.math.rewards import ANSWER_REWARDS, LIST_REWARDS, Said
from shortlist.models.generator import Generator
from shortlist.models.heads import OutputHead
from shortlist.models.language import Wanted, output_embedding
from shortlist.models.outputs import Rows, split
from shortlist.models.save import Trainable
from shortlist.records import Document, Group, Query
from shortlist.settings.reward import REWARD_KINDS, Rewarded
from shortlist.text.answers import bad_tags
from shortlist.text.conversations import end_of_answer
from shortlist.text.prompts import Prompt
from shortlist.text.rendering import QueryAndShown, Rendered, Renderer
from shortlist.train.examples import Batch
from shortlist.train.gather import ALONE, World
from shortlist.train.heldout import CANDIDATES, Heldout
from shortlist.train.losses import Term, total_loss
from shortlist.train.objectives import accuracy
from shortlist.train.steps import Example, Outcome
from shortlist.train.written import Written

TAGS = ("think", "reason", "answer")
"""Parts of an answer that prompts ask for in tags, in order."""


@final
class RankingRollout:
    """Samples rankings from a step's scores and learns from their rewards.

    Later updates of the step learn from the same samples.

    Args:
        rewarded: the reward and the loss.
        terms: losses of the scores, which are added.
    """

    def __init__(self, rewarded: Rewarded, terms: Sequence[Term]) -> None:
        self.rewarded, self.terms = rewarded, terms
        self._drawn: tuple[Tensor, Tensor] | None = None

    def __call__(self, ranking: Ranking) -> Outcome:
        """Compute the loss of a step's ranking."""
        options = {"reward": self.rewarded.reward, "temperature": self.rewarded.temperature}
        if self._drawn is None:
            drawing = {"k": self.rewarded.options["k"], "temperature": self.rewarded.temperature}
            chosen = draw_rankings(ranking, samples=self.rewarded.samples, **drawing)
            self._drawn = chosen, ranked(ranking, chosen, **options).log_probs.detach()
        chosen, before = self._drawn
        rollout = ranked(ranking, chosen, before=before, **options)
        loss, measured = learned(rollout, self.rewarded)
        more = total_loss(self.terms, ranking) if self.terms else 0.0
        return Outcome(loss + more, accuracy(ranking), measured)


def learned(rollout: Rollout, rewarded: Rewarded) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """Compute the policy's loss, and measure rewards, divergence from the start and entropy.

    The entropy is estimated by the samples, in nats for each step.
    """
    loss = POLICIES[rewarded.policy](rollout, **rewarded.policy_options)
    log_probs = rollout.log_probs.detach()
    values = {"reward": rollout.rewards.mean().item(), "entropy": -log_probs[rollout.keep].mean().item()}
    if rollout.start is not None:
        values["kl"] = k3(log_probs, rollout.start)[rollout.keep].mean().item()
    return loss, {name: round(value, 6) for name, value in values.items()}


class GroupQuestion(NamedTuple):
    """A question about documents of a group."""

    group: int
    """The number of the group in its batch."""
    asked: QueryAndShown
    grades: list[float]
    """The grade of each document shown."""


@final
class Sampler:
    """Samples a language model's answers about each group with one prompt, and rewards them.

    Args:
        prompt: the prompt.
        tokenizer: the model's tokenizer.
        rewarded: the reward and the loss.
        num_docs: the most documents to show.
        longest: the most tokens of a prompt with its answer.

    Raises:
        UserError: the prompt does not suit the tokenizer, or leaves its answer no room.
    """

    def __init__(self, prompt: Prompt, tokenizer: Any, rewarded: Rewarded, *, num_docs: int, longest: int) -> None:
        self.prompt = replace(prompt, most_tokens=rewarded.tokens) if rewarded.tokens else prompt
        self.tokenizer, self.rewarded, self.num_docs, self.longest = tokenizer, rewarded, num_docs, longest
        self.renderer = Renderer(self.prompt, tokenizer, most_tokens=longest, reads="text")
        self.stop = [token for token in {end_of_answer(prompt, tokenizer), tokenizer.eos_token_id} if token is not None]
        if not self.stop:
            raise UserError(f"{tokenizer.name_or_path}: the tokenizer has no token that ends an answer; set eos_token.")
        whole = " ".join(turn.text for turn in prompt.turns)
        self.tags = [name for name in TAGS if f"<{name}>" in whole]
        self.sample: QueryAndShown = (Query("", "a"), [Document(str(i), "a") for i in range(num_docs)])
        self.renderer.render_many([self.sample])

    def questions(self, batch: Batch, *, rng: np.random.Generator) -> list[GroupQuestion]:
        """Ask about each group's documents, in an order that `rng` draws, or one by one."""
        found = []
        for number, (query, group) in enumerate(zip(batch.queries, batch.documents, strict=True)):
            grades = grades_of(batch, number)
            order = list(range(len(group))) if self.prompt.asks == "grade" else rng.permutation(len(group)).tolist()
            parts = [[place] for place in order] if self.prompt.asks == "grade" else [order]
            for places in parts:
                shown = [group[place] for place in places]
                found.append(GroupQuestion(number, (query, shown), [grades[place] for place in places]))
        return found

    def example(self, batch: Batch, *, rng: np.random.Generator) -> Example:
        """Prepare a batch of questions; the step that learns from answers draws them."""
        questions = self.questions(batch, rng=rng)
        rendered = self._rendered(questions)
        draw = partial(self._drawn, batch=batch, questions=questions, rendered=rendered)
        return Example([], [query.query_id for query in batch.queries], _not_drawn, draw=draw)

    def _drawn(
        self,
        model: Trainable,
        *,
        batch: Batch,
        questions: Sequence[GroupQuestion],
        rendered: Sequence[Rendered],
        **how: Any,
    ) -> Example:
        """Generate answers with the model as it is now, and reward them."""
        ids = answers_of(
            model,
            [one.ids for one in rendered],
            most=[one.answer_tokens for one in rendered],
            stop=self.stop,
            samples=self.rewarded.samples,
            temperature=self.rewarded.temperature,
            **how,
        )
        said = self.said(questions, rendered, ids)
        rewards, most = rewards_of(self, questions, said), max(one.answer_tokens for one in rendered)
        different: dict[tuple[int, ...], int] = {}  # each prompt with each of its answers is read once
        tokens, asked, places = [], [], []
        for number, (one, samples) in enumerate(zip(rendered, ids, strict=True)):
            for answer in samples:
                places.append(different.setdefault((number, *answer), len(tokens)))
                if places[-1] == len(tokens):
                    tokens.append([*one.ids, *answer])
                    asked.append(Wanted(len(one.ids), len(tokens[-1]), temperature=self.rewarded.temperature))
        return Example(
            tokens,
            [query.query_id for query in batch.queries],
            AnswerRollout(self.rewarded, rewards, places, said, most=most),
            self.rewarded.reads_start,
            asked=asked,
            updates=self.rewarded.updates,
        )

    def said(
        self, questions: Sequence[GroupQuestion], rendered: Sequence[Rendered], ids: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[Said]]:
        """Read all samples of all questions."""
        return [
            [
                self._read(one.begins + self.tokenizer.decode(answer, skip_special_tokens=True), len(question.grades))
                for answer in samples
            ]
            for question, one, samples in zip(questions, rendered, ids, strict=True)
        ]

    def _read(self, answer: str, count: int) -> Said:
        scores, faults = self.prompt.parsed(answer, count)
        bad = bad_tags(answer, self.tags)
        return Said(scores, not faults and not bad, bad, "out of range" in faults)

    def mean_reward(self, model: Trainable, *, batch: Batch, seed: int, **how: Any) -> float:
        """Compute the mean reward of the likeliest answers.

        Documents are shown in an order that the seed draws."""
        questions = self.questions(batch, rng=np.random.default_rng(seed))
        rendered = self._rendered(questions)
        most = [one.answer_tokens for one in rendered]
        ids = answers_of(model, [one.ids for one in rendered], most=most, stop=self.stop, **how)
        return rewards_of(self, questions, self.said(questions, rendered, ids)).mean().item()

    def _rendered(self, questions: Sequence[GroupQuestion]) -> list[Rendered]:
        try:
            return self.renderer.render_many([question.asked for question in questions])
        except UserError as error:
            raise UserError(str(error).replace("(--window)", "(--negatives, or tokens= of --reward)")) from None

    # What a forecast asks

    @cached_property
    def uncut(self) -> "Sampler":
        """Ask with whole texts, which may be longer than the model can read."""
        prompt = replace(self.prompt, limit=None, query_limit=None)
        return Sampler(prompt, self.tokenizer, self.rewarded, num_docs=self.num_docs, longest=10**9)

    def largest(self, rows: int, tokens: int) -> list[Wanted]:
        """Return what is asked of so many inputs of this length, with the longest answers."""
        [one] = self.renderer.render_many([self.sample])
        return [Wanted(max(1, tokens - one.answer_tokens), tokens, temperature=self.rewarded.temperature)] * rows

    def write(self, batch: Batch, *, rng: np.random.Generator) -> list[Written]:
        """Return prompts with room for answers of the most tokens."""
        questions = self.questions(batch, rng=rng)
        return [
            Written([*one.ids, *[0] * one.answer_tokens], Wanted(len(one.ids), len(one.ids) + one.answer_tokens), [])
            for one in self._rendered(questions)
            for _ in range(self.rewarded.samples)
        ]


@final
class AnswerRollout:
    """Learns from answers that were sampled; later updates of the step learn from them too.

    Args:
        rewarded: the reward and the loss.
        rewards: what each answer earned.
        places: which of the different answers each sample of each question is.
        said: what was read from each.
        most: the most tokens of an answer.
    """

    def __init__(
        self,
        rewarded: Rewarded,
        rewards: Float[Tensor, "questions samples"],
        places: Sequence[int],
        said: Sequence[Sequence[Said]],
        *,
        most: int,
    ) -> None:
        self.rewarded, self.rewards, self.most = rewarded, rewards, most
        self.places = torch.tensor(places).view(rewards.shape)
        self.malformed = float(np.mean([not one.well_formed for samples in said for one in samples]))
        self._before: Tensor | None = None

    def __call__(self, rows: Rows, /, start_rows: Rows | None = None, guide_rows: Rows | None = None) -> Outcome:
        """Compute the loss from the log-probability of each token of each answer."""
        assert rows.counts is not None  # for the type checker
        log_probs = self._laid_out(rows)
        self._before = log_probs.detach() if self._before is None else self._before
        device = log_probs.device
        lengths = rows.counts.to(device)[self.places.to(device)]
        keep = torch.arange(log_probs.shape[2], device=device) < lengths[:, :, None]
        start = None if start_rows is None else self._laid_out(start_rows)
        rollout = Rollout(log_probs, self._before, self.rewards.to(device), keep, self.most, start)
        loss, measured = learned(rollout, self.rewarded)
        measured |= {
            "answer_length": round(lengths.float().mean().item(), 2),
            "malformed": round(self.malformed, 4),
        }
        return Outcome(loss, None, measured)

    def _laid_out(self, rows: Rows) -> Float[Tensor, "questions samples steps"]:
        padded = pad_sequence(split(rows), batch_first=True)
        return padded[self.places.to(padded.device)]


def _not_drawn(*rows: Rows, **beside: Rows) -> Outcome:
    raise AssertionError("an example is learned from before its answers are drawn")


def answers_of(
    model: Trainable,
    prompts: Sequence[list[int]],
    *,
    most: Sequence[int],
    stop: Sequence[int],
    samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    token_budget: int | None = None,
    bf16: bool = False,
    world: World = ALONE,
) -> list[list[list[int]]]:
    """Generate answers with a model in training, its dropout off.

    Every process generates a part of them, and all get all.

    Args:
        most: the most ids of each prompt's answers.
        seed: as for `Generator.generate`, like the arguments before it.
        token_budget: the most tokens in one forward pass.
    """
    generator = Generator(model.backbone, OutputHead(output_embedding(model).detach()), token_budget=token_budget)
    device = next(model.parameters()).device
    numbers = list(range(world.rank, len(prompts), world.size))
    model.eval()
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        found = generator.generate(
            [prompts[number] for number in numbers],
            most=max(most),
            stop=stop,
            samples=samples,
            temperature=temperature,
            seed=seed + world.rank,
        )
    model.train()
    mine = {n: [ids[: most[n]] for ids in answers] for n, answers in zip(numbers, found, strict=True)}
    if world.size > 1:
        parts: list[Any] = [None] * world.size
        dist.all_gather_object(parts, mine)
        mine = {number: answers for part in parts for number, answers in part.items()}
    return [mine[number] for number in range(len(prompts))]


def grades_of(batch: Batch, number: int) -> list[float]:
    """Return the grade of each document of a group, or whether it is relevant."""
    if batch.grades and batch.grades[number]:
        return [float(grade) for grade in batch.grades[number]]
    return [float(document.doc_id in batch.positives[number]) for document in batch.documents[number]]


def rewards_of(
    sampler: Sampler, questions: Sequence[GroupQuestion], said: Sequence[Sequence[Said]]
) -> Float[Tensor, "questions samples"]:
    """Reward each sample of each question."""
    name, options = sampler.rewarded.reward, sampler.rewarded.options
    if name in ANSWER_REWARDS:
        reward = partial(ANSWER_REWARDS[name], **options)
        rows = [[reward(one, question.grades) for one in row] for question, row in zip(questions, said, strict=True)]
        return torch.tensor(rows)
    rows, grades_highest = [], float(sampler.prompt.grades[-1])
    for group in dict.fromkeys(question.group for question in questions):
        places = [place for place, question in enumerate(questions) if question.group == group]
        grades = [questions[place].grades[0] for place in places]
        rows += LIST_REWARDS[name]([said[place] for place in places], grades, highest=grades_highest, **options)
    return torch.tensor(rows)


def heldout_batch(heldout: Heldout, *, negatives: int | None) -> Batch:
    """Make a group of each held-out query: a relevant document, and BM25's best others.

    Args:
        negatives: how many of the others (None: as many as a reranker orders).
    """
    count = CANDIDATES if negatives is None else negatives
    by_id = {document.doc_id: document for document in heldout.documents}
    most = count + max(map(len, heldout.relevant))
    hits = BM25Index.build(heldout.documents).search(heldout.queries, most)
    groups = []
    for query, relevant in zip(heldout.queries, heldout.relevant, strict=True):
        first = next(document for document in heldout.documents if document.doc_id in relevant)
        others = [by_id[hit.doc_id] for hit in hits[query.query_id] if hit.doc_id not in relevant][:count]
        groups.append([first, *others])
    return Batch(heldout.queries, groups, list(heldout.relevant))


def check_rewards(rewarded: Rewarded, groups: Sequence[Group], *, where: str) -> None:
    """Refuse groups that the reward says nothing about.

    Raises:
        UserError: some have no relevant document, or none has grades and the reward compares them.
    """
    if without := sum(not group.positives for group in groups):
        raise UserError(
            f"--reward {rewarded.reward}: {without:,} of {len(groups):,} groups of {where} have no relevant document, "
            "so nothing is rewarded; leave them out."
        )
    if REWARD_KINDS[rewarded.reward].needs_grades and not any(group.grades for group in groups):
        raise UserError(
            f"--reward {rewarded.reward}: none of the {len(groups):,} groups of {where} has grades other than relevant "
            "or not; use graded judgements, or another reward, such as ndcg."
        )
