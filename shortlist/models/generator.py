"""A causal language model with its head, over token ids only."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from shortlist.data.heads import Head
from shortlist.errors import UserError
from shortlist.models.apart import on_cores_of_their_own, runs_apart
from shortlist.models.attention import AttentionReader
from shortlist.models.backbone import is_causal, own_rotations, transformer_layers
from shortlist.models.cache import RoomyCache, is_plain, joined_caches, slides
from shortlist.models.choice import AllowedIds, Choice
from shortlist.models.drafts import Draft
from shortlist.models.heads import OutputHead
from shortlist.models.kernels.beginnings import SharedBeginnings, splitting_is_right
from shortlist.models.kernels.fused import FusedLayer
from shortlist.models.kernels.last_token import last_mlp_only_at
from shortlist.models.memory import give_back_memory
from shortlist.models.outputs import Rows
from shortlist.models.prefixes import Alike, PromptIds, shared_prefixes
from shortlist.models.run import default_token_budget
from shortlist.text.batching import pad, token_batches

PARTS_COMPUTED = 32
"""Parts of prompts after which free memory is given back."""
CACHE_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Most bytes of keys and values of prompts that are continued together, by device. On a CPU a step reads them all, so
that more prompts at once gain nothing: with 2**30 each took a quarter longer."""
SPLIT_TOKENS = 1024
"""Most tokens in one pass behind common beginnings on a CPU; with 2,048 it took a third longer."""


class ReadPrompts(NamedTuple):
    """Prompts that one forward pass has read to their ends."""

    numbers: list[int]
    states: list[Float[Tensor, "kept dim"]]
    """The states of each prompt's last ids."""
    cache: RoomyCache | None
    ends: list[int]
    """Where each prompt's keys and values end in the cache; they stand next to one another."""


@final
class Generator:
    """Reads and continues token ids with a causal language model.

    It knows neither texts nor prompts. Prompts that begin alike are computed together, and their common beginning once.
    Which others a prompt is computed with changes its results by no more than rounding.

    Args:
        backbone: the model without its head.
        head: its head.
        token_budget: most tokens in one forward pass, padding included (None: chosen for the device).
        share: whether to look for common beginnings; without it the results are the same, and take longer.

    Raises:
        UserError: the model is no causal decoder that keeps keys and values of its tokens.
    """

    def __init__(
        self, backbone: PreTrainedModel, head: OutputHead, *, token_budget: int | None = None, share: bool = True
    ) -> None:
        if not is_causal(backbone) or not is_plain(backbone):
            raise UserError(
                f"{type(backbone).__name__}: is no causal decoder that keeps keys and values of all its tokens, so it "
                "generates nothing here; choose one such as LLaMA, Qwen or Mistral."
            )
        self.backbone, self.head, self.share = backbone, head, share
        self.token_budget = token_budget or default_token_budget(self.device)

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return next(self.backbone.parameters()).device

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the weights."""
        yield from self.backbone.parameters()
        yield from self.head.parameters()

    def logits(self, prompts: Sequence[PromptIds], *, tokens: Sequence[int]) -> Float[Tensor, "prompts tokens"]:
        """Compute the logits of some tokens as the next one after each prompt."""
        chosen = torch.tensor(tokens, device=self.device)

        def last(read: ReadPrompts) -> Float[Tensor, "some tokens"]:
            return self.head(torch.cat(read.states), chosen).cpu()

        logits = torch.empty(len(prompts), len(tokens))
        for numbers, part in self._each(last, prompts, [1] * len(prompts)):
            logits[numbers] = part
        return logits

    def log_probs(self, prompts: Sequence[PromptIds], answers: Sequence[PromptIds]) -> Rows:
        """Compute the log-probability of each token of each answer after its prompt."""
        pairs = list(zip(prompts, answers, strict=True))

        def of_answers(read: ReadPrompts) -> list[Float[Tensor, " answer"]]:
            parts = []
            for number, states in zip(read.numbers, read.states, strict=True):
                said = torch.tensor(pairs[number][1], dtype=torch.long, device=self.device)
                parts.append(self.head(states[:-1]).log_softmax(-1).gather(1, said[:, None])[:, 0].cpu())
            return parts

        return self._rows(of_answers, [[*prompt, *answer] for prompt, answer in pairs], [len(a) + 1 for _, a in pairs])

    def hidden(self, prompts: Sequence[PromptIds], positions: Sequence[Sequence[int]]) -> Rows:
        """Compute the states at some positions of each prompt, after the last norm."""
        starts = [min([*places, len(prompt) - 1]) for prompt, places in zip(prompts, positions, strict=True)]

        def there(read: ReadPrompts) -> list[Float[Tensor, "positions dim"]]:
            places = [torch.tensor(positions[n], dtype=torch.long) - starts[n] for n in read.numbers]
            return [states.float().cpu()[place] for states, place in zip(read.states, places, strict=True)]

        return self._rows(there, prompts, [len(prompt) - start for prompt, start in zip(prompts, starts, strict=True)])

    def attention(
        self,
        prompts: Sequence[PromptIds],
        asking: Sequence[slice],
        *,
        heads: Sequence[Head] | None = None,
        signal: str = "mass",
    ) -> list[Float[Tensor, "heads tokens"]]:
        """Read the attention that each token gets from asking ones; as for `models.attention.AttentionReader`."""
        return self.reader()(prompts, asking, heads=heads, signal=signal)

    def reader(self) -> AttentionReader:
        """Make a reader of this model's attention."""
        return AttentionReader(self.backbone, token_budget=self.token_budget, share=self.share, splits=self._splits())

    def generate(
        self,
        prompts: Sequence[PromptIds],
        *,
        most: int,
        stop: Collection[int] = (),
        samples: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        allowed: AllowedIds | None = None,
        seconds: float | None = None,
    ) -> list[list[list[int]]]:
        """Continue each prompt.

        Args:
            prompts: the token ids of each prompt.
            most: most ids to generate for a prompt.
            stop: ids after which an answer ends; they are part of it.
            samples: answers to each prompt.
            temperature: divides the logits before an id is drawn; 0 takes the best id.
            seed: seed of what is drawn. It depends on nothing but the prompt's number, the sample and the place.
            numbers: the number of each prompt, all different (None: they are counted from 0).
            allowed: restricts what may follow. Where only one id may, it costs no forward pass of its own.
            seconds: time after which no more ids are generated.

        Returns:
            The ids of each sample of each prompt.
        """
        until = float("inf") if seconds is None else time.monotonic() + seconds
        choice = Choice(self.head, temperature=temperature, seed=seed, allowed=allowed, stop=frozenset(stop), most=most)

        named = list(range(len(prompts)) if numbers is None else numbers)
        places = {number: place for place, number in enumerate(named)}

        def work(some: list[int]) -> list[tuple[int, int, list[int]]]:
            names = [(named[place], sample) for place in some for sample in range(samples)]
            said = [choice.forced(name, []) for name in names]
            whole = [[*prompts[places[number]], *ids] for (number, _), ids in zip(names, said, strict=True)]
            answered = list(self._continue(whole, names, said, choice, until))
            give_back_memory()
            return answered

        answers: list[list[list[int]]] = [[[] for _ in range(samples)] for _ in prompts]
        together = self._continued_together([len(prompt) for prompt in prompts], most, samples)
        for part in on_cores_of_their_own(work, together) if runs_apart(self) else map(work, together):
            for number, sample, ids in part:
                answers[places[number]][sample] = ids
        return answers

    def _continued_together(self, lengths: Sequence[int], most: int, samples: int) -> list[list[int]]:
        """Part prompts, the longest first, so that a part's keys and values fit into memory."""
        config = self.backbone.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        for_token = 2 * config.num_hidden_layers * heads * size * next(self.backbone.parameters()).element_size()
        cores = torch.get_num_threads() if runs_apart(self) else 1
        tokens = CACHE_BYTES[self.device.type] // (for_token * samples * cores)
        sizes = [length + most for length in lengths]
        evenly = max(sizes, default=0) * -(-len(sizes) // cores)
        return [batch.tolist() for batch in token_batches(sizes, max(1, min(tokens, evenly)))]

    def _continue(
        self,
        prompts: Sequence[PromptIds],
        names: list[tuple[int, int]],
        said: list[list[int]],
        choice: Choice,
        until: float,
    ) -> Iterator[tuple[int, int, list[int]]]:
        """Generate some answers, and yield each when it ends.

        A forward pass reads each answer's next id with a guess of those behind it, and what it says of them decides how
        many were right. The keys and values of wrong ones stay in the cache, where nothing attends to them.
        """
        states, cache, mask = self._read_all(prompts, choice.most)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        alone = slides(self.backbone)  # such layers count places, so there may be no gaps between tokens
        drafts = [] if alone else [Draft(prompt) for prompt in prompts]
        live = list(range(len(names)))
        ended = [choice.has_ended(ids) for ids in said]
        while True:
            if any(ended):
                yield from ((*names[row], said[row]) for row, over in zip(live, ended, strict=True) if over)
                left = [place for place, over in enumerate(ended) if not over]
                live = [live[place] for place in left]
                states, mask, lengths = states[left], mask[left], lengths[left]
                if live:
                    cache.keep(left)
            if not live or time.monotonic() > until:
                break
            chosen = choice(states, [names[row] for row in live], [said[row] for row in live])
            steps, guesses = [], []
            for row, token in zip(live, chosen, strict=True):
                step = [token] if alone else [token, *choice.forced(names[row], [*said[row], token])]
                said[row] += step
                steps.append(step)
                if not alone:
                    drafts[row].add(step)
                guesses.append(
                    [] if alone or choice.has_ended(said[row]) else drafts[row].guess(choice.most - len(said[row]))
                )
            ended = [choice.has_ended(said[row]) for row in live]
            if all(ended):
                continue
            ids, counts = pad([step + guess for step, guess in zip(steps, guesses, strict=True)], 0)
            read = torch.cat([mask, torch.arange(ids.shape[1]) < counts[:, None]], dim=1)
            positions = lengths[:, None] + torch.arange(ids.shape[1])
            kept = [1 + len(guess) for guess in guesses]
            seen = self._states(ids, counts, kept, cache=cache, mask=read, positions=positions)
            right = _num_right(choice, seen, [names[row] for row in live], [said[row] for row in live], guesses)
            for row, guess, count in zip(live, guesses, right, strict=True):
                said[row] += guess[:count]
                if not alone:
                    drafts[row].add(guess[:count])
                    drafts[row].learn(len(guess), count)
            ended = [choice.has_ended(said[row]) for row in live]
            states = torch.stack([of_row[count] for of_row, count in zip(seen, right, strict=True)])
            counts = torch.tensor([len(step) + count for step, count in zip(steps, right, strict=True)])
            mask = torch.cat([mask, torch.arange(ids.shape[1]) < counts[:, None]], dim=1)
            lengths = lengths + counts
        yield from ((*names[row], said[row]) for row in live)

    def _read_all(
        self, prompts: Sequence[PromptIds], extra: int
    ) -> tuple[Float[Tensor, "prompts dim"], RoomyCache, Tensor]:
        """Read prompts into one cache, right-aligned, and return the last states and which places count."""
        states: dict[int, Tensor] = {}
        order, caches, kept = [], [], [1] * len(prompts)
        for groups in self._work(prompts, kept):
            for read in self._compute(prompts, kept, groups, caching=True):
                states |= dict(zip(read.numbers, read.states, strict=True))
                assert read.cache is not None
                caches.append(read.cache.right_aligned([len(prompts[n]) for n in read.numbers], read.ends))
                order += read.numbers
        cache = joined_caches(caches, extra=extra)
        cache.keep(np.argsort(order).tolist())
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        mask = torch.arange(int(lengths.max())) >= (lengths.max() - lengths)[:, None]
        return torch.cat([states[number] for number in range(len(prompts))]), cache, mask

    def _rows(
        self, use: Callable[[ReadPrompts], list[Tensor]], prompts: Sequence[PromptIds], kept: Sequence[int]
    ) -> Rows:
        """Compute rows of each prompt, in order."""
        found: dict[int, Tensor] = {}
        for numbers, parts in self._each(use, prompts, kept):
            found |= dict(zip(numbers, parts, strict=True))
        rows = [found[number] for number in range(len(prompts))]
        return Rows(torch.cat(rows) if rows else torch.empty(0), torch.tensor([len(r) for r in rows], dtype=torch.long))

    def _each(
        self, use: Callable[[ReadPrompts], Any], prompts: Sequence[PromptIds], kept: Sequence[int]
    ) -> Iterator[tuple[list[int], Any]]:
        """Yield numbers of prompts, and what `use` makes of the states of their last ids."""

        def work(groups: list[Alike]) -> list[tuple[list[int], Any]]:
            return [(read.numbers, use(read)) for read in self._compute(prompts, kept, groups)]

        together = self._work(prompts, kept)
        done = on_cores_of_their_own(work, together) if runs_apart(self) else map(work, together)
        for number, parts in enumerate(done, 1):
            yield from parts
            if number % PARTS_COMPUTED == 0:
                give_back_memory()

    def _work(self, prompts: Sequence[PromptIds], kept: Sequence[int]) -> list[list[Alike]]:
        """Part prompts into groups; the groups of a part are computed one after another."""
        if any(len(prompt) < keep for prompt, keep in zip(prompts, kept, strict=True)):
            raise ValueError("a prompt has no ids")
        groups = shared_prefixes(prompts, kept) if self.share else [Alike(0, list(range(len(prompts))))]
        work: list[list[Alike]] = []
        for _, members in (group for group in groups if not group.length):
            batches = token_batches([len(prompts[number]) for number in members], self.token_budget)
            work += [[Alike(0, [members[place] for place in batch])] for batch in batches]
        shared = [group for group in groups if group.length]
        batches = token_batches([group.length for group in shared], self.token_budget)
        return work + [[shared[place] for place in batch] for batch in batches]

    def _compute(
        self, prompts: Sequence[PromptIds], kept: Sequence[int], groups: list[Alike], *, caching: bool = False
    ) -> Iterator[ReadPrompts]:
        """Yield prompts read to their ends, in parts within the token budget."""
        if not groups[0].length:
            [(_, numbers)] = groups
            ids, lengths = pad([prompts[number] for number in numbers], 0)
            cache = RoomyCache(self.backbone.config) if caching else None
            states = self._states(ids, lengths, [kept[number] for number in numbers], cache=cache)
            yield ReadPrompts(numbers, states, cache, lengths.tolist())
            return
        before = self._prefixes([prompts[members[0]][:length] for length, members in groups])
        rows = [(row, number) for row, (_, members) in enumerate(groups) for number in members]
        if not caching and self._splits():
            yield from self._split(prompts, kept, groups, before)
            return
        for batch in token_batches([len(prompts[number]) for _, number in rows], self.token_budget):
            some = [rows[place] for place in batch]
            begun = [groups[row].length for row, _ in some]
            numbers = [number for _, number in some]
            rests = [prompts[number][length:] for number, length in zip(numbers, begun, strict=True)]
            cache = before.rows([row for row, _ in some], last=max(begun), extra=max(map(len, rests)))
            states = self._after(cache, begun, rests, [kept[number] for number in numbers])
            yield ReadPrompts(numbers, states, cache, [max(begun) + len(rest) for rest in rests])

    def _prefixes(self, prefixes: Sequence[PromptIds]) -> RoomyCache:
        """Compute the keys and values of common beginnings, right-aligned."""
        ids, lengths = pad(prefixes, 0)
        cache = RoomyCache(self.backbone.config)
        self._states(ids, lengths, [1] * len(prefixes), cache=cache)
        return cache.right_aligned(lengths.tolist(), lengths.tolist())

    def _splits(self) -> bool:
        """Whether rows attend to a common beginning without a copy of it.

        Fused layers do, in float32 on a CPU.
        """
        fused = all(isinstance(layer, FusedLayer) for layer in transformer_layers(self.backbone))
        weight = next(self.backbone.parameters())
        return fused and weight.dtype == torch.float32 and not slides(self.backbone) and splitting_is_right()

    def _split(
        self, prompts: Sequence[PromptIds], kept: Sequence[int], groups: list[Alike], before: RoomyCache
    ) -> Iterator[ReadPrompts]:
        """Yield prompts read behind their common beginnings, which are not copied."""
        keys_and_values = [(layer.keys, layer.values) for layer in before.layers]
        starts = [length for length, _ in groups]
        rows = [(row, number) for row, (_, members) in enumerate(groups) for number in members]
        rests = [len(prompts[number]) - starts[row] for row, number in rows]
        for batch in token_batches(rests, min(self.token_budget, SPLIT_TOKENS)):
            some = sorted(rows[place] for place in batch)
            numbers, begun = [number for _, number in some], [starts[row] for row, _ in some]
            shared = SharedBeginnings(keys_and_values, starts, Counter(row for row, _ in some))
            ids, lengths = pad([prompts[n][length:] for n, length in zip(numbers, begun, strict=True)], 0)
            positions = torch.tensor(begun)[:, None] + torch.arange(ids.shape[1])
            states = self._states(ids, lengths, [kept[n] for n in numbers], cache=shared, positions=positions)
            yield ReadPrompts(numbers, states, None, lengths.tolist())

    def _after(
        self, cache: RoomyCache, begun: Sequence[int], rests: Sequence[PromptIds], kept: list[int]
    ) -> list[Float[Tensor, "kept dim"]]:
        """Read the rests of prompts whose beginnings are in a cache, right-aligned."""
        ids, lengths = pad(rests, 0)
        starts, longest = torch.tensor(begun), max(begun)
        places = torch.arange(longest + ids.shape[1])
        mask = (places >= (longest - starts)[:, None]) & (places < (longest + lengths)[:, None])
        positions = starts[:, None] + torch.arange(ids.shape[1])
        return self._states(ids, lengths, kept, cache=cache, mask=mask, positions=positions)

    def _states(
        self,
        ids: Int[Tensor, "rows tokens"],
        lengths: Int[Tensor, " rows"],
        kept: list[int],
        *,
        cache: Cache | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> list[Float[Tensor, "kept dim"]]:
        """Run the backbone on right-padded ids, and return the states of each row's last ids."""
        options: dict[str, Any] = {"past_key_values": cache, "use_cache": cache is not None}
        if mask is not None:
            options["attention_mask"] = mask.to(self.device)
        if positions is not None:
            options["position_ids"] = positions.to(self.device)
        ids, lengths = ids.to(self.device), lengths.to(self.device)
        with torch.inference_mode(), own_rotations(self.backbone):
            if max(kept) > 1:
                hidden = self.backbone(input_ids=ids, **options).last_hidden_state
                return [row[end - n : end] for row, end, n in zip(hidden, lengths.tolist(), kept, strict=True)]
            with last_mlp_only_at(self.backbone, lengths - 1):
                hidden = self.backbone(input_ids=ids, **options).last_hidden_state
            places = (lengths - 1).clamp(max=hidden.shape[1] - 1)  # a fused layer returns only that position
            return list(hidden[torch.arange(len(hidden), device=self.device), places][:, None])


def _num_right(
    choice: Choice,
    seen: Sequence[Float[Tensor, "_ dim"]],
    names: Sequence[tuple[int, int]],
    said: Sequence[list[int]],
    guesses: Sequence[list[int]],
) -> list[int]:
    """Count the ids of each guess, from its beginning, that the model would have chosen.

    Args:
        seen: for each answer the states after what was said, and after each id of the guess.
    """
    places = [(row, place) for row, guess in enumerate(guesses) for place in range(len(guess))]
    if not places:
        return [0] * len(guesses)
    before = [[*said[row], *guesses[row][:place]] for row, place in places]
    states = torch.cat([of_row[:-1] for of_row in seen])
    found = choice(states, [names[row] for row, _ in places], before)
    right = [0] * len(guesses)
    for (row, place), token, ids in zip(places, found, before, strict=True):
        if right[row] == place and token == guesses[row][place] and not choice.has_ended(ids):
            right[row] += 1
    return right
