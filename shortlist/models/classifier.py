"""The published kind of cross-encoder: a sequence classifier of transformers."""

from typing import Any, final

from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortlist.models.backbone import real_tokens
from shortlist.models.outputs import Rows
from shortlist.text.contract import InputContract, Reading
from shortlist.text.inputs import Inputs


@final
class ClassifierModel(nn.Module):
    """An encoder with its published classification head, of one label or two.

    Args:
        backbone: a sequence classifier of transformers. With two labels the score is the second logit minus the first,
            the log-odds of being relevant.
        inputs: makes token ids in the form that the model was trained on.
        reading: says whether the backbone gets token types.
    """

    kind = "classifier"
    row_shape: tuple[int, ...] = ()

    def __init__(self, backbone: PreTrainedModel, inputs: Inputs, reading: Reading) -> None:
        super().__init__()
        self.backbone = backbone
        self.inputs = inputs
        self.reading = reading

    @property
    def contract(self) -> InputContract:
        """The input contract: how texts become ids and how the output is read."""
        return InputContract(self.inputs.form, self.reading)

    def forward(self, token_ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"]) -> Rows:
        """Compute a float32 score for each right-padded pair."""
        options: dict[str, Any] = {"attention_mask": real_tokens(token_ids, lengths)}
        if self.reading.token_types and getattr(self.backbone.config, "type_vocab_size", 0) > 1:
            ends = (token_ids == self.inputs.special_id("<sep>")).long()
            options["token_type_ids"] = (ends.cumsum(1) - ends).clamp(max=1)  # 1 after the first `<sep>`
        logits = self.backbone(input_ids=token_ids, **options).logits.float()
        return Rows(logits[:, -1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0])
