"""An encoder-decoder with its head, such as T5, over token ids only."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, cast, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from shortlist.errors import UserError
from shortlist.models.backbone import load_whole, real_tokens
from shortlist.models.files import Precision
from shortlist.models.folder import ModelFolder
from shortlist.models.kernels.linear import pack_linears
from shortlist.models.outputs import Rows
from shortlist.models.prefixes import PromptIds
from shortlist.models.run import default_token_budget, pick_device
from shortlist.text.batching import pad, token_batches


@final
class EncoderDecoder:
    """Answers prompts that an encoder reads and a decoder continues.

    A prompt may have several inputs. The encoder reads each by itself, and the decoder attends to all of them
    (https://arxiv.org/abs/2007.01282).

    Args:
        model: the model with its head.
        token_budget: most tokens in one pass of the encoder, padding included (None: chosen for the device).
    """

    def __init__(self, model: PreTrainedModel, *, token_budget: int | None = None) -> None:
        self.model = model
        self.token_budget = token_budget or default_token_budget(self.device)

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        return next(self.model.parameters()).device

    def logits(
        self, prompts: Sequence[Sequence[PromptIds]], begun: Sequence[PromptIds], *, tokens: Sequence[int]
    ) -> Float[Tensor, "prompts tokens"]:
        """Compute the logits of some tokens as the next one of each answer.

        Args:
            prompts: the inputs of each prompt.
            begun: the ids with which the decoder begins each answer.
        """
        logits = torch.empty(len(prompts), len(tokens))
        for numbers, states, mask, ids in self._encoded(prompts, begun):
            with torch.inference_mode():
                found = self.model(encoder_outputs=states, attention_mask=mask, decoder_input_ids=ids).logits
            logits[numbers] = found[:, -1, list(tokens)].float().cpu()
        return logits

    def log_probs(
        self, prompts: Sequence[Sequence[PromptIds]], begun: Sequence[PromptIds], answers: Sequence[PromptIds]
    ) -> Rows:
        """Compute the log-probability of each token of each answer after its beginning.

        Args:
            prompts: the inputs of each prompt.
            begun: the ids with which the decoder begins each answer.
        """
        found: list[Tensor] = [torch.empty(0)] * len(prompts)
        whole = [[*start, *answer] for start, answer in zip(begun, answers, strict=True)]
        for numbers, states, mask, ids in self._encoded(prompts, whole):
            with torch.inference_mode():
                logits = self.model(encoder_outputs=states, attention_mask=mask, decoder_input_ids=ids[:, :-1]).logits
            told = logits.float().log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0].cpu()
            for number, row in zip(numbers, told, strict=True):
                found[number] = row[len(begun[number]) - 1 :]
        return Rows(
            torch.cat(found) if found else torch.empty(0), torch.tensor(list(map(len, found)), dtype=torch.long)
        )

    def generate(
        self, prompts: Sequence[Sequence[PromptIds]], begun: Sequence[PromptIds], *, most: int, stop: Collection[int]
    ) -> list[list[int]]:
        """Continue each answer greedily.

        Args:
            most: most ids of an answer.
            stop: ids that end an answer, and are part of it.
        """
        answers: list[list[int]] = [[] for _ in prompts]
        for numbers, states, mask, ids in self._encoded(prompts, begun):
            with torch.inference_mode():
                found = cast(Any, self.model).generate(
                    encoder_outputs=states,
                    attention_mask=mask,
                    decoder_input_ids=ids,
                    max_new_tokens=most,
                    do_sample=False,
                    num_beams=1,
                    eos_token_id=sorted(stop),
                )
            for number, row in zip(numbers, found[:, ids.shape[1] :].tolist(), strict=True):
                end = next((place + 1 for place, token in enumerate(row) if token in stop), len(row))
                answers[number] = row[:end]
        return answers

    def _encoded(
        self, prompts: Sequence[Sequence[PromptIds]], begun: Sequence[PromptIds]
    ) -> Iterator[tuple[list[int], BaseModelOutput, Bool[Tensor, "batch tokens"], Tensor]]:
        """Yield prompts that are answered together.

        These are their numbers, the states of their inputs, which of these count, and the beginnings of answers.
        """
        for length in sorted({len(ids) for ids in begun}):
            same = [number for number, ids in enumerate(begun) if len(ids) == length]
            for batch in token_batches([sum(map(len, prompts[number])) for number in same], self.token_budget):
                numbers = [same[place] for place in batch]
                each = [torch.cat(list(self._states(prompts[number]))) for number in numbers]
                mask = real_tokens(
                    torch.empty(len(each), max(map(len, each)), device=self.device, dtype=torch.long),
                    torch.tensor([len(states) for states in each], device=self.device),
                )
                ids = torch.tensor([list(begun[number]) for number in numbers], device=self.device)
                yield numbers, BaseModelOutput(pad_sequence(each, batch_first=True)), mask, ids

    def _states(self, inputs: Sequence[PromptIds]) -> Iterator[Float[Tensor, "tokens dim"]]:
        """Yield the encoder's states of each input."""
        found: dict[int, Tensor] = {}
        for batch in token_batches(list(map(len, inputs)), self.token_budget):
            ids, lengths = (states.to(self.device) for states in pad([inputs[place] for place in batch], 0))
            with torch.inference_mode():
                encoder = cast(Any, self.model).get_encoder()
                hidden = encoder(input_ids=ids, attention_mask=real_tokens(ids, lengths)).last_hidden_state
            rows = zip(batch.tolist(), hidden, lengths.tolist(), strict=True)
            found |= {place: states[:length] for place, states, length in rows}
        yield from (found[place] for place in range(len(inputs)))


def load_encoder_decoder(
    folder: ModelFolder,
    *,
    device: torch.device | str | None = None,
    precision: Precision = "fp32",
    packed: bool | None = None,
    token_budget: int | None = None,
) -> EncoderDecoder:
    """Load an encoder-decoder, ready to answer.

    Raises:
        UserError: there is no such model, or it is to run in int8.
    """
    if precision == "int8":
        raise UserError(f"--precision int8 is not for {folder.name}, an encoder-decoder; choose bf16 or fp32.")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = load_whole(AutoModelForSeq2SeqLM, str(folder.path), dtype=dtype)
    model.eval().requires_grad_(False)
    cast(Any, model).to(torch.device(device) if device else pick_device())
    if packed and next(model.parameters()).device.type == "cpu":
        pack_linears(model)
    return EncoderDecoder(model, token_budget=token_budget)
