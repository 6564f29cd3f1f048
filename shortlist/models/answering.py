"""The pointwise reranker whose score is what a language model answers, as it is trained."""

from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from shortlist.models.backbone import pooled_states
from shortlist.models.language import output_embedding
from shortlist.models.outputs import Rows
from shortlist.text.contract import InputContract, Reading
from shortlist.text.inputs import Inputs


@final
class AnsweringModel(nn.Module):
    """A language model that answers about a pair with one of its tokens.

    These are two, such as "yes" and "no", or one whose logit is the score. The language model's own weights are
    trained, and it is saved as such; `load_pointwise` reads it again. So the answers' rows of the output embedding stay
    a part of it.

    Args:
        backbone: the decoder without its head.
        inputs: makes token ids in the form of the contract.
        reading: the reading that was applied to the backbone.
        answer: the ids of "yes" and "no", or of "yes" alone.
        output: the output embedding (None: the input embedding).
    """

    kind = "answering"

    def __init__(
        self,
        backbone: PreTrainedModel,
        inputs: Inputs,
        reading: Reading,
        answer: list[int],
        output: Float[Tensor, "vocabulary dim"] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.inputs = inputs
        self.reading = reading
        self.answer = answer
        self.output = None if output is None else nn.Parameter(output)
        self.row_shape: tuple[int, ...] = (len(answer),) if len(answer) > 1 else ()

    @property
    def contract(self) -> InputContract:
        """The input contract: how texts become ids and how the output is read."""
        return InputContract(self.inputs.form, self.reading)

    def forward(self, token_ids: Int[Tensor, "batch tokens"], lengths: Int[Tensor, " batch"]) -> Rows:
        """Compute the logit of each answer to each right-padded pair, in float32."""
        pooled = pooled_states(self.backbone, token_ids, lengths, pooling=self.reading.pooling)
        with torch.autocast(pooled.device.type, enabled=False):  # losses compare the answers with one another
            logits = pooled.float() @ output_embedding(self)[self.answer].float().T
        return Rows(logits if self.row_shape else logits[:, 0])
