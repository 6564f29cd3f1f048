"""Starting point of a training run: groups with their queries, and the model to train."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from shortlist.data.collections import Collection
from shortlist.data.groups import GroupSource
from shortlist.math.sampling import shortfall
from shortlist.models.adapters import add_lora
from shortlist.models.backbone import checkpoint_layers
from shortlist.models.folder import ModelFolder
from shortlist.models.kernels.training_linear import speed_up_training
from shortlist.models.kinds import named_kind
from shortlist.models.lora import parse_lora
from shortlist.models.save import Trainable
from shortlist.progress import say
from shortlist.settings.train import open_source
from shortlist.text.contract import InputContract, named_contract
from shortlist.train.examples import check_groups, without_missing
from shortlist.train.gather import World, shard
from shortlist.train.losses import check_needs
from shortlist.train.negatives import check_negatives, with_negatives
from shortlist.train.settings import Config, losses


def collect_groups(config: Config, collection: Collection) -> tuple[Config, GroupSource]:
    """Collect the groups with their queries and negatives, and check them.

    Groups with too few negatives are counted in a message. A reranker's groups that are made here get negatives, as the
    returned config says.
    """
    where, role = str(config.groups or f"{config.collection} {config.split}"), named_kind(config.kind).role
    config, source = open_source(config, collection)
    if config.skip_missing:
        source = source._replace(groups=without_missing(source.groups, source.queries, collection))
    check_groups(source.groups, source.queries, where=where)
    if config.negatives_from and config.negatives != 0:
        source = with_negatives(source, collection, config.negatives_from, negatives=config.negatives, seed=config.seed)
    check_needs(losses(config), source.groups, where=where)
    check_negatives(role, source.groups, negatives=config.negatives, batch_size=config.batch_size, where=where)
    if short := shortfall(source.groups, config.negatives or 0):
        say(f"train: {short:,} of {len(source.groups):,} groups have fewer than {config.negatives} negatives.")
    return config, source


def build_model(config: Config, backbone: ModelFolder, device: torch.device, world: World) -> tuple[Trainable, Any]:
    """Build the model on its device, ready to train.

    Returns it with PEFT's wrapper, which is None without a LoRA.
    """
    loading = {"dtype": weights_dtype(config, device), "attention": config.attention, "four_bit": config.four_bit}
    model, adapter = adapted_model(config, backbone, **loading)
    if config.sharded and world.size > 1:
        shard(model, _layers(model.backbone), device)
    elif config.sharded:
        say("train: --sharded has nobody to share with, as one process trains (--processes); going on.")
    model.to(device)
    if device.type == "cpu":
        speed_up_training(model)
    return model, adapter


def weights_dtype(config: Config, device: torch.device) -> torch.dtype:
    """Choose the number type of the weights.

    Frozen weights are stored in the precision they are computed with.
    """
    frozen = config.lora is not None and config.precision == "bf16" and device.type == "cuda"
    return torch.bfloat16 if frozen else torch.float32


def adapted_model(config: Config, backbone: ModelFolder, **loading: Any) -> tuple[Trainable, Any]:
    """Load the model and prepare what is to train, such as a LoRA.

    Returns the model with PEFT's wrapper, which is None without a LoRA.
    """
    model = _loaded(config, backbone, **loading)
    torch.manual_seed(config.seed)  # for the adapter's initial weights
    adapter = add_lora(model.backbone, parse_lora(config.lora)) if config.lora else None
    if config.gradient_checkpointing:
        checkpoint_layers(model.backbone)
    return model, adapter


def _loaded(config: Config, backbone: ModelFolder, **loading: Any) -> Trainable:
    contract = named_contract(config.contract) if config.contract else None

    def adjusted(contract: InputContract) -> InputContract:
        contract = contract.with_lengths(query=config.query_length, document=config.max_length)
        both_ways = contract.reading.bidirectional or config.bidirectional
        return replace(contract, reading=replace(contract.reading, bidirectional=both_ways))

    to_train = named_kind(config.kind).to_train
    assert to_train is not None  # `named_kind` ensures it; for the type checker
    return to_train(backbone, contract, seed=config.seed, adjust=adjusted, **loading)


def _layers(backbone: nn.Module) -> nn.ModuleList:
    """Find a transformer's layers: the first list of modules in it."""
    return next(module for module in backbone.modules() if isinstance(module, nn.ModuleList))
