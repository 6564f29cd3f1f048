"""Model folders for sentence-transformers, transformers and PEFT."""

import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from shortlist.data.files import read_json, write_json
from shortlist.errors import UserError
from shortlist.export.tokenizer import for_pairs, for_single_texts
from shortlist.models.adapters import ADAPTER, PREFIX, adapter_weights
from shortlist.models.backbone import is_decoder
from shortlist.models.dense import DenseLayer
from shortlist.models.files import CONFIG, HEAD, is_adapter, write_base
from shortlist.models.folder import ModelFolder
from shortlist.models.kinds import KINDS
from shortlist.models.modules import ACTIVATIONS, find_activation
from shortlist.models.published import POOLING_MODES
from shortlist.models.save import has_more_layers, save_model

POOLING_FLAGS = (
    "cls_token",
    "mean_tokens",
    "max_tokens",
    "mean_sqrt_len_tokens",
    "weightedmean_tokens",
    "lasttoken",
)
"""All poolings of sentence-transformers; older versions need a flag for each, whether on or off."""

TRAINING_LOG = "log.jsonl"
"""File that `shortlist train` writes step by step."""


def write_sentence_transformer(model: Any, folder: Path, *, source: ModelFolder) -> None:
    """Write a folder that SentenceTransformer opens.

    Encode with `prompt_name="query"` or `"document"` there. The layout is the one from before version 6, which later
    versions also read. Queries are cut at the length of documents, since this layout has only one length.

    Raises:
        UserError: the contract cannot be expressed in these files.
    """
    check_modules(model, source.name)
    tokenizer, prompts = for_single_texts(model.inputs)
    save_model(model, folder)
    save_tokenizer(tokenizer, folder)
    write_old_names(folder)
    _write_modules(model, folder, prompts)


def write_cross_encoder(model: Any, folder: Path, *, source: ModelFolder) -> None:
    """Write a folder that CrossEncoder and transformers' sequence classifiers open.

    Its tokenizer takes (query, document).

    Raises:
        UserError: the contract cannot be expressed in these files, or transformers has no such head.
    """
    reading, own_head = model.reading, KINDS[model.kind].saves_itself
    if not own_head and (not is_decoder(model.backbone) or reading.pooling != "last" or reading.answer):
        raise UserError(
            f"{source.name}: transformers has no sequence classifier with this head (pooling {reading.pooling} of "
            f"{type(model.backbone).__name__}); export it as merged."
        )
    tokenizer = for_pairs(model.inputs, token_types=reading.token_types)
    save_model(model, folder)
    save_tokenizer(tokenizer, folder, token_types=reading.token_types)
    write_old_names(folder)
    activation = {"activation_fn": "torch.nn.modules.linear.Identity"}  # otherwise scores would be squeezed into 0 to 1
    write_json(folder / "config.json", read_json(folder / "config.json") | {"sentence_transformers": activation})


def write_merged(model: Any, folder: Path, *, source: ModelFolder) -> None:
    """Write a shortlist model folder with whole weights, and the training log if any.

    Raises:
        UserError: the model has layers behind its backbone that such a folder has no place for.
    """
    if has_more_layers(model):
        raise UserError(f"{source.name}: has dense layers behind its backbone; export it to sentence-transformers.")
    save_model(model, folder)
    if (log := source.path / TRAINING_LOG).is_file():
        shutil.copyfile(log, folder / TRAINING_LOG)


def write_peft(model: Any, folder: Path, *, source: ModelFolder) -> None:
    """Write an adapter that PEFT opens.

    A retriever's adapter also opens in sentence-transformers, with its pooling and prompts.

    Raises:
        UserError: the model is not an adapter, or is an adapter on top of another.
    """
    if not is_adapter(source.path):
        raise UserError(f"{source.name}: is a whole model, and no adapter; export it as merged.")
    if source.base and source.base.base:
        raise UserError(
            f"{source.name}: is an adapter on top of another adapter, {source.base.name}; export it as merged."
        )
    if model.kind in ("late", "sparse"):
        what = {"late": "projection; export it to sentence-transformers", "sparse": "head; export it as merged"}
        raise UserError(f"{source.name}: PEFT has no place for its {what[model.kind]}.")
    if KINDS[model.kind].role == "retriever":
        check_modules(model, source.name)
    folder.mkdir(parents=True, exist_ok=True)
    prefix, reranker = f"{model.backbone.base_model_prefix}.", KINDS[model.kind].role == "reranker"
    state = {}
    for key, value in adapter_weights(source.path).items():
        if not key.startswith(PREFIX):  # a prompt, and a head beside it
            state[key] = value.contiguous()
            continue
        bare = key.removeprefix(PREFIX).removeprefix(prefix)
        state[PREFIX + (bare if bare == HEAD or not reranker else prefix + bare)] = value.contiguous()
    settings = read_json(source.path / CONFIG)
    settings |= {"task_type": "SEQ_CLS" if reranker else "FEATURE_EXTRACTION"}
    settings |= {"modules_to_save": ["score"] if reranker else None}
    if source.base:
        settings["base_model_name_or_path"] = write_base(folder, source.base.name)
    tokenizer, prompts = (
        (for_pairs(model.inputs, token_types=model.reading.token_types), {})
        if reranker
        else for_single_texts(model.inputs)
    )
    save_file(state, folder / ADAPTER)
    write_json(folder / CONFIG, settings)
    write_json(folder / "contract.json", model.contract.to_dict())
    save_tokenizer(tokenizer, folder)
    if not reranker:
        _write_modules(model, folder, prompts)


def check_modules(model: Any, name: str) -> None:
    """Refuse a retriever that sentence-transformers has no modules for.

    Raises:
        UserError: its pooling has weights, or its vectors are cut.
    """
    if model.reading.pooling not in POOLING_MODES.values():
        raise UserError(
            f"{name}: pools by {model.reading.pooling}, for which sentence-transformers has no module; export it as "
            "merged or onnx."
        )
    if model.reading.cut:
        raise UserError(
            f"{name}: cuts its vectors to {model.reading.cut} dimensions, which these files cannot say; take `cut` out "
            "of its contract.json, and give truncate_dim there."
        )


def _write_modules(model: Any, folder: Path, prompts: dict[str, str]) -> None:
    """Write the files that sentence-transformers needs beside weights and tokenizer."""
    reading, dim = model.reading, model.backbone.config.hidden_size
    names = {ours: theirs for theirs, ours in POOLING_MODES.items()}
    flags = {f"pooling_mode_{flag}": f"pooling_mode_{flag}" == names[reading.pooling] for flag in POOLING_FLAGS}
    behind = ["Dense" if isinstance(layer, DenseLayer) else "Normalize" for layer in model.dense]
    kinds = ["Transformer", "Pooling", *behind, *(["Normalize"] if reading.normalize else [])]
    paths = ["", *(f"{place}_{kind}" for place, kind in enumerate(kinds[1:], start=1))]
    listed = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    for path in paths[1:]:
        (folder / path).mkdir(parents=True, exist_ok=True)
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": dim, **flags, "include_prompt": True})
    for layer, path in zip(model.dense, paths[2:], strict=False):
        if isinstance(layer, DenseLayer):
            write_dense(layer, folder / path)
    write_json(folder / "modules.json", listed)
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": model.inputs.form.document_length, "do_lower_case": False},
    )
    similarity = "cosine" if reading.normalize else "dot"
    prompts = dict(model.inputs.form.prompts) | prompts
    known = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": similarity}
    write_json(folder / "config_sentence_transformers.json", known)


def write_dense(layer: Any, folder: Path, **settings: Any) -> None:
    """Write a dense layer as a module of sentence-transformers.

    Args:
        settings: further settings of the module.
    """
    activation = next(name for name in ACTIVATIONS if find_activation(name) is layer.activation)
    shape = {"in_features": layer.weight.shape[1], "out_features": layer.out_features, "bias": layer.bias is not None}
    settings |= {"use_residual": True} if layer.residual is not None else {}
    write_json(folder / "config.json", shape | {"activation_function": activation} | settings)
    weights = {"linear.weight": layer.weight, "linear.bias": layer.bias, "residual.weight": layer.residual}
    state = {key: value.detach().contiguous() for key, value in weights.items() if value is not None}
    if layer.residual is not None and layer.weight.shape[0] == layer.weight.shape[1]:
        del state["residual.weight"]  # the input itself is added
    save_file(state, folder / "model.safetensors")


def save_tokenizer(tokenizer: Any, folder: Path, *, token_types: bool = False) -> None:
    """Save a tokenizer under a class name that all versions of transformers know."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = read_json(path) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    if token_types:
        settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    write_json(path, settings)


def write_old_names(folder: Path) -> None:
    """Add the names from before transformers 5 to config.json, beside the new ones."""
    path = folder / "config.json"
    config = read_json(path)
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    if "dtype" in config:
        config["torch_dtype"] = config["dtype"]
    write_json(path, config)
