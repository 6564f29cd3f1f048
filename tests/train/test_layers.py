from pathlib import Path
from typing import Any

import pytest
import torch
from named import retriever_to_train
from tiny import write_llama

from shortlist.errors import UserError
from shortlist.models.dense import DenseModel
from shortlist.train.layers import LayerSampling, SamplingSettings, hold_back, parse_sampling
from shortlist.train.optimizers import new_optimizer


@pytest.fixture
def model(tmp_path: Path) -> DenseModel:
    return retriever_to_train(str(write_llama(tmp_path / "llama", num_hidden_layers=3)), None)


def trained_layers(model: DenseModel) -> list[int]:
    names = [name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad and "layers." in name]
    return sorted({int(name) for name in names})


def test_only_drawn_layers_train_and_the_optimizer_forgets_the_others(model: DenseModel):
    optimizer = new_optimizer(model, learning_rate=0.1)
    sampling, before = LayerSampling(model, SamplingSettings(1, every=3), seed=0), None
    drawn = []
    for step in range(12):
        chosen = sampling.choose(step, optimizer)
        assert trained_layers(model) == chosen
        if step % 3:
            assert chosen == before
        before = chosen
        drawn.append(chosen[0])
        for p in model.parameters():
            p.grad = torch.ones_like(p) if p.requires_grad else None
        optimizer.step()
        held = {name.split(".")[2] for name, p in model.named_parameters() if p in optimizer.state and "layers" in name}
        assert held == {str(chosen[0])}
    assert len(set(drawn)) > 1
    embedding: Any = model.backbone.get_input_embeddings().weight
    assert int(optimizer.state[embedding]["step"]) == 12


def test_a_layer_with_more_outliers_is_drawn_more_often(model: DenseModel):
    backbone: Any = model.backbone
    with torch.no_grad():
        backbone.layers[1].mlp.up_proj.weight[:8] *= 100
    sampling = LayerSampling(model, SamplingSettings(1, every=1, threshold=5.0), seed=0)
    optimizer = new_optimizer(model, learning_rate=0.1)
    assert sampling.shares[1] > 10 * sampling.shares[0]
    assert sum(sampling.choose(step, optimizer) == [1] for step in range(20)) > 12


def test_a_forecast_has_as_many_layers_as_train_at_a_time(model: DenseModel):
    hold_back(model, SamplingSettings(2))
    assert trained_layers(model) == [0, 1]
    with pytest.raises(UserError, match="--layers-sampled 4: the model has 3 layers"):
        hold_back(model, SamplingSettings(4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0", "the number of layers is '0'"),
        ("two", "the number of layers is 'two'"),
        ("2,evrey=3", "unknown option of --layers-sampled 'evrey': perhaps 'every'"),
        ("2,every=0", "expected every of at least 1"),
    ],
)
def test_a_sampling_that_makes_no_sense_is_refused(text: str, message: str):
    with pytest.raises(UserError, match=message):
        parse_sampling(text)


def test_settings_left_out_are_the_papers():
    assert parse_sampling("2") == SamplingSettings(2, 20, 13.0)
    assert parse_sampling("1,every=5,threshold=3.5") == SamplingSettings(1, 5, 3.5)
