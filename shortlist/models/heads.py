"""The heads of rerankers in published model folders."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast, final

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortlist.errors import UserError
from shortlist.models.files import HEAD, OUTPUT_EMBEDDING

OUTPUT_BIAS = "lm_head.bias"


@final
class OutputHead(nn.Module):
    """A language model's projection from states to logits.

    Args:
        weight: one row for each token of the vocabulary.
        bias: added to the products.
        times: multiplies the logits.
        cap: the size that a hyperbolic tangent keeps logits under (None: no limit).
    """

    def __init__(
        self,
        weight: Float[Tensor, "vocabulary dim"],
        bias: Float[Tensor, " vocabulary"] | None = None,
        *,
        times: float = 1.0,
        cap: float | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.times, self.cap = times, cap

    def forward(
        self, states: Float[Tensor, "*rows dim"], tokens: Int[Tensor, " some"] | None = None
    ) -> Float[Tensor, "*rows _"]:
        """Compute the logits of some tokens in float32, reading only their rows (None: all)."""
        weight, bias = self.weight, self.bias
        if tokens is not None:
            weight, bias = weight[tokens], None if bias is None else bias[tokens]
        logits = nn.functional.linear(states.to(weight.dtype), weight, bias).float() * self.times
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def output_head(backbone: PreTrainedModel, folder: Path) -> OutputHead:
    """Load a language model's head.

    Args:
        backbone: the language model without its head.
        folder: the folder of its weights. Without an output embedding there, the input embedding is used.

    Raises:
        UserError: the folder has no head, and the model does not use its input embedding for one.
    """
    config = backbone.config
    check_head(backbone, folder)
    weight = find_tensor(folder, OUTPUT_EMBEDDING)
    if weight is None:
        weight = cast(Tensor, backbone.get_input_embeddings().weight)
    bias = find_tensor(folder, OUTPUT_BIAS)
    times = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    dtype = next(backbone.parameters()).dtype
    head = OutputHead(
        weight.detach().to(dtype),
        None if bias is None else bias.to(dtype),
        times=times,
        cap=getattr(config, "final_logit_softcapping", None),
    )
    return head.to(next(backbone.parameters()).device)


def one_label(head: Tensor, name: str) -> Float[Tensor, "1 dim"]:
    """Reduce a head to a projection to one score.

    With two labels the score is the second logit minus the first.

    Raises:
        UserError: the head has more than two labels.
    """
    if len(head) > 2:
        raise UserError(f"{name}: its head has {len(head)} labels; a reranker has one, or two.")
    return head if len(head) == 1 else head[1:].float() - head[:1].float()


def answer_head(
    backbone: PreTrainedModel, tokenizer: Any, answer: Sequence[str], folder: Path
) -> Float[Tensor, "1 dim"]:
    """Make the projection from a language model's last state to its answer's score.

    Args:
        backbone: the language model without its head.
        tokenizer: its tokenizer.
        answer: the tokens of the answer, as in a contract's reading.
        folder: the folder of its weights. Without an output embedding there, the input embedding is used.

    Raises:
        UserError: the tokenizer has no such token, or the model caps its logits.
    """
    if getattr(backbone.config, "final_logit_softcapping", None):
        raise UserError(f"{folder}: caps its logits, which an answer's score is not made for; use another model.")
    token_ids = answer_ids(tokenizer, answer, folder)
    rows = [_row(folder, OUTPUT_EMBEDDING, token_id) for token_id in token_ids]
    if any(row is None for row in rows):
        embeddings = cast(Tensor, backbone.get_input_embeddings().weight)
        rows = [embeddings[token_id] for token_id in token_ids]
    first, *second = (row.detach().float() for row in rows if row is not None)
    return (first - second[0] if second else first)[None]


def answer_ids(tokenizer: Any, answer: Sequence[str], folder: Path) -> list[int]:
    """Return the ids of the tokens of a language model's answer.

    Raises:
        UserError: the tokenizer has no such token.
    """
    token_ids = [tokenizer.convert_tokens_to_ids(token) for token in answer]
    for token, token_id in zip(answer, token_ids, strict=True):
        if token_id is None or tokenizer.convert_ids_to_tokens(token_id) != token:
            raise UserError(
                f"{folder}: the tokenizer has no token {token!r}, whose logit is the score by the input contract; "
                "choose another --contract."
            )
    return token_ids


def check_head(backbone: PreTrainedModel, folder: Path) -> None:
    """Refuse a backbone without a language-model head, which generates nothing.

    Raises:
        UserError: the folder has none, and the model does not use its input embedding for one.
    """
    if not getattr(backbone.config, "tie_word_embeddings", False) and not any(_tensors(folder, OUTPUT_EMBEDDING)):
        raise UserError(
            f"{folder}: has no language-model head (no {OUTPUT_EMBEDDING!r}, and its embeddings are not tied), so it "
            "generates nothing; name a causal language model."
        )


def own_output(
    backbone: PreTrainedModel, folder: Path, *, empty: bool = False
) -> Float[Tensor, "vocabulary dim"] | None:
    """Load the output embedding of a language model to train.

    The result is None if that is the input embedding.

    Args:
        backbone: the language model without its head.
        folder: the folder of its weights.
        empty: make one without contents, on the device `meta`.

    Raises:
        UserError: logits are more than states times the output embedding.
    """
    changed = [name for name in ("final_logit_softcapping", "logit_scale", "logits_scaling") if _set(backbone, name)]
    changed += [repr(OUTPUT_BIAS)] if any(_tensors(folder, OUTPUT_BIAS)) else []
    if changed:
        raise UserError(
            f"{folder}: has {changed[0]}; only language models whose logits are states times an embedding are trained "
            "here."
        )
    if getattr(backbone.config, "tie_word_embeddings", False) or not any(_tensors(folder, OUTPUT_EMBEDDING)):
        return None
    inputs = cast(Tensor, backbone.get_input_embeddings().weight)
    if empty:
        return torch.empty_like(inputs, device="meta")
    weight = find_tensor(folder, OUTPUT_EMBEDDING)
    assert weight is not None  # it was there a moment ago; for the type checker
    return weight.to(inputs.dtype)


def _set(backbone: PreTrainedModel, name: str) -> bool:
    return getattr(backbone.config, name, None) not in (None, 1)


def find_head(folder: Path) -> Tensor | None:
    """Find a reranker's head in a folder's safetensors; None if there is none."""
    return find_tensor(folder, HEAD)


def find_tensor(folder: Path, name: str) -> Tensor | None:
    """Find a tensor in a folder's safetensors; None if there is none.

    Its key may have a prefix there.
    """
    return next((weights.get_tensor(key) for weights, key in _tensors(folder, name)), None)


def _row(folder: Path, name: str, number: int) -> Tensor | None:
    """Read one row of a matrix in a folder's safetensors; None without such a matrix."""
    return next((weights.get_slice(key)[number : number + 1][0] for weights, key in _tensors(folder, name)), None)


def _tensors(folder: Path, name: str) -> Iterator[tuple[Any, str]]:
    """Yield the open file and key of tensors with this name, after any prefix."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as weights:
                for key in weights.keys():  # noqa: SIM118 (not a dict)
                    if key == name or key.endswith(f".{name}"):
                        yield weights, key
        except SafetensorError as error:
            raise UserError(f"{path}: damaged ({error}); copy or make the model again.") from None
