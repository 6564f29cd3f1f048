"""Language models that learn which of two texts to write about a document."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from shortlist.data.preferences import PreferenceFile
from shortlist.errors import UserError
from shortlist.math.losses.policy import orpo
from shortlist.math.ranking import Rollout
from shortlist.models.language import Wanted
from shortlist.models.outputs import Rows, split
from shortlist.models.save import Trainable
from shortlist.text.batching import windows
from shortlist.text.conversations import end_of_answer
from shortlist.text.excerpts import encodings
from shortlist.text.prompts import Prompt
from shortlist.text.rendering import Renderer
from shortlist.train.examples import Batch
from shortlist.train.steps import Example, Outcome, compute_outputs
from shortlist.train.written import Written

CHECKED_AT_ONCE = 256
"""Preferences whose prompts are in memory while all are looked at."""


@final
class Preferring:
    """Writes each preference as its prompt with either answer.

    The prompt is that of `compress: summary`, token for token, and an answer ends with the token at which the model is
    stopped there.

    Args:
        prompt: the prompt.
        tokenizer: the model's tokenizer.
        file: the preferences; a batch names them by their places.
        options: of `math.losses.policy.orpo`.
        longest: most tokens of a prompt with its answer.

    Raises:
        UserError: the prompt does not suit the tokenizer.
    """

    def __init__(
        self, prompt: Prompt, tokenizer: Any, file: PreferenceFile, options: dict[str, Any], *, longest: int
    ) -> None:
        self.prompt, self.tokenizer, self.file, self.options, self.longest = prompt, tokenizer, file, options, longest
        self.renderer = Renderer(prompt, tokenizer, reads="text")
        self.end_id = end_of_answer(prompt, tokenizer)
        if self.end_id is None:
            raise UserError(f"{tokenizer.name_or_path}: the tokenizer has no token that ends an answer; set eos_token.")

    def check(self) -> None:
        """Refuse preferences that the model cannot read whole.

        Raises:
            UserError: one is too long.
        """
        for places in windows(range(len(self.file.preferences)), CHECKED_AT_ONCE):
            self.write_pairs(places)

    def write_pairs(self, places: Sequence[int]) -> list[Written]:
        """Make the token ids of preferences: of each the chosen answer, then the rejected one.

        Raises:
            UserError: a prompt with its answer is longer than the model reads.
        """
        pairs = [self.file.preferences[place] for place in places]
        prompts = self.renderer.render_many([(one.query, [one.document]) for one in pairs])
        texts = [text for one in pairs for text in (one.chosen, one.rejected)]
        owners = [prompt for prompt in prompts for _ in range(2)]
        wholes = encodings(self.tokenizer, [one.text + text for one, text in zip(owners, texts, strict=True)])
        alone, written = encodings(self.tokenizer, texts), []
        for number, (one, whole, answer) in enumerate(zip(owners, wholes, alone, strict=True)):
            count = len(one.ids)
            # a tokenizer may join the prompt's end with the answer; the model has read the prompt by itself, though
            behind = whole.ids[count:] if list(whole.ids[:count]) == one.ids else answer.ids
            ids = [*one.ids, *behind, self.end_id]
            room = min(one.answer_tokens, self.longest // 2)  # which the prompt has to leave when the model writes
            if (needed := max(len(ids), count + room)) > self.longest:
                raise UserError(
                    f"{self.file.path}:{self.file.lines[places[number // 2]]}: the prompt has {count:,} tokens and "
                    f"{needed - count:,} for its answer, and the model reads {self.longest:,}, so its document would "
                    "be cut; leave the line out, or take a model or a --max-length that reads more."
                )
            written.append(Written(ids, Wanted(count, len(ids), temperature=1.0), []))
        return written

    def example(self, batch: Batch) -> Example:
        """Prepare a batch of preferences for a training step."""
        return self._example([query.query_id for query in batch.queries])

    def _example(self, names: list[str]) -> Example:
        written = self.write_pairs(list(map(int, names)))
        lengths = torch.tensor([one.asked.end - one.asked.start for one in written])
        return Example(
            [one.token_ids for one in written],
            names,
            Learned(lengths, self.options),
            asked=[one.asked for one in written],
        )

    def loss(self, model: Trainable, **computing: Any) -> float:
        """Compute the mean loss of all preferences, without training on them.

        Args:
            computing: `token_budget`, `bf16` and `world` of `compute_outputs`.
        """
        example = self._example([str(place) for place in range(len(self.file.preferences))])
        rows = compute_outputs(model, example.token_ids, asked=example.asked, **computing)
        return example.objective(rows).loss.item()

    # What a forecast asks

    @cached_property
    def uncut(self) -> "Preferring":
        """Write whole texts, as this does too."""
        return self

    def largest(self, rows: int, tokens: int) -> list[Wanted]:
        """Return what is asked of so many inputs of this length, with the longest answers."""
        most = self.prompt.most_tokens if isinstance(self.prompt.most_tokens, int) else tokens // 2
        return [Wanted(max(1, tokens - most), tokens, temperature=1.0)] * rows

    def write(self, batch: Batch, *, rng: np.random.Generator) -> list[Written]:
        """Make the token ids of a batch of preferences."""
        return self.write_pairs([int(query.query_id) for query in batch.queries])


@final
class Learned:
    """Learns to write chosen answers, and to prefer them to rejected ones (ORPO).

    The accuracy is the share of preferences whose chosen answer has the likelier tokens, in the mean.

    Args:
        lengths: tokens of each answer, chosen and rejected in turn.
        options: of `math.losses.policy.orpo`.
    """

    def __init__(self, lengths: torch.Tensor, options: dict[str, Any]) -> None:
        self.lengths, self.options = lengths.view(-1, 2), options

    def __call__(self, rows: Rows, /, start_rows: Rows | None = None, guide_rows: Rows | None = None) -> Outcome:
        """Compute the loss from the log-probability of each token of each answer."""
        padded = pad_sequence(split(rows), batch_first=True)
        log_probs = padded.view(-1, 2, padded.shape[1])
        lengths = self.lengths.to(log_probs.device)
        keep = torch.arange(log_probs.shape[2], device=log_probs.device) < lengths[:, :, None]
        rewards = torch.tensor([1.0, 0.0], device=log_probs.device).expand(len(lengths), 2)
        rollout = Rollout(log_probs, log_probs.detach(), rewards, keep, log_probs.shape[2])
        loss = orpo(rollout, **self.options)
        means = log_probs.detach().masked_fill(~keep, 0).sum(2) / lengths
        measured = {
            "chosen": round(means[:, 0].mean().item(), 6),
            "rejected": round(means[:, 1].mean().item(), 6),
            "answer_length": round(lengths[:, 0].float().mean().item(), 2),
        }
        return Outcome(loss, (means[:, 0] > means[:, 1]).float().mean().item(), measured)
