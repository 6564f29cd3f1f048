import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shortlist.models.kernels.beginnings import SharedBeginnings, splitting_is_right


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("only_at", [None, torch.tensor([0, 3, 2, 1])])
def test_attention_to_a_shared_beginning_is_attention_to_a_copy_of_it(heads: int, only_at: Tensor | None):
    if not splitting_is_right():
        pytest.skip("this PyTorch has no attention for CPUs that can be split")
    before = random(3, 2, 9, 8), random(3, 2, 9, 8) + 0.1
    query, key, value = random(4, heads, 5, 8), random(4, 2, 5, 8), random(4, 2, 5, 8) - 0.1
    lengths, counts = [9, 4, 1], {2: 1, 0: 3}
    of_row = [2, 0, 0, 0]
    mask = torch.ones(5, 5, dtype=torch.bool).tril()[None, None].expand(4, 1, 5, 5)
    if only_at is not None:
        rows = torch.arange(4)
        query, mask = query[rows, :, only_at][:, :, None], mask[rows, :, only_at][:, :, None]
    found = SharedBeginnings([before], lengths, counts).attend(
        query, key, value, 0, mask=None if only_at is None else mask, scale=0.3
    )
    for row, place in enumerate(of_row):
        keys, values = (
            torch.cat([begun[place, :, 9 - lengths[place] :], own[row]], 1)[None]
            for begun, own in zip(before, (key, value), strict=True)
        )
        seen = torch.cat([torch.ones(1, mask.shape[2], lengths[place], dtype=torch.bool), mask[row]], 2)[None]
        expected = F.scaled_dot_product_attention(
            query[row : row + 1], keys, values, attn_mask=seen, scale=0.3, enable_gqa=True
        )
        torch.testing.assert_close(found[row : row + 1], expected, atol=1e-6, rtol=1e-5)
