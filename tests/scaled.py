"""A kind of model that the package does not have: a retriever whose vectors are as long as it has learnt."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortlist.models.backbone import pooled_states
from shortlist.models.folder import ModelFolder
from shortlist.models.kinds import ModelKind
from shortlist.models.load import dense_to_train, open_backbone
from shortlist.models.outputs import Rows
from shortlist.models.save import saved_weights
from shortlist.text.contract import InputContract, Reading
from shortlist.text.inputs import Inputs
from shortlist.text.proof import proved_inputs

KEY = "scale.weight"


class ScaledModel(nn.Module):
    """A backbone whose pooled state, of length 1, is multiplied by a number."""

    kind = "scaled"

    def __init__(self, backbone: PreTrainedModel, inputs: Inputs, reading: Reading, scale: Tensor) -> None:
        super().__init__()
        self.backbone, self.inputs, self.reading = backbone, inputs, reading
        self.scale = nn.Parameter(scale)

    @property
    def contract(self) -> InputContract:
        return InputContract(self.inputs.form, self.reading)

    @property
    def row_shape(self) -> tuple[int]:
        return (self.backbone.config.hidden_size,)

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Rows:
        pooled = pooled_states(self.backbone, token_ids, lengths, pooling=self.reading.pooling)
        return Rows(self.scale * F.normalize(pooled.float(), dim=-1))


def find_scale(folder: Path) -> Tensor | None:
    return next((value for key, value in saved_weights(folder) if f".{key}".endswith(f".{KEY}")), None)


def load(folder: ModelFolder, contract: InputContract, **options: Any) -> ScaledModel:
    inputs, scale = proved_inputs(contract.form, folder.tokenizer), find_scale(folder.path)
    assert scale is not None
    backbone = open_backbone(folder, contract.reading, beside=(KEY,), **options)
    return ScaledModel(backbone, inputs, contract.reading, scale)


def to_train(folder: ModelFolder, contract: InputContract | None = None, **options: Any) -> ScaledModel:
    dense, scale = dense_to_train(folder, contract, beside=(KEY,), **options), find_scale(folder.path)
    return ScaledModel(dense.backbone, dense.inputs, dense.reading, torch.ones(1) if scale is None else scale)


SCALED = ModelKind(
    role="retriever",
    reads="document",
    is_in=lambda folder, contract: find_scale(folder.path) is not None,
    load=load,
    to_train=to_train,
    temperature=1.0,
    saved={"scale": KEY},
)
