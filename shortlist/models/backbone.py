"""The transformer in every model: loading it and running it on right-padded ids."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from logging import ERROR, getLogger
from threading import Lock
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
)
from transformers.utils import logging

from shortlist.errors import UserError, unknown
from shortlist.math.pooling import POOLINGS, Pooling
from shortlist.models.files import LATENT, POSITIONS, first_line, not_a_model
from shortlist.models.kernels.last_token import last_mlp_only_at
from shortlist.models.virtual import num_virtual
from shortlist.text.contract import PER_TOKEN, SPARSE, Reading


def load_backbone(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    four_bit: bool = False,
    encoder: bool = False,
) -> PreTrainedModel:
    """Load a decoder or encoder without its language-model head, from a folder or the hub.

    Args:
        attention: the implementation of attention, by its name in transformers: eager, sdpa, flash_attention_2, ...
            (None: sdpa if the model has it).
        four_bit: keep the linear layers as 4-bit NF4 (https://arxiv.org/abs/2305.14314) and compute in `dtype`, on the
            current GPU if there is one. Such layers cannot be trained; add an adapter to them.
        encoder: load an encoder-decoder's encoder alone.

    Raises:
        UserError: there is no usable model, it needs code of its own to run, or a package is missing.
    """
    config = _config(name)
    options: dict[str, Any] = {"attn_implementation": _known_attention(attention, name), "dtype": dtype}
    if four_bit:
        options["quantization_config"] = _nf4(dtype)
    model = _load(_encoder_of(config) if encoder else AutoModel, name, config=config, **options)
    _freeze_pooler(model)
    # otherwise, on some CPUs and outside training, bitsandbytes would repack the weights permanently, into a form that
    # computes in bfloat16, has no gradient, and dequantises to other weights
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return model.eval()


def load_classifier(name: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load an encoder with its sequence-classification head from a folder or the hub.

    Raises:
        UserError: there is no usable model, its head is missing, or the head has more than two labels.
    """
    config = _config(name)
    if config.num_labels > 2:
        raise UserError(f"{name}: its head has {config.num_labels} labels; a reranker has one, or two.")
    return _load(AutoModelForSequenceClassification, name, config=config, dtype=dtype).eval()


def load_whole(kind: Any, name: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load a model with its head from a folder or the hub.

    Args:
        kind: a class of transformers that chooses the model, such as AutoModelForSeq2SeqLM.

    Raises:
        UserError: there is no usable model, or weights are missing.
    """
    return _load(kind, name, config=_config(name), dtype=dtype).eval()


def _load(kind: Any, name: str, **options: Any) -> PreTrainedModel:
    """Load a model of this kind, and raise UserError if weights are missing."""
    try:
        model, loaded = kind.from_pretrained(
            name, trust_remote_code=False, use_safetensors=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise not_a_model(name, error) from None
    # transformers would use random weights in their place; a bare encoder's pooler may be missing, as it is never used
    if missing := sorted(key for key in loaded["missing_keys"] if not key.startswith("pooler.")):
        raise not_a_model(name, f"{len(missing)} weights are missing, {missing[0]} among them")
    return model


def empty_backbone(name: str, *, attention: str | None = None, encoder: bool = False) -> PreTrainedModel:
    """Build the backbone that `load_backbone` would load, without weights, on the device `meta`.

    Raises:
        UserError: there is no usable config.json, or a package is missing.
    """
    config = _config(name)
    _known_attention(attention, name)
    try:
        model = _on_meta(config, _encoder_of(config) if encoder else AutoModel)
    except ValueError as error:
        raise not_a_model(name, error) from None
    _freeze_pooler(model)
    return model.eval()


def dequantize(model: PreTrainedModel) -> PreTrainedModel:
    """Replace the layers of a 4-bit model by equivalent plain float32 layers, in place.

    An adapter trained on the 4-bit model fits these weights. On the weights before quantisation it gives other scores.
    """
    model.dequantize(dtype=torch.float32)
    return model.float()


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Enable gradient checkpointing, in place.

    Training then keeps only the input of each layer, and runs the layer again in the backward pass.

    Raises:
        UserError: the model does not support it.
    """
    try:
        with hushed():
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError:
        raise UserError(
            f"--gradient-checkpointing: {type(model).__name__} cannot; leave it out, and lower --token-budget or use "
            "--grad-cache instead."
        ) from None


def _config(name: str) -> Any:
    logging.disable_progress_bar()  # our progress bar says more
    logging.set_verbosity_error()  # missing weights are an error below; unused ones do not matter
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise not_a_model(name, error) from None


def _on_meta(config: Any, kind: Any = AutoModel, **options: Any) -> PreTrainedModel:
    with torch.device("meta"):
        return kind.from_config(config, trust_remote_code=False, dtype=torch.float32, **options)


def _encoder_of(config: Any) -> Any:
    """Return the class of transformers that loads a backbone, without the decoder of an encoder-decoder."""
    return AutoModelForTextEncoding if encoder_class(config) else AutoModel


def encoder_class(config: Any) -> str | None:
    """Return the name of the class that is an encoder-decoder's encoder alone.

    T5 has one; it is None for other models.
    """
    name = MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.get(config.model_type, "")
    return name if name.endswith("EncoderModel") else None


def _known_attention(attention: str | None, name: str) -> str | None:
    """Check that the model can be built with this attention, and return the name.

    This comes before the weights are read, and gives a clearer error than transformers.

    Raises:
        UserError: the name is unknown, or this attention cannot be used for the model here.
    """
    if attention is None:
        return None
    known = ["eager", *(key for key in ALL_ATTENTION_FUNCTIONS.valid_keys() if not key.startswith("paged"))]
    if attention not in known:
        raise unknown("attention", attention, known)
    try:
        _on_meta(_config(name), attn_implementation=attention)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"--attention: {attention} cannot be used for {name} here ({first_line(error)}); leave it out, or install "
            "what it needs."
        ) from None
    return attention


def _nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    try:
        with hushed():
            import bitsandbytes  # noqa: F401
    except ImportError:
        raise UserError("--four-bit: needs bitsandbytes; pip install 'shortlist[qlora]'.") from None
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    return BitsAndBytesConfig(load_in_4bit=True, **options)


def _freeze_pooler(model: PreTrainedModel) -> None:
    """Freeze the pooler of an encoder.

    It is not used, but is kept so that other libraries can load the models that are saved here.
    """
    for name, parameter in model.named_parameters():
        if name.startswith("pooler."):
            parameter.requires_grad_(False)


def num_positions(model: PreTrainedModel) -> int | None:
    """Return the most tokens that a model's learned positions allow; None if it learned none.

    Some models keep the first rows of that table for padding, so they have fewer positions than their config.json says.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rsplit(".", 1)[-1] in POSITIONS:
            unused = getattr(module, "offset", 0 if module.padding_idx is None else module.padding_idx + 1)
            return module.num_embeddings - unused
    return None


def transformer_layers(model: nn.Module) -> nn.ModuleList:
    """Find a transformer's layers: the first list of modules in it."""
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


def is_decoder(model: PreTrainedModel) -> bool:
    """Whether the architecture was made to predict the next token.

    This does not depend on what its tokens attend to now.
    """
    if model.config.is_encoder_decoder or encoder_class(model.config) == type(model).__name__:
        return False
    return model.config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def is_causal(model: PreTrainedModel) -> bool:
    """Whether tokens attend only to earlier ones.

    Padding on the right then changes nothing and needs no mask.
    """
    config = model.config
    both_ways = not getattr(config, "is_causal", True) or getattr(config, "use_bidirectional_attention", False)
    return is_decoder(model) and not both_ways


def see_both_ways(model: PreTrainedModel) -> None:
    """Let every token of a decoder attend to later ones too, in place (https://arxiv.org/abs/2404.05961)."""
    model.config.is_causal = False  # transformers reads this in every forward pass


def apply_reading(model: PreTrainedModel, reading: Reading) -> None:
    """Make the model read its tokens as `reading` says, in place.

    Raises:
        UserError: `reading` names an unknown pooling.
    """
    known = [*POOLINGS, LATENT, PER_TOKEN, *SPARSE]
    if reading.pooling not in known:
        raise unknown("pooling", reading.pooling, known)
    if reading.bidirectional:
        see_both_ways(model)


def pooled_states(
    model: PreTrainedModel,
    token_ids: Int[Tensor, "batch tokens"],
    lengths: Int[Tensor, " batch"],
    *,
    pooling: str | Pooling,
) -> Float[Tensor, "batch dim"]:
    """Compute one pooled hidden state for each row of right-padded ids.

    The states are those of the final layer, after the final norm.

    Args:
        pooling: a name in math.pooling.POOLINGS, or a pooling with weights of its own.
    """
    if model.config.is_encoder_decoder:
        return _first_answer(model, token_ids, lengths)
    options: dict[str, Any] = {"use_cache": False} if is_decoder(model) else {}
    if not is_causal(model):
        options["attention_mask"] = real_tokens(token_ids, lengths)
    last = lengths - 1 + num_virtual(model)
    with last_mlp_only_at(model, last) if pooling == "last" else nullcontext():
        hidden = model(input_ids=token_ids, **options).last_hidden_state
    pool = POOLINGS[pooling] if isinstance(pooling, str) else pooling
    return pool(hidden, lengths.clamp(max=hidden.shape[1]))  # a fused layer returns only that position


def token_states(
    model: PreTrainedModel,
    token_ids: Int[Tensor, "batch tokens"],
    attended: Bool[Tensor, "batch tokens"],
    *,
    some_unread: bool,
) -> Float[Tensor, "batch tokens dim"]:
    """Compute the hidden state of every token, after the final norm.

    Args:
        attended: True for the tokens that others attend to.
        some_unread: whether `attended` may be False for a token that is not padding on the right.
    """
    options: dict[str, Any] = {"use_cache": False} if is_decoder(model) else {}
    if some_unread or not is_causal(model):
        options["attention_mask"] = attended
    return model(input_ids=token_ids, **options).last_hidden_state


def real_tokens(token_ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"]) -> Bool[Tensor, "batch tokens"]:
    """Make a mask that is True for tokens that are not padding."""
    return torch.arange(token_ids.shape[1], device=token_ids.device) < lengths[:, None]


def _first_answer(
    model: PreTrainedModel, token_ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"]
) -> Float[Tensor, "batch dim"]:
    """Compute the state from which the decoder would choose its first token.

    It is scaled as for the language-model head.
    """
    config = model.config
    begin = torch.full_like(token_ids[:, :1], config.decoder_start_token_id)
    mask = real_tokens(token_ids, lengths)
    options = {"attention_mask": mask, "decoder_input_ids": begin, "use_cache": False}
    states = model(input_ids=token_ids, **options).last_hidden_state[:, 0]
    return states * config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else states


ONE_AT_A_TIME = Lock()


@contextmanager
def own_rotations(model: PreTrainedModel) -> Iterator[None]:
    """Keep other threads' passes from changing this one's rotations of positions.

    Some models choose rotations by the longest text of a pass and keep them in the module. Their passes run one after
    another; all other models run without waiting.
    """
    kinds = (str(getattr(module, "rope_type", "")) for module in model.modules())
    with ONE_AT_A_TIME if any("dynamic" in kind or "longrope" in kind for kind in kinds) else nullcontext():
        yield


@contextmanager
def hushed() -> Iterator[None]:
    """Silence the warnings that peft, bitsandbytes and transformers cause in one another."""
    getLogger("bitsandbytes.backends.cpu.ops").setLevel(ERROR)  # warns on import about a kernel that is not used here
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        yield
