"""The cross-encoder that others publish: an encoder with a classification head of transformers' own."""

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
    """An encoder with the classification head that it was published with, of one label or two.

    Args:
        backbone: transformers' own sequence classifier. With two labels the score is how much larger the second one's
            logit is: the log-odds of being relevant.
        inputs: what makes the ids that it was trained on.
        reading: whether it is told of token types.
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
        """How its texts become ids, and its output is read."""
        return InputContract(self.inputs.form, self.reading)

    def forward(self, token_ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"]) -> Rows:
        """A score, float32, for each right-padded pair."""
        options: dict[str, Any] = {"attention_mask": real_tokens(token_ids, lengths)}
        if self.reading.token_types and getattr(self.backbone.config, "type_vocab_size", 0) > 1:
            ends = (token_ids == self.inputs.special_id("<sep>")).long()
            options["token_type_ids"] = (ends.cumsum(1) - ends).clamp(max=1)  # 1 behind the first `<sep>`
        logits = self.backbone(input_ids=token_ids, **options).logits.float()
        return Rows(logits[:, -1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0])
