"""Contexts of blocks: the same as transformers computes with a dense mask and explicit positions."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from test_generator import generator_of, whole_model

from shortlist.errors import UserError
from shortlist.models.attention import AttentionReader
from shortlist.models.blocks import Blocks, answer_blocks, check_blocks, score_blocks
from shortlist.models.language import BlockLayout, LanguageModel, Wanted
from shortlist.models.outputs import split
from shortlist.models.reading import make_readable
from shortlist.models.run import prepare_backbone

START = 40


def some_blocks(count: int = 5) -> Blocks:
    draw = np.random.default_rng(1)
    documents = [draw.integers(3, 100, length).tolist() for length in draw.integers(1, 9, count)]
    first, last = draw.integers(3, 100, 6).tolist(), draw.integers(3, 100, 7).tolist()
    return Blocks(first, documents, last, slice(5, 7))


def dense(blocks: Blocks, said: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    """The ids of all blocks as one row, with a mask and positions written down one by one."""
    parts = [list(blocks.first), *map(list, blocks.documents), [*blocks.last, *said]]
    owner = [number for number, part in enumerate(parts) for _ in part]
    place = [i for part in parts for i in range(len(part))]
    starts = [0, *[len(blocks.first)] * len(blocks.documents), START]
    size, last = len(owner), len(parts) - 1
    seen = torch.zeros(size, size, dtype=torch.bool)
    for row in range(size):
        for column in range(row + 1):
            seen[row, column] = owner[row] in (last, owner[column]) or owner[column] == 0
    return {
        "input_ids": torch.tensor([[i for part in parts for i in part]]),
        "position_ids": torch.tensor([[starts[o] + i for o, i in zip(owner, place, strict=True)]]),
        "attention_mask": torch.zeros(1, 1, size, size).masked_fill(~seen, torch.finfo(torch.float32).min),
    }


def plain_scores(causal: Any, blocks: Blocks, layer: int) -> list[float]:
    """The two rows' attention, shared among documents' tokens only, mean over heads and rows, sum over documents."""
    causal = deepcopy(causal)
    causal.set_attn_implementation("eager")
    with torch.no_grad():
        weights = causal(**dense(blocks), output_attentions=True, use_cache=False).attentions[layer][0]
    begun, sizes = len(blocks.first), [len(ids) for ids in blocks.documents]
    end = begun + sum(sizes)
    rows = weights[:, end + blocks.asking.start : end + blocks.asking.stop, begun:end]
    tokens = (rows / rows.sum(-1, keepdim=True)).mean((0, 1))
    return [float(part.sum()) for part in tokens.split(sizes)]


def reader_of(causal: Any, *, fused: bool) -> AttentionReader:
    generator = generator_of(deepcopy(causal))
    make_readable(generator.backbone)
    if fused:
        prepare_backbone(generator.backbone, torch.device("cpu"))
    return generator.reader()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_scores_are_those_of_a_dense_mask(family: str, fused: bool):
    causal, blocks = whole_model(family), some_blocks()
    reader = reader_of(causal, fused=fused)
    for layer in (0, 1):
        expected = plain_scores(causal, blocks, layer)
        for early in (True, False):
            found = score_blocks(reader, blocks, layer=layer, start=START, early=early)
            assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert sum(expected) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_permuting_documents_permutes_scores(fused: bool):
    reader, blocks = reader_of(whole_model("llama"), fused=fused), some_blocks()
    order = [3, 0, 4, 2, 1]
    moved = blocks._replace(documents=[blocks.documents[place] for place in order])
    before = score_blocks(reader, blocks, layer=1, start=START)
    torch.testing.assert_close(score_blocks(reader, moved, layer=1, start=START), before[order], atol=1e-5, rtol=0)


def test_every_token_is_computed_once_however_many_documents_there_are(monkeypatch: pytest.MonkeyPatch):
    reader, computed = reader_of(whole_model("llama"), fused=True), []
    run = AttentionReader.run

    def counted(self: AttentionReader, rows: Any, *args: Any, **options: Any) -> Any:
        computed.append(sum(map(len, rows)))
        return run(self, rows, *args, **options)

    monkeypatch.setattr(AttentionReader, "run", counted)
    for count in (5, 50):
        computed.clear()
        blocks = some_blocks(count)
        score_blocks(reader, blocks, layer=1, start=START)
        assert sum(computed) == sum(blocks.lengths)


@pytest.mark.parametrize("fused", [False, True])
def test_an_answer_is_that_of_a_dense_mask(fused: bool):
    causal, blocks, said = whole_model("llama"), some_blocks(), ()
    for _ in range(4):
        with torch.no_grad():
            logits = causal(**dense(blocks, said), use_cache=False).logits[0, -1]
        said = (*said, int(logits.argmax()))
    generator = generator_of(deepcopy(causal))
    reader = reader_of(causal, fused=fused)
    assert answer_blocks(reader, generator.head, blocks, start=START, most=4, stop=()) == list(said)
    stopped = answer_blocks(reader, generator.head, blocks, start=START, most=4, stop=[said[0]])
    assert stopped == [said[0]]


def trained(causal: Any) -> LanguageModel:
    """The same model as it is trained."""
    backbone = deepcopy(causal).base_model
    make_readable(backbone)
    model = LanguageModel.__new__(LanguageModel)  # texts, and how they are read, are of no importance here
    torch.nn.Module.__init__(model)
    model.backbone, model.output = backbone, torch.nn.Parameter(causal.lm_head.weight.detach().clone())
    return model


def test_training_reads_the_same_attention_and_its_gradient_reaches_the_layers_below():
    causal, every = whole_model("llama"), [some_blocks(5), some_blocks(3)]
    model = trained(causal)
    ids, wanted = [], []
    for blocks in every:
        begun = sum(blocks.lengths) - len(blocks.last)
        asking = slice(begun + blocks.asking.start, begun + blocks.asking.stop)
        layout = BlockLayout(tuple(blocks.lengths), START, asking, 1)
        ids.append(dense(blocks)["input_ids"][0])
        wanted.append(Wanted(begun + 6, begun + 7, layout=layout))
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    rows = split(model(padded, torch.tensor([len(one) for one in ids]), wanted))
    for row, blocks in zip(rows, every, strict=True):
        assert row[2:].tolist() == pytest.approx(plain_scores(causal, blocks, 1), abs=1e-5)
        with torch.no_grad():
            logits = causal(**dense(blocks), use_cache=False).logits[0]
        assert float(row[0]) == pytest.approx(-float(logits[-2].log_softmax(-1)[blocks.last[6]]), abs=1e-5)
    rows[0][2].backward()
    first, second = (layer.self_attn.q_proj.weight.grad for layer in model.backbone.layers)
    assert first.abs().max() > 0
    assert second.abs().max() > 0
    after = model.backbone.layers[1].mlp.down_proj.weight.grad
    assert after is None or not after.any()  # attention comes before


def test_a_layer_that_is_not_there_and_windows_are_refused():
    with pytest.raises(UserError, match="--layer is 2; the model has layers 0 to 1"):
        check_blocks(reader_of(whole_model("llama"), fused=False), 2)
    with pytest.raises(UserError, match="take a model without sliding windows"):
        check_blocks(reader_of(whole_model("mistral"), fused=False), 1)


def test_no_documents_have_no_scores():
    reader = reader_of(whole_model("llama"), fused=False)
    assert score_blocks(reader, some_blocks()._replace(documents=[]), layer=1, start=START).shape == (0,)
