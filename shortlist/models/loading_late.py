"""Loading of a late-interaction model from its folder, to run it or to train it."""

from dataclasses import replace
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from shortlist.errors import UserError
from shortlist.models.adapters import adapter_weights
from shortlist.models.backbone import encoder_class, is_decoder
from shortlist.models.dense import DenseLayer, UnitLength
from shortlist.models.files import PROJECTION, is_adapter
from shortlist.models.folder import ModelFolder
from shortlist.models.late import LateModel, new_projection
from shortlist.models.load import check_dims, inputs_to_train, open_backbone
from shortlist.models.modules import MODULES, dense_layers
from shortlist.text.contract import PER_TOKEN, Adjust, InputContract, Reading, named_contract
from shortlist.text.inputs import find_id
from shortlist.text.proof import proved_inputs

DIM = 128
"""The dimension of a new model's vectors, as in the papers."""

MARKERS = ("[unused0]", "[unused1]")
"""Tokens that BERT's vocabulary has for new uses."""


def load_late(folder: ModelFolder, contract: InputContract, *, dtype: torch.dtype = torch.float32) -> LateModel:
    """Load a late-interaction model from a folder.

    Raises:
        UserError: there is no model, it has no projection, or its tokenizer does not fit the contract.
    """
    _refuse_pickles(folder)
    inputs = proved_inputs(contract.form, folder.tokenizer)
    layers = late_layers(folder)
    if not layers:
        raise UserError(
            f"{folder.name}: has no projection of tokens (no {PROJECTION!r}, no Dense in {MODULES}), so this is not a "
            "trained late-interaction model; train one from it: shortlist train late."
        )
    backbone = _open_encoder(folder, contract.reading, dtype=dtype)
    return check_dims(LateModel(backbone, inputs, contract.reading, layers), folder.name)


def _open_encoder(folder: ModelFolder, reading: Reading | None = None, **loading: Any) -> PreTrainedModel:
    """Load the backbone, which is saved under the name of its own architecture."""
    backbone = open_backbone(folder, reading, beside=(PROJECTION,), encoder=True, **loading)
    backbone.config.architectures = [type(backbone).__name__]
    return backbone


def _refuse_pickles(folder: ModelFolder) -> None:
    """Refuse a folder whose weights are in pickles alone, as older checkpoints are.

    Raises:
        UserError: it is such a folder.
    """
    pickles = sorted(path.name for path in folder.path.iterdir() if path.suffix in (".bin", ".dnn", ".pt"))
    if pickles and not folder.weight_files and not is_adapter(folder.path):
        raise UserError(
            f"{folder.name}: has its weights in {pickles[0]}, a pickle, which can run code when it is opened; expected "
            "safetensors: load and save it with the tool that made it."
        )


def late_layers(folder: ModelFolder) -> list[DenseLayer | UnitLength]:
    """Load the layers behind the backbone, in order; none if the folder has no projection."""
    if layers := dense_layers(folder.path):
        return layers
    weight = _projection(folder)
    return [] if weight is None else [DenseLayer(weight)]


def late_to_train(
    folder: ModelFolder,
    contract: InputContract | None = None,
    *,
    dim: int | None = None,
    seed: int = 0,
    adjust: Adjust | None = None,
    **loading: Any,
) -> LateModel:
    """Load a late-interaction model to start training from.

    A trained one keeps its projection; any other backbone gets a new one.

    Args:
        contract: the input contract (None: the folder's own if it is a late-interaction model's, or ColBERT's).
        dim: the dimension of the vectors (None: the trained model's, or DIM).
        seed: the seed of a new projection.
        adjust: changes that contract before use, such as its lengths.
        loading: as for `load.dense_to_train`.
    """
    own = folder.own_contract("document")
    own = own if own and own.reading.pooling == PER_TOKEN else None
    backbone = _open_encoder(folder, **loading)
    contract = contract or own or new_contract(folder, backbone)
    contract = replace(contract, reading=replace(contract.reading, pooling=PER_TOKEN))
    inputs, reading = inputs_to_train(folder, backbone, contract, adjust)
    layer = _layer_to_train(folder, dim) if own else None
    layer = layer or DenseLayer(new_projection(backbone, dim or DIM, seed=seed))
    return check_dims(LateModel(backbone, inputs, reading, [layer]), folder.name)


def new_contract(folder: ModelFolder, backbone: PreTrainedModel) -> InputContract:
    """Choose the contract of a late-interaction model that is made from a backbone."""
    if encoder_class(backbone.config):
        return named_contract("xtr")
    marked = all(find_id(folder.tokenizer, name) is not None for name in MARKERS)
    return named_contract("colbert-decoder" if is_decoder(backbone) else "colbert" if marked else "colbert-text")


def _layer_to_train(folder: ModelFolder, dim: int | None) -> DenseLayer:
    """Load the projection of a trained model to go on from.

    Raises:
        UserError: it has more layers than one, or another dimension than asked for.
    """
    layers = late_layers(folder)
    if len(layers) != 1 or not isinstance(layer := layers[0], DenseLayer) or not layer.is_plain:
        raise UserError(
            f"{folder.name}: has {len(layers)} layers behind its backbone; one without bias, activation or residual "
            "is trained here; start from another model."
        )
    if dim not in (None, layer.out_features):
        raise UserError(f"--dim is {dim}, and {folder.name} has vectors of {layer.out_features}; leave it out.")
    return layer


def _projection(folder: ModelFolder) -> Tensor | None:
    """Find the projection in the folder's weights.

    Its key is the whole name there, since layers of backbones may have names that end alike.
    """
    if is_adapter(folder.path):
        found = adapter_weights(folder.path).items()
        return next((weight for key, weight in found if key in PROJECTION_KEYS), None)
    for path in folder.weight_files:
        with safe_open(path, framework="pt") as weights:
            if PROJECTION in weights.keys():  # noqa: SIM118 (not a dict)
                return weights.get_tensor(PROJECTION)
    return None


PROJECTION_KEYS = tuple(f"base_model.{below}{PROJECTION}" for below in ("", "model."))
"""The keys of the projection in an adapter."""
