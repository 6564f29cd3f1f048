"""The attention that tokens of prompts get from others, read within fast passes."""

from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Cache, PreTrainedModel

from shortlist.data.heads import Head
from shortlist.errors import UserError, unknown
from shortlist.models.backbone import own_rotations
from shortlist.models.cache import RoomyCache
from shortlist.models.kernels.beginnings import SharedBeginnings
from shortlist.models.prefixes import Alike, PromptIds, shared_prefixes
from shortlist.models.reading import SIGNALS, Probe, all_heads, by_layer, make_readable, until_read
from shortlist.text.batching import pad, token_batches


@final
class AttentionReader:
    """Reads attention of some heads, from some tokens of each prompt to all tokens.

    A pass ends in the attention of the last layer that is read. What prompts have in common at their beginnings is
    computed once.

    Args:
        backbone: the model without its head.
        token_budget: most tokens in one forward pass, padding included.
        share: whether to look for common beginnings.
        splits: whether rows attend to a common beginning without a copy of it, which fused layers do.

    Raises:
        UserError: this model's attention cannot be read.
    """

    def __init__(self, backbone: PreTrainedModel, *, token_budget: int, share: bool, splits: bool) -> None:
        make_readable(backbone)
        self.backbone, self.token_budget, self.share, self.splits = backbone, token_budget, share, splits

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return next(self.backbone.parameters()).device

    def __call__(
        self,
        prompts: Sequence[PromptIds],
        asking: Sequence[slice],
        *,
        heads: Sequence[Head] | None = None,
        signal: str = "mass",
    ) -> list[Float[Tensor, "heads tokens"]]:
        """Read the attention of each prompt.

        Args:
            prompts: the token ids of each prompt.
            asking: the tokens of each prompt whose attention is read.
            heads: the heads to read (None: all).
            signal: a key of `models.reading.SIGNALS`.

        Returns:
            For each prompt, a number for each head, in the order of `heads`, and each token of the prompt, float32 on
            the CPU.

        Raises:
            UserError: there is no such signal, or the model has no such head.
        """
        if signal not in SIGNALS:
            raise unknown("signal", signal, SIGNALS)
        chosen = all_heads(self.backbone) if heads is None else list(heads)
        self.check(chosen)
        places = {head: place for place, head in enumerate(sorted(set(chosen)))}
        order = [places[head] for head in chosen]
        kept = [len(prompt) - span.start for prompt, span in zip(prompts, asking, strict=True)]
        groups = shared_prefixes(prompts, kept) if self.share else [Alike(0, list(range(len(prompts))))]
        found: list[Tensor] = [torch.empty(0)] * len(prompts)
        for group in groups:
            for numbers, probe in self._read(group, prompts, asking, by_layer(places, self.device), signal):
                layers = [probe.found[layer] for layer in sorted(probe.found)]
                for row, number in enumerate(numbers):
                    values = torch.cat([layer[row] for layer in layers])[:, : len(prompts[number])]
                    found[number] = values[order].cpu()
        return found

    def check(self, heads: Sequence[Head]) -> None:
        """Refuse heads that the model does not have.

        Raises:
            UserError: there are none, or one is not there.
        """
        config = self.backbone.config
        layers, most = config.num_hidden_layers, config.num_attention_heads
        if not heads:
            raise UserError("no heads are to be read; expected at least one, as LAYER-HEAD.")
        if away := [head for head in heads if not (0 <= head.layer < layers and 0 <= head.number < most)]:
            raise UserError(
                f"head {away[0]}: the model has layers 0 to {layers - 1} with heads 0 to {most - 1} each; take heads "
                "that were chosen for this model."
            )

    def _read(
        self, group: Alike, prompts: Sequence[PromptIds], asking: Sequence[slice], heads: Any, signal: str
    ) -> Iterator[tuple[list[int], Probe]]:
        """Yield numbers of prompts, and what was read of them."""
        before = self.begin(prompts[group.members[0]][: group.length], last=max(heads)) if group.length else None
        rests = [len(prompts[number]) - group.length for number in group.members]
        for batch in token_batches(rests, self.token_budget):
            numbers = [group.members[place] for place in batch]
            spans = [asking[n] for n in numbers]
            spans = [slice(span.start - group.length, span.stop - group.length) for span in spans]
            probe = Probe(heads, spans, max(heads), signal=signal)
            self.read_behind(before, [prompts[n][group.length :] for n in numbers], probe)
            yield numbers, probe

    def begin(self, ids: PromptIds, *, last: int | None) -> RoomyCache:
        """Compute the keys and values of a beginning, up to the keys of a layer."""
        cache = RoomyCache(self.backbone.config)
        self.run([ids], Probe(last=last), cache=cache)
        return cache

    def read_behind(
        self,
        before: RoomyCache | None,
        rows: Sequence[PromptIds],
        probe: Probe,
        *,
        start: int | None = None,
        keeps: bool = False,
    ) -> Cache | None:
        """Run rows of tokens, each behind the same beginning.

        Args:
            before: the beginning (None: there is none).
            rows: the rows' token ids.
            probe: what is read, and where the pass ends.
            start: the position of each row's first token (None: behind the beginning).
            keeps: whether keys and values of the rows are kept.

        Returns:
            The keys and values of the rows if they are kept: a `SharedBeginnings`, or a cache that begins with copies
            of the beginning.
        """
        if before is None:
            cache: Any = RoomyCache(self.backbone.config) if keeps else None
            self.run(rows, probe, cache=cache)
            return cache
        layers = [(layer.keys, layer.values) for layer in before.layers if layer.is_initialized]
        length = layers[0][0].shape[2]
        start = length if start is None else start
        if self.splits:
            cache, attended = SharedBeginnings(layers, [length], {0: len(rows)}, keeps=keeps), None
        else:
            cache = before.rows([0] * len(rows), last=length, extra=max(map(len, rows)))
            attended = length
        self.run(rows, probe, cache=cache, start=start, before=attended)
        return cache if keeps else None

    def run(
        self,
        rows: Sequence[PromptIds],
        probe: Probe,
        *,
        cache: Cache | None = None,
        start: int = 0,
        before: int | None = None,
    ) -> Float[Tensor, "rows tokens dim"] | None:
        """Run the model on rows of tokens until enough was read.

        Args:
            start: the position of each row's first token.
            before: tokens in the cache that each row attends to, besides its own (None: those that the cache says).

        Returns:
            The states of the last layer; None if the pass has ended earlier.
        """
        ids, lengths = pad(rows, 0)
        options: dict[str, Any] = {"past_key_values": cache, "use_cache": cache is not None, "probe": probe}
        if cache is not None:
            options["position_ids"] = (start + torch.arange(ids.shape[1])[None]).to(self.device)
        if before is not None:
            real = torch.arange(ids.shape[1]) < lengths[:, None]
            options["attention_mask"] = torch.cat([real.new_ones(len(rows), before), real], 1).to(self.device)
        with torch.inference_mode(), own_rotations(self.backbone), until_read():
            return self.backbone(input_ids=ids.to(self.device), **options).last_hidden_state
        return None
