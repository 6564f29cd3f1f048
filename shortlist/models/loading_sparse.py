"""Loading of a learned sparse model, to run it or to train it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from shortlist.errors import UserError
from shortlist.models.adapters import PREFIX, adapter_weights
from shortlist.models.backbone import is_decoder
from shortlist.models.files import OUTPUT_EMBEDDING, is_adapter
from shortlist.models.folder import ModelFolder
from shortlist.models.heads import own_output
from shortlist.models.load import inputs_to_train, open_backbone
from shortlist.models.lookups import LOOKUP_KEY, read_lookup
from shortlist.models.sparse import SparseModel
from shortlist.models.term_heads import Lookup, TokenHead, VocabularyHead, masked_head
from shortlist.text.contract import SPARSE, Adjust, InputContract, Reading, named_contract
from shortlist.text.inputs import Inputs
from shortlist.text.proof import proved_inputs

TOKEN_KEYS = {"weight": "term_weights.weight", "bias": "term_weights.bias"}
"""The keys of a linear layer that weighs tokens."""
QUERY_KEYS = {"weight": "query_term_weights.weight", "bias": "query_term_weights.bias"}
"""Those of one for queries alone."""


def load_sparse(folder: ModelFolder, contract: InputContract, *, dtype: torch.dtype = torch.float32) -> SparseModel:
    """Load a learned sparse model from a folder.

    Raises:
        UserError: there is no model, it has no head that weighs terms, or its tokenizer does not fit.
    """
    contract = marked(contract)
    inputs, reading = proved_inputs(contract.form, folder.tokenizer), contract.reading
    backbone = open_backbone(folder, reading, dtype=dtype, beside=_of_heads(folder))
    stored = _beside(folder, backbone)
    if reading.weighing == "tokens":
        head = _token_head(stored, TOKEN_KEYS, reading, folder.name, summed=reading.pooling == "terms-sum")
    else:
        head = _vocabulary_head(folder, backbone, reading, stored)
    query_head = None
    if reading.queries == "lookup":
        query_head = Lookup(torch.from_numpy(read_lookup(folder, inputs.tokenizer, vocabulary_size(backbone))))
    elif reading.queries == "tokens":
        query_head = _token_head(stored, QUERY_KEYS, reading, folder.name, summed=True)
    return known_terms(SparseModel(backbone, inputs, reading, head, query_head), folder.name)


def sparse_to_train(
    folder: ModelFolder,
    contract: InputContract | None = None,
    *,
    seed: int = 0,
    adjust: Adjust | None = None,
    lookup: Callable[[Inputs, int], Tensor] | None = None,
    empty: bool = False,
    **loading: Any,
) -> SparseModel:
    """Load a learned sparse model to start training from.

    A language model keeps its head; an encoder without one gets a new one, whose output embedding is its input
    embedding.

    Args:
        contract: the input contract (None: the folder's own if it is a sparse model's, or SPLADE's).
        seed: the seed of a new head.
        adjust: changes that contract before use, such as its lengths.
        lookup: makes the weights of queries' terms, if queries are looked up (None: those of the folder).
        empty: shapes without weights.
        loading: as for `load.dense_to_train`.
    """
    own = folder.own_contract("document")
    own = own if own and own.reading.pooling in SPARSE else None
    backbone = open_backbone(folder, beside=_of_heads(folder), empty=empty, **loading)
    contract = contract or own or named_contract("splade-decoder" if is_decoder(backbone) else "splade")
    inputs, reading = inputs_to_train(folder, backbone, contract, _sparsely(adjust))
    stored = {} if empty else _beside(folder, backbone)
    device = "meta" if empty else "cpu"
    if reading.weighing == "tokens":
        head = _token_head_to_train(backbone, stored, TOKEN_KEYS, reading, seed=seed, device=device)
    elif is_decoder(backbone):
        head = _decoder_head(folder, backbone, reading, empty=empty)
    else:
        found, _ = masked_head(backbone, reading, stored, seed=seed, empty=empty)
        assert found is not None  # a new one was made; for the type checker
        head = found
    query_head = None
    if reading.queries == "lookup":
        size = vocabulary_size(backbone)
        if empty:
            weights = torch.ones(size)
        else:
            weights = lookup(inputs, size) if lookup else torch.from_numpy(read_lookup(folder, inputs.tokenizer, size))
        query_head = Lookup(weights.to(device))
    elif reading.queries == "tokens":
        query_head = _token_head_to_train(backbone, stored, QUERY_KEYS, reading, seed=seed + 1, device=device)
    return known_terms(SparseModel(backbone, inputs, reading, head, query_head), folder.name)


def marked(contract: InputContract) -> InputContract:
    """Return the contract, with marks on queries that are treated otherwise than documents."""
    reading = contract.reading
    apart = bool(reading.queries or reading.keep_terms or reading.keep_query_terms)
    return replace(contract, form=replace(contract.form, queries_marked=apart))


def vocabulary_size(backbone: PreTrainedModel) -> int:
    """Return the number of terms that a backbone's vocabulary has."""
    return len(backbone.get_input_embeddings().weight)  # type: ignore[arg-type]


def known_terms(model: SparseModel, name: str) -> SparseModel:
    """Return a model if its tokenizer's vocabulary is its head's.

    Raises:
        UserError: the tokenizer has terms that the head does not know, or the contract names no way of weighing.
    """
    tokenizer: Any = model.inputs.tokenizer
    if len(tokenizer) > model.num_terms:
        raise UserError(
            f"{name}: its tokenizer has {len(tokenizer):,} terms, and its model has weights for {model.num_terms:,}; "
            "expected the tokenizer that the model was trained with."
        )
    return model


def _sparsely(adjust: Adjust | None) -> Adjust:
    """Wrap changes of a contract, so that what comes out is a sparse model's."""

    def adjusted(contract: InputContract) -> InputContract:
        before = contract.reading
        changed = adjust(contract) if adjust else contract
        pooling = changed.reading.pooling if changed.reading.pooling in SPARSE else before.pooling
        pooling = pooling if pooling in SPARSE else SPARSE[0]
        return marked(replace(changed, reading=replace(changed.reading, pooling=pooling, normalize=False)))

    return adjusted


def _vocabulary_head(
    folder: ModelFolder, backbone: PreTrainedModel, reading: Reading, stored: Mapping[str, Tensor]
) -> VocabularyHead:
    """Load the language-model head of a trained model.

    Raises:
        UserError: the folder has none.
    """
    if is_decoder(backbone):
        return _decoder_head(folder, backbone, reading)
    head, lacking = masked_head(backbone, reading, stored)
    if head is None:
        raise UserError(
            f"{folder.name}: has no usable masked-language-model head ({lacking[0]} is missing or has another shape), "
            "so this is not a trained sparse model; train one from it: shortlist train sparse."
        )
    return head


def _decoder_head(
    folder: ModelFolder, backbone: PreTrainedModel, reading: Reading, *, empty: bool = False
) -> VocabularyHead:
    """Load a decoder's output embedding, which its input embedding may be."""
    weight = own_output(backbone, folder.whole.backbone_path, empty=empty)
    backbone.config.tie_word_embeddings = weight is None
    return VocabularyHead(reading, None, weight, keys={"weight": OUTPUT_EMBEDDING})


def _token_head(
    stored: Mapping[str, Tensor], keys: Mapping[str, str], reading: Reading, name: str, *, summed: bool
) -> TokenHead:
    """Load a linear layer that weighs tokens.

    Raises:
        UserError: the folder has none.
    """
    if lacking := [key for key in keys.values() if key not in stored]:
        raise UserError(f"{name}: has no {lacking[0]!r}, which weighs the tokens of a text; train it.")
    weight, bias = (stored[keys[part]].float() for part in ("weight", "bias"))
    return TokenHead(weight, bias, logs=reading.logs, summed=summed, keys=keys)


def _token_head_to_train(
    backbone: PreTrainedModel,
    stored: Mapping[str, Tensor],
    keys: Mapping[str, str],
    reading: Reading,
    *,
    seed: int,
    device: str,
) -> TokenHead:
    """Load a linear layer that weighs tokens, or make one that weighs all alike."""
    summed = keys is QUERY_KEYS or reading.pooling == "terms-sum"
    if all(key in stored for key in keys.values()):
        return _token_head(stored, keys, reading, "", summed=summed)
    std = getattr(backbone.config, "initializer_range", 0.02)
    weight = torch.randn(backbone.config.hidden_size, generator=torch.Generator().manual_seed(seed)) * std
    return TokenHead(weight.to(device), torch.ones(1, device=device), logs=reading.logs, summed=summed, keys=keys)


def _of_heads(folder: ModelFolder) -> list[str]:
    """List the ends of the keys in adapters that belong to heads."""
    keys, one = [], folder
    while one is not None and is_adapter(one.backbone_path):
        keys += adapter_weights(one.backbone_path)
        one = one.base
    bare = [key.removeprefix(PREFIX) for key in keys if key.startswith(PREFIX)]
    return [*HEAD_KEYS, *(key for key in bare if key.startswith(HEADS))]


def _beside(folder: ModelFolder, backbone: PreTrainedModel) -> dict[str, Tensor]:
    """Read the tensors of a folder that are not the backbone's, under today's names.

    Those of an adapter come before those of the model below it.
    """
    prefix = f"{backbone.base_model_prefix}."
    found: dict[str, Tensor] = {}
    for path in folder.weight_files:
        found |= _tensors_beside(path, prefix)
    one: ModelFolder | None = folder
    layers = []
    while one is not None and is_adapter(one.backbone_path):
        layers.append(adapter_weights(one.backbone_path))
        one = one.base
    for stored in reversed(layers):
        found |= {key.removeprefix(PREFIX): value for key, value in stored.items() if ".lora_" not in key}
    return found


def _tensors_beside(path: Path, prefix: str) -> dict[str, Tensor]:
    """Read the tensors of a file that are not the backbone's."""
    try:
        with safe_open(path, framework="pt") as weights:
            keys = [key for key in weights.keys() if not key.startswith(prefix)]  # noqa: SIM118 (not a dict)
            if len(keys) == len(list(weights.keys())):  # a backbone without a head, whose keys have no prefix
                keys = [key for key in keys if key in HEAD_KEYS]
            return {_today(key): weights.get_tensor(key) for key in keys}
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); copy or make the model again.") from None


def _today(key: str) -> str:
    """Return today's name of a parameter; norms have older names, gamma and beta."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if key.endswith(old):
            return key.removesuffix(old) + new
    return key


HEAD_KEYS = (
    *TOKEN_KEYS.values(),
    *QUERY_KEYS.values(),
    LOOKUP_KEY,
    OUTPUT_EMBEDDING,
)
"""Ends of the keys in an adapter that do not belong to its backbone."""

HEADS = ("cls.", "lm_head.", "vocab_", "generator_", "predictions.", "head.", "decoder.")
"""Starts of the keys of heads in transformers' masked language models, which those of their backbones do not have."""
