"""Starting point of a training run: groups with their queries, and the model to train."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from shortlist.data.collections import Collection
from shortlist.data.groups import graded, negative_counts
from shortlist.errors import UserError
from shortlist.math.sampling import shortfall
from shortlist.models.adapter_settings import parse_adapter
from shortlist.models.adapters import add_adapter
from shortlist.models.backbone import checkpoint_layers, num_positions, transformer_layers
from shortlist.models.folder import ModelFolder
from shortlist.models.kernels.training_linear import speed_up_training
from shortlist.models.kinds import named_kind
from shortlist.models.reading import make_readable
from shortlist.models.save import Trainable
from shortlist.progress import say
from shortlist.settings.feedback import QUERY_LENGTH, feedback_settings
from shortlist.settings.parts import (
    OpenPart,
    SourcePart,
    open_collections,
    open_part,
    preferred_part,
    ranks_groups,
    source_parts,
)
from shortlist.settings.reward import parse_rewarded
from shortlist.settings.train import QUERY_TERMS
from shortlist.text.contract import InputContract, named_contract
from shortlist.text.inputs import Inputs, with_stop
from shortlist.text.prompts import named_prompt
from shortlist.train.examples import check_groups, without_missing
from shortlist.train.gather import World, shard
from shortlist.train.losses import check_needs, check_refresh
from shortlist.train.negatives import check_negatives, with_negatives
from shortlist.train.rollout import check_rewards
from shortlist.train.settings import Config, has_stop, losses, prompt_losses, said_of_prompt_loss
from shortlist.train.sparsity import make_lookup


def collect_parts(config: Config) -> list[OpenPart]:
    """Collect the groups of all sources, with their queries and negatives, and check them."""
    if config.preferences:
        return [preferred_part(config)]
    parts = source_parts(config)
    return [collect_part(*pair) for pair in zip(parts, open_collections(parts), strict=True)]


def collect_part(part: SourcePart, collection: Collection) -> OpenPart:
    """Collect the groups of a source with their queries and negatives, and check them.

    Groups with too few negatives are counted in a message. A reranker's groups that are made here get negatives, as the
    settings then say.
    """
    where, role = part.where, named_kind(part.config.kind).role
    role = "reranker" if ranks_groups(part.config) and role != "retriever" else role
    opened = open_part(part, collection)
    config, source = opened.config, opened.source
    if config.skip_missing:
        source = source._replace(groups=without_missing(source.groups, source.queries, collection))
    check_groups(source.groups, source.queries, where=where)
    if config.negatives_from and config.negatives != 0:
        source = with_negatives(source, collection, config.negatives_from, negatives=config.negatives, seed=config.seed)
        if config.positives_from and not config.groups:
            qrels = collection.qrels(config.split)
            source = source._replace(groups=[graded(group, qrels[group.query_id]) for group in source.groups])
    check_needs(losses(config), source.groups, where=where, role=role)
    with said_of_prompt_loss():
        check_needs(prompt_losses(config), source.groups, where=where, role="reranker")
    if rewarded := parse_rewarded(config):
        check_rewards(rewarded, source.groups, where=where)
    if config.mix_negatives and all(len(group.negatives) < 2 for group in source.groups):
        raise UserError(f"--mix-negatives: no group of {where} has two negatives to mix; mine some, or leave it out.")
    if config.refresh_steps and source.groups[0].positives:
        check_refresh(losses(config), where=where)
        with said_of_prompt_loss():
            check_refresh(prompt_losses(config), where=where)
    check_negatives(role, source.groups, negatives=config.negatives, batch_size=config.batch_size, where=where)
    if short := shortfall(negative_counts(source.groups), config.negatives):
        say(f"train: {short:,} of {len(source.groups):,} groups have fewer than {config.negatives} negatives.")
    return opened._replace(source=source)


def build_model(
    config: Config, backbone: ModelFolder, device: torch.device, world: World, *, steps: int
) -> tuple[Trainable, Any]:
    """Build the model on its device, ready to train; arguments and results as for `adapted_model`."""
    loading = {"dtype": weights_dtype(config, device), "attention": config.attention, "four_bit": config.four_bit}
    model, adapter = adapted_model(config, backbone, steps=steps, **loading)
    if config.sharded and world.size > 1:
        shard(model, transformer_layers(model.backbone), device)
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
    frozen = config.adapter is not None and config.precision == "bf16" and device.type == "cuda"
    return torch.bfloat16 if frozen else torch.float32


def adapted_model(config: Config, backbone: ModelFolder, *, steps: int, **loading: Any) -> tuple[Trainable, Any]:
    """Load the model and prepare what is to train, such as an adapter.

    Args:
        steps: steps of the whole training.

    Returns:
        The model, and what `add_adapter` returned; None without an adapter.

    Raises:
        UserError: the adapter does not go with the model or its inputs.
    """
    model = _loaded(config, backbone, **loading)
    torch.manual_seed(config.seed)  # for the adapter's initial weights
    adapter = None
    if config.adapter:
        adapter = add_adapter(model.backbone, parse_adapter(config.adapter), steps=steps)
        if (output := getattr(model, "output", None)) is not None:
            output.requires_grad_(False)
        _check_room(config.adapter, model, adapter)
    if config.gradient_checkpointing:
        checkpoint_layers(model.backbone)
    return model, adapter


def _check_room(name: str, model: Trainable, adapter: Any) -> None:
    """Refuse inputs that leave an adapter's virtual tokens no positions."""
    tokens, positions = getattr(adapter.peft_config["default"], "num_virtual_tokens", 0), num_positions(model.backbone)
    if not tokens or positions is None:
        return
    form = model.inputs.form
    if form.within(positions - tokens) != form:
        raise UserError(
            f"--adapter {name}: {tokens} virtual tokens leave {positions - tokens} of {positions} positions, and "
            f"inputs may be longer; add --max-length {positions - tokens}, and --query-length if queries are as long."
        )


def _sparse_reading(config: Config) -> dict[str, Any]:
    """Return what the settings change in a sparse model's reading."""
    changes = {"weighing": config.document_terms, "logs": config.logs, "keep_terms": config.keep_terms}
    if config.query_terms is not None:
        changes["queries"] = QUERY_TERMS.get(config.query_terms, "lookup")
    return {name: value for name, value in changes.items() if value is not None}


def _lookup(config: Config, inputs: Inputs, size: int) -> torch.Tensor:
    """Make the list of weights that `--query-terms` names, from the first source's documents."""
    named = str(config.query_terms)
    collection = open_collections(source_parts(config)[:1])[0] if named == "idf" else None
    return make_lookup(named, collection, inputs, size)


def _loaded(config: Config, backbone: ModelFolder, **loading: Any) -> Trainable:
    contract = named_contract(config.contract) if config.contract else None
    feedback = feedback_settings(config)
    if feedback:
        backbone.contract("document", config.contract)  # refuses what embeds no documents

    def adjusted(contract: InputContract) -> InputContract:
        length = config.query_length
        if feedback and length is None:
            length = min(QUERY_LENGTH, backbone.num_positions or QUERY_LENGTH)
        contract = contract.with_lengths(query=length, document=config.max_length)
        both_ways = contract.reading.bidirectional or config.bidirectional
        pooling = config.pooling or contract.reading.pooling
        reading = replace(contract.reading, bidirectional=both_ways, dims=config.dims, pooling=pooling)
        reading = replace(reading, cut=0) if config.dims else reading
        reading = replace(reading, **_sparse_reading(config))
        form = replace(contract.form, pair=with_stop(contract.form.pair)) if has_stop(config) else contract.form
        separator = feedback is not None and backbone.tokenizer.sep_token_id is not None
        form = form.with_feedback(feedback.docs if feedback else 0, separator=separator)
        return InputContract(form, reading)

    loading |= {} if config.dim is None else {"dim": config.dim}
    if config.query_terms and QUERY_TERMS.get(config.query_terms, "lookup") == "lookup":
        loading["lookup"] = partial(_lookup, config)
    loading |= {"generates": True} if (config.reward and config.prompt) or config.preferences else {}
    to_train = named_kind(config.kind).to_train
    assert to_train is not None  # `named_kind` ensures it; for the type checker
    model = to_train(backbone, contract, seed=config.seed, adjust=adjusted, **loading)
    if config.prompt and named_prompt(config.prompt).asks == "blocks":
        make_readable(model.backbone)
    if has_stop(config):
        model.stop_id, model.attention_stop = model.inputs.special_id("<eos>"), config.attention_stop
        attention = model.backbone.config._attn_implementation
        if config.attention_stop and attention not in ("sdpa", "eager"):
            raise UserError(f"--attention-stop: {attention} takes no mask of its own; use --attention sdpa.")
    return model
