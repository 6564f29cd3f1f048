"""Loading of a model from its folder, to run it or to train it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shortlist.data.files import read_json
from shortlist.errors import UserError
from shortlist.models.adapters import QUANTIZATION, adapter_head, adapter_weights, kept_adapter, merge_adapter
from shortlist.models.answering import AnsweringModel
from shortlist.models.backbone import (
    apply_reading,
    dequantize,
    empty_backbone,
    is_causal,
    is_decoder,
    load_backbone,
    load_classifier,
    num_positions,
)
from shortlist.models.classifier import ClassifierModel
from shortlist.models.dense import DenseModel
from shortlist.models.files import LATENT, LATENT_KEYS, is_adapter, is_classifier
from shortlist.models.folder import ModelFolder
from shortlist.models.heads import (
    HEAD,
    OutputHead,
    answer_head,
    answer_ids,
    check_head,
    find_head,
    find_tensor,
    one_label,
    output_head,
    own_output,
)
from shortlist.models.language import LanguageModel
from shortlist.models.late import LateModel
from shortlist.models.latent import LatentPooling
from shortlist.models.modules import dense_layers
from shortlist.models.pointwise import PointwiseModel, new_head
from shortlist.text.contract import PER_TOKEN, SPARSE, Adjust, Form, InputContract, Reading, named_contract
from shortlist.text.inputs import Inputs
from shortlist.text.proof import proved_inputs

Vectors = TypeVar("Vectors", bound="DenseModel | LateModel")

BESIDE = (HEAD, *LATENT_KEYS.values())
"""Ends of the keys in an adapter that do not belong to its backbone."""


def load_dense(folder: ModelFolder, contract: InputContract, *, dtype: torch.dtype = torch.float32) -> DenseModel:
    """Load a retriever from a folder.

    This may be a folder written by shortlist, a sentence-transformers folder, or a plain backbone.

    Raises:
        UserError: there is no model, or its tokenizer does not fit the contract.
    """
    inputs = proved_inputs(contract.form, folder.tokenizer)
    backbone = open_backbone(folder, contract.reading, dtype=dtype)
    pool = latent_pooling(folder, backbone) if contract.reading.pooling == LATENT else None
    return check_dims(DenseModel(backbone, inputs, contract.reading, dense_layers(folder.path), pool), folder.name)


def latent_pooling(folder: ModelFolder, backbone: PreTrainedModel, *, seed: int | None = None) -> LatentPooling:
    """Load a model's latent pooling from its folder.

    Args:
        seed: the seed of a new pooling, if the folder has none (None: refuse a folder without one).

    Raises:
        UserError: the folder has none, or the backbone answers with a token, so that it pools nothing.
    """
    if backbone.config.is_encoder_decoder:
        raise UserError(f"{folder.name}: is an encoder-decoder, whose first answer is read, so it has no pooling.")
    stored = adapter_weights(folder.path) if is_adapter(folder.path) else {}
    found = {
        name.rpartition(".")[2]: next((stored[k] for k in stored if k.endswith(f".{key}")), None)
        if stored
        else find_tensor(folder.path, key)
        for name, key in LATENT_KEYS.items()
    }
    weights = {name: weight for name, weight in found.items() if weight is not None}
    if len(weights) == len(found):
        return LatentPooling.of(weights)
    if seed is None:
        raise UserError(f"{folder.name}: has no weights of a latent pooling, which its contract names; train one.")
    return LatentPooling.new(backbone.config.hidden_size, seed=seed)


def refuse_latent(reading: Reading, name: str) -> None:
    """Refuse a retriever's poolings where they have no place.

    Raises:
        UserError: the reading names one.
    """
    if reading.pooling in (LATENT, PER_TOKEN, *SPARSE):
        raise UserError(f"{name}: a {reading.pooling} pooling is a retriever's; choose last, cls, mean or weighted.")


def refuse_tokens(reading: Reading, name: str) -> None:
    """Refuse to keep all tokens' vectors where a text has one.

    Raises:
        UserError: the reading says so.
    """
    if reading.pooling == PER_TOKEN:
        raise UserError(
            f"{name}: the pooling {PER_TOKEN} keeps a vector for each token, which is late interaction: train late."
        )
    if reading.pooling in SPARSE:
        raise UserError(f"{name}: the pooling {reading.pooling} gives weights of terms: train sparse.")


def check_dims(model: Vectors, name: str) -> Vectors:
    """Return a retriever if its vectors have all dimensions that its contract cuts them to.

    Raises:
        UserError: they have fewer.
    """
    most = max(model.reading.cut, *model.reading.dims, 0)
    if most > model.full_dim:
        raise UserError(f"{name}: has vectors of {model.full_dim} dimensions, --dims has {most}; expected no more.")
    return model


def load_pointwise(
    folder: ModelFolder, contract: InputContract, *, dtype: torch.dtype = torch.float32
) -> PointwiseModel:
    """Load a reranker with its head.

    The head is `score.weight`, or comes from a language model's output embedding if the contract names an answer.

    Raises:
        UserError: there is no model, it has no head, or its tokenizer does not fit the contract.
    """
    inputs, reading = proved_inputs(contract.form, folder.tokenizer), contract.reading
    refuse_latent(reading, folder.name)
    if reading.answer:
        backbone = open_backbone(folder, reading, dtype=dtype)
        head = answer_head(backbone, inputs.tokenizer, reading.answer, folder.whole.path)
        return PointwiseModel(backbone, inputs, reading, head)
    head = head_of(folder)
    if head is None:
        raise UserError(
            f"{folder.name}: has no head for scores (no {HEAD!r}, no classifier in its config.json), so this is not a "
            "trained reranker; train one from it."
        )
    return PointwiseModel(open_backbone(folder, reading, dtype=dtype), inputs, reading, one_label(head, folder.name))


def load_classifier_model(
    folder: ModelFolder, contract: InputContract, *, dtype: torch.dtype = torch.float32
) -> ClassifierModel:
    """Load a cross-encoder, an encoder with a classification head.

    Raises:
        UserError: it cannot be loaded, or its tokenizer does not fit the contract.
    """
    inputs = proved_inputs(contract.form, folder.tokenizer)
    backbone = load_classifier(str(folder.path), dtype=dtype)
    apply_reading(backbone, contract.reading)
    return ClassifierModel(backbone, inputs, contract.reading)


def dense_to_train(
    folder: ModelFolder,
    contract: InputContract | None = None,
    *,
    seed: int = 0,
    adjust: Adjust | None = None,
    **loading: Any,
) -> DenseModel:
    """Load a retriever to start training from.

    Args:
        folder: the folder of the model or backbone.
        contract: the input contract (None: the folder's own, or the paper's for its architecture).
        seed: the seed of a new latent pooling.
        adjust: changes that contract before use, such as its lengths.
        loading: dtype, attention and four_bit as for `load_backbone`; or `empty=True` for shapes without weights.
    """
    backbone = open_backbone(folder, **loading)
    if dense_layers(folder.path):
        raise UserError(
            f"{folder.name}: has layers behind its pooling, which are not trained here; start from another model."
        )
    contract = contract or folder.own_contract("document")
    contract = contract or named_contract("repllama" if is_decoder(backbone) else "bert")
    inputs, reading = inputs_to_train(folder, backbone, contract, adjust)
    refuse_tokens(reading, folder.name)
    pool = latent_pooling(folder, backbone, seed=seed) if reading.pooling == LATENT else None
    return check_dims(DenseModel(backbone, inputs, reading, pool=pool), folder.name)


def pointwise_to_train(
    folder: ModelFolder,
    contract: InputContract | None = None,
    *,
    seed: int = 0,
    adjust: Adjust | None = None,
    **loading: Any,
) -> PointwiseModel | AnsweringModel:
    """Load a reranker to start training from.

    A trained reranker keeps its head; any other backbone gets a new one. If the contract names an answer, a language
    model's own output embedding is trained instead.

    Args:
        seed: the seed of the new head.
        contract: as for `dense_to_train`, like the other arguments.
    """
    if is_classifier(folder.path):
        raise UserError(
            f"{folder.name}: is a cross-encoder, whose own head training here would replace by a new one; start from "
            "the encoder that it was made from."
        )
    backbone = open_backbone(folder, **loading)
    contract = contract or folder.own_contract("pair")
    contract = contract or named_contract("rankllama" if is_decoder(backbone) else "bert-pair")
    if backbone.config.is_encoder_decoder:
        raise UserError(f"{folder.name}: is an encoder-decoder, which is not trained here; take a decoder or encoder.")
    if contract.reading.answer:
        return _answering_to_train(folder, backbone, contract, adjust, empty=loading.get("empty", False))
    head = head_of(folder)
    head = new_head(backbone, seed=seed) if head is None else one_label(head, folder.name)
    inputs, reading = inputs_to_train(folder, backbone, contract, adjust)
    refuse_latent(reading, folder.name)
    return PointwiseModel(backbone, inputs, reading, head)


def _answering_to_train(
    folder: ModelFolder, backbone: PreTrainedModel, contract: InputContract, adjust: Adjust | None, *, empty: bool
) -> AnsweringModel:
    """Load a language model that answers about a pair, to start training from."""
    output = own_output(backbone, folder.whole.backbone_path, empty=empty)
    inputs, reading = inputs_to_train(folder, backbone, contract, adjust)
    refuse_latent(reading, folder.name)
    backbone.config.tie_word_embeddings = output is None
    answer = answer_ids(inputs.tokenizer, reading.answer, folder.whole.path)
    return AnsweringModel(backbone, inputs, reading, answer, output)


def language_model_to_train(
    folder: ModelFolder,
    contract: InputContract | None = None,
    *,
    seed: int = 0,
    adjust: Adjust | None = None,
    generates: bool = False,
    **loading: Any,
) -> LanguageModel:
    """Load a language model to start training from.

    Its texts are the pairs of a reranker.

    Args:
        generates: whether it must have a head already, as it is to generate answers.
        contract: as for `dense_to_train`, like the other arguments.

    Raises:
        UserError: the backbone is not a causal decoder, or its logits are more than states times an embedding.
    """
    backbone = open_backbone(folder, **loading)
    if generates and not loading.get("empty", False):
        check_head(backbone, folder.whole.backbone_path)
    output = own_output(backbone, folder.whole.backbone_path, empty=loading.get("empty", False))
    contract = contract or folder.own_contract("pair") or named_contract("rankllama")
    inputs, reading = inputs_to_train(folder, backbone, contract, adjust)
    if not is_causal(backbone) or reading.bidirectional:
        raise UserError(f"{folder.name}: its tokens see what comes after them, so there is nothing to predict.")
    backbone.config.tie_word_embeddings = output is None  # saved with it, so that transformers builds the same model
    return LanguageModel(backbone, inputs, reading, output)


def load_generator(
    folder: ModelFolder, *, dtype: torch.dtype = torch.float32, headless: bool = False
) -> tuple[PreTrainedModel, OutputHead]:
    """Load a causal language model from a folder: its backbone, adapters merged, and its head.

    Args:
        headless: take the input embedding for the head, whatever the folder has, where only states are read.

    Raises:
        UserError: there is no model, or it has no language-model head.
    """
    backbone = open_backbone(folder, dtype=dtype)
    if headless:
        return backbone, OutputHead(backbone.get_input_embeddings().weight.detach())  # pyright: ignore
    return backbone, output_head(backbone, folder.whole.backbone_path)


def open_backbone(folder: ModelFolder, reading: Reading | None = None, **loading: Any) -> PreTrainedModel:
    """Load the backbone of a folder, with adapters merged.

    Args:
        folder: the folder of the model.
        reading: the reading to apply to it (None: the default).
        loading: options as for `load_backbone`; `empty` for shapes without weights; `beside` as for `merge_adapter`.
    """
    backbone = _merged(folder, **loading)
    if reading:
        apply_reading(backbone, reading)
    return backbone


def head_of(folder: ModelFolder) -> Tensor | None:
    """Load a reranker's head from a folder; None if it has no head."""
    return adapter_head(folder.path) if is_adapter(folder.path) else find_head(folder.path)


def _merged(
    folder: ModelFolder, *, empty: bool = False, beside: Sequence[str] = BESIDE, **loading: Any
) -> PreTrainedModel:
    path, base = folder.backbone_path, folder.base
    if base is None:
        return (empty_backbone if empty else load_backbone)(str(path), **loading)
    if empty:
        return _merged(base, empty=True, **loading)
    if loading.get("four_bit"):
        raise UserError(f"{folder.name}: is an adapter, which --four-bit cannot start from; name a whole model.")
    if (path / QUANTIZATION).exists():  # the updates were trained on weights rounded from this dtype
        dtype = getattr(torch, read_json(path / QUANTIZATION)["bnb_4bit_compute_dtype"])
        rounded = dequantize(_merged(base, dtype=dtype, four_bit=True, encoder=loading.get("encoder", False)))
        return merge_adapter(rounded, path, beside=beside).to(loading.get("dtype", torch.float32))
    return merge_adapter(_merged(base, beside=(*BESIDE, *beside), **loading), path, beside=beside)


def inputs_to_train(
    folder: ModelFolder, backbone: PreTrainedModel, contract: InputContract, adjust: Adjust | None
) -> tuple[Inputs, Reading]:
    """Adjust a contract, apply its reading to the backbone, and return inputs and reading.

    Raises:
        UserError: the backbone keeps an adapter beside its weights.
    """
    if kept_adapter(backbone) is not None:
        raise UserError(
            f"{folder.name}: is an adapter that cannot be merged into the weights below it, so nothing is trained from "
            f"it here; start from {folder.whole.name}."
        )
    contract = replace(contract, form=contract.form.within(num_positions(backbone)))
    contract = folder.check_lengths(adjust(contract) if adjust else contract)
    apply_reading(backbone, contract.reading)
    return _inputs(folder, contract.form), contract.reading


def _inputs(folder: ModelFolder, form: Form) -> Inputs:
    """Make the inputs for training, without `<bos>` if the tokenizer has none."""
    return proved_inputs(form.fitted(folder.tokenizer), folder.tokenizer)
