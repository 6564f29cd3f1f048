"""Examples for a language model that is asked about each group's documents with a prompt."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from shortlist.data.groups import negative_counts
from shortlist.data.preferences import PreferenceFile
from shortlist.errors import UserError
from shortlist.math.blocks import BLOCK_LENGTH, usual_layer
from shortlist.math.losses.answers import Likelihoods
from shortlist.models.generator import Generator
from shortlist.models.heads import OutputHead
from shortlist.models.language import Wanted, output_embedding
from shortlist.models.outputs import Rows, split
from shortlist.models.save import Trainable
from shortlist.records import Document, Query
from shortlist.rerankers.language import LONGEST_PROMPT
from shortlist.settings.parts import SUMMARY, OpenPart
from shortlist.settings.reward import orpo_options, parse_rewarded
from shortlist.settings.train import Config
from shortlist.text.conversations import end_of_answer
from shortlist.text.prompts import Prompt, named_prompt
from shortlist.text.rendering import QueryAndShown, Rendered, Renderer
from shortlist.train.block_asking import BlockAsking
from shortlist.train.examples import Batch
from shortlist.train.losses import Term, needs, total_loss
from shortlist.train.objectives import Learn, accuracy, known_groups
from shortlist.train.preferred import Preferring
from shortlist.train.rollout import Sampler
from shortlist.train.settings import losses
from shortlist.train.steps import Example, Outcome
from shortlist.train.written import Written, worth_of


@final
class Asking:
    """Asks about groups with one prompt, and writes the right answers.

    Args:
        prompt: the prompt.
        tokenizer: the model's tokenizer.
        terms: the losses, which decide whether answers are written and whether labels are ranked.
        num_docs: the most documents to show.
        longest: most tokens of a prompt with its answer.

    Raises:
        UserError: the prompt does not suit the tokenizer, or its labels cannot be told apart by one token each.
    """

    def __init__(self, prompt: Prompt, tokenizer: Any, terms: Sequence[Term], *, num_docs: int, longest: int) -> None:
        self.prompt, self.tokenizer, self.terms, self.num_docs = prompt, tokenizer, terms, num_docs
        self.writes = any(term.is_of_answers for term in terms)
        self.ranks = not all(term.is_of_answers for term in terms)
        self.end_id = end_of_answer(prompt, tokenizer)
        if prompt.asks == "queries" and self.ranks:
            raise UserError(f"--prompt {prompt.name}: its answers are queries, which --loss lm alone learns.")
        if self.writes and self.end_id is None:
            raise UserError(f"{tokenizer.name_or_path}: the tokenizer has no token that ends an answer; set eos_token.")
        reads = "logits" if self.ranks else "text"
        self.renderer = Renderer(prompt, tokenizer, most_tokens=longest - self._answer_room(), reads=reads)
        self.sample: QueryAndShown = (Query("", "a"), [Document(str(i), "a") for i in range(num_docs)])
        self.write_groups([self.sample])

    def _answer_room(self) -> int:
        """Count the tokens of an answer for which the renderer leaves no room by itself."""
        if not self.writes:
            return 0
        answer = self.prompt.full_answer(self.num_docs)
        return 1 + (len(self.tokenizer(answer, add_special_tokens=False)["input_ids"]) if self.ranks else 0)

    def write(self, batch: Batch, *, rng: np.random.Generator) -> list[Written]:
        """Ask about each group of a batch, its documents in an order that `rng` draws."""
        shown = [rng.permutation(len(group)).tolist() for group in batch.documents]
        questions = [
            (query, [group[number] for number in places])
            for query, group, places in zip(batch.queries, batch.documents, shown, strict=True)
        ]
        worths = [worth_of(batch, number) for number in range(len(questions))]
        orders = [
            sorted(range(len(places)), key=lambda place, w=worth, s=places: -w[s[place]])  # equal ones stay as shown
            for worth, places in zip(worths, shown, strict=True)
        ]
        written = self.write_groups(questions, orders)
        return [Written(ids, asked, places) for (ids, asked), places in zip(written, shown, strict=True)]

    @cached_property
    def uncut(self) -> "Asking":
        """Ask with whole texts, which may be longer than the model can read."""
        prompt = replace(self.prompt, limit=None, query_limit=None)
        return Asking(prompt, self.tokenizer, self.terms, num_docs=self.num_docs, longest=10**9)

    def largest(self, rows: int, tokens: int) -> list[Wanted]:
        """Return what is asked of so many inputs of this length, with all labels."""
        [(ids, asked)] = self.write_groups([self.sample])
        start, position = (max(1, tokens - len(ids) + place) for place in (asked.start, asked.position))
        return [Wanted(start, tokens, position, asked.labels)] * rows

    def write_groups(
        self, questions: Sequence[QueryAndShown], orders: Sequence[Sequence[int]] | None = None
    ) -> list[tuple[list[int], Wanted]]:
        """Make the token ids of prompts with their answers.

        Args:
            orders: for each question, the places of its documents from best to worst (None: as they are shown).
        """
        orders = orders or [range(len(documents)) for _, documents in questions]
        try:
            rendered = self.renderer.render_many(questions)
        except UserError as error:
            raise UserError(str(error).replace("(--window)", "(--negatives)")) from None
        labels = [self._labels(one, len(order)) for one, order in zip(rendered, orders, strict=True)]
        if not self.writes:
            ends = [len(one.ids) for one in rendered]
            asked = [Wanted(end, end, end - 1, ids) for end, ids in zip(ends, labels, strict=True)]
            return [(one.ids, each) for one, each in zip(rendered, asked, strict=True)]
        answers = [self._right_answer(query, order) for (query, _), order in zip(questions, orders, strict=True)]
        return self._with_answers(rendered, labels, answers)

    def _right_answer(self, query: Query, order: Sequence[int]) -> str:
        return query.text if self.prompt.asks == "queries" else self.prompt.right_answer(order)

    def _labels(self, one: Rendered, count: int) -> tuple[int, ...]:
        return tuple(self.renderer.label_ids(one, count)) if self.ranks else ()

    def _with_answers(
        self, rendered: Sequence[Rendered], labels: Sequence[tuple[int, ...]], answers: Sequence[str]
    ) -> list[tuple[list[int], Wanted]]:
        """Put answers behind prompts, and tokenise both together, as the model will have written them."""
        texts = [one.text + answer for one, answer in zip(rendered, answers, strict=True)]
        encodings = self.tokenizer(texts, add_special_tokens=False, verbose=False).encodings
        written = []
        for one, ids, encoding in zip(rendered, labels, encodings, strict=True):
            whole = [*encoding.ids, self.end_id]
            # a token may hold the end of the prompt with the beginning of the answer, such as `[A`; it is learned then
            start = next(place for place, (_, end) in enumerate(encoding.offsets) if end > len(one.text))
            if self.ranks and whole[: len(one.ids)] != one.ids:
                raise UserError(
                    f"prompt {self.prompt.name!r} with the tokenizer of {self.tokenizer.name_or_path}: the first label "
                    "changes the tokens before it, so its logits have no place in the answer; use --loss lm alone."
                )
            written.append((whole, Wanted(start, len(whole), len(one.ids) - 1, ids)))
        return written


def longest_prompt(config: Any, max_length: int | None) -> int:
    """Return the most tokens of a prompt with its answer.

    They are as many as asked for, or as the model has positions.
    """
    return max_length or getattr(config, "max_position_embeddings", None) or LONGEST_PROMPT


def preferring(config: Config, file: PreferenceFile, model: Trainable) -> Preferring:
    """Prepare the prompt of preferences, the one of `compress: summary`.

    Raises:
        UserError: as for `Preferring`.
    """
    prompt = named_prompt(config.prompt or SUMMARY)
    prompt = prompt if file.asked.words is None else prompt.of_words(file.asked.words)
    longest = longest_prompt(model.backbone.config, config.max_length)
    return Preferring(prompt, model.inputs.tokenizer, file, orpo_options(config), longest=longest)


def make_askings(
    config: Config, parts: Sequence[OpenPart], model: Trainable
) -> list[Asking | BlockAsking | Sampler | Preferring]:
    """Prepare the prompt for each source of a language model's training; empty without a prompt.

    Raises:
        UserError: as for `Asking`, or a source has texts of its own for another kind of input.
    """
    if config.prompt is None or config.kind == "retriever":
        return []
    if config.preferences:
        return [preferring(config, part.preferences, model) for part in parts if part.preferences]
    for part in parts:
        for name in ("queries_prompt", "documents_prompt", "instruction"):
            if getattr(part.settings, name):
                raise UserError(f"source {part.name!r}: {name} says nothing about --prompt; leave out one of the two.")
    prompts = [named_prompt(part.config.prompt or config.prompt) for part in parts]
    largest = [int(negative_counts(part.source.groups).max()) for part in parts]
    counts = [1 + min(part.config.negatives or 0, most) for part, most in zip(parts, largest, strict=True)]
    return [
        _asking(part.config, prompt, model, count) for part, prompt, count in zip(parts, prompts, counts, strict=True)
    ]


def _asking(config: Config, prompt: Prompt, model: Trainable, num_docs: int) -> Asking | BlockAsking | Sampler:
    tokenizer, known = model.inputs.tokenizer, model.backbone.config
    if rewarded := parse_rewarded(config):
        Generator(model.backbone, OutputHead(output_embedding(model).detach()), token_budget=1)  # refuses what cannot
        num_docs, longest = 1 if prompt.asks == "grade" else num_docs, longest_prompt(known, config.max_length)
        return Sampler(prompt, tokenizer, rewarded, num_docs=num_docs, longest=longest)
    if prompt.asks != "blocks":
        longest = longest_prompt(known, config.max_length)
        return Asking(prompt, tokenizer, losses(config), num_docs=num_docs, longest=longest)
    layers = known.num_hidden_layers
    if config.layer is not None and config.layer >= layers:
        raise UserError(f"--layer is {config.layer}; the model has layers 0 to {layers - 1}.")
    return BlockAsking(
        prompt,
        tokenizer,
        losses(config),
        num_docs=num_docs,
        block_length=config.max_length or BLOCK_LENGTH,
        layer=usual_layer(layers) if config.layer is None else config.layer,
        offset=config.offset,
        positions=longest_prompt(known, None),
    )


def asking_example(
    asking: Asking | BlockAsking | Sampler | Preferring,
    batch: Batch,
    terms: Sequence[Term],
    *,
    rng: np.random.Generator,
) -> Example:
    """Prepare a batch of questions for a training step.

    Args:
        rng: draws the order in which documents are shown.
    """
    if isinstance(asking, Preferring):
        return asking.example(batch)
    if isinstance(asking, Sampler):
        return asking.example(batch, rng=rng)
    written = asking.write(batch, rng=rng)
    return Example(
        [one.token_ids for one in written],
        [query.query_id for query in batch.queries],
        learn_answers(batch, written, terms, sign=-1.0 if asking.prompt.asks == "worst" else 1.0),
        any("start" in needs(term) for term in terms),
        asked=[one.asked for one in written],
    )


def learn_answers(batch: Batch, written: Sequence[Written], terms: Sequence[Term], *, sign: float = 1.0) -> Learn:
    """Learn right answers, and rank each query's documents by the logits of their labels.

    The accuracy is that of the ranking; without one it is the share of the answers' tokens that were likeliest.

    Args:
        sign: of a label's logit in a document's score: -1 where the worst document is asked for.
    """
    known = known_groups(batch)
    num_tokens = torch.tensor([one.asked.end - one.asked.start for one in written])
    places = [torch.tensor(np.argsort(one.shown)) for one in written]
    ranking_terms = [term for term in terms if not term.is_of_answers]

    def scores(rows: Rows) -> Float[Tensor, "queries docs"]:
        """Put the labels' logits into the order of the group."""
        logits = [sign * row[2:][at.to(row.device)] for row, at in zip(split(rows), places, strict=True)]
        return pad_sequence(logits, batch_first=True)

    def learn(rows: Rows, /, start_rows: Rows | None = None, guide_rows: Rows | None = None) -> Outcome:
        said = torch.stack([row[:2] for row in split(rows)])
        answers = Likelihoods(said[:, 0], num_tokens.to(said.device))
        if not ranking_terms:
            likeliest = said[:, 1].sum().item() / max(1, int(num_tokens.sum()))
            return Outcome(total_loss(terms, None, answers), likeliest)
        ranking = known.beside(scores(rows), start=scores(start_rows) if start_rows else None)
        return Outcome(total_loss(terms, ranking, answers), accuracy(ranking))

    return learn
