import pytest
import torch

from shortlist.math.blocks import OFFSETS, block_mask, block_positions, block_spans, usual_layer


def test_who_sees_whom_worked_out_by_hand():
    seen = block_mask([2, 1, 2, 1]).int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],  # the first document: the instruction and itself
        [1, 1, 0, 1, 0, 0],  # the second one: not the first
        [1, 1, 0, 1, 1, 0],
        [1, 1, 1, 1, 1, 1],  # the question: everything
    ]


def test_all_documents_begin_behind_the_instruction_and_the_question_at_the_offset():
    assert block_positions([2, 1, 3, 2], 100).tolist() == [0, 1, 2, 2, 3, 4, 100, 101]
    assert block_spans([2, 1, 3]) == [slice(0, 2), slice(2, 3), slice(3, 6)]


def test_offsets_are_those_of_the_paper_and_of_the_code_and_the_nearest_one():
    assert {name: offset([7, 2, 5, 3]) for name, offset in OFFSETS.items()} == {
        "paper": 8192,
        "code": 16384,
        "near": 12,
    }
    assert OFFSETS["near"]([7, 3]) == 7


def test_the_layer_read_is_twenty_of_thirty_two():
    assert [usual_layer(count) for count in (32, 2, 1)] == [20, 1, 0]


@pytest.mark.parametrize("order", [[2, 0, 1]])
def test_permuting_documents_permutes_the_mask(order: list[int]):
    lengths = [2, 1, 3, 2, 2]
    spans = block_spans(lengths)
    moved = [0, *(1 + place for place in order), 4]
    tokens = torch.cat([torch.arange(spans[b].start, spans[b].stop) for b in moved])
    assert torch.equal(block_mask([lengths[b] for b in moved]), block_mask(lengths)[tokens][:, tokens])
