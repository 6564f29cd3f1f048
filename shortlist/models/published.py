"""Input contracts of published models, read from their files or known by name.

A sentence-transformers folder describes its input in `modules.json` and the files named there. For a classifier of
transformers, the tokenizer shows it by the tokens it puts around a pair. A bare language model does not describe its
input, so the user has to name a contract.
"""

import re
from pathlib import Path
from typing import Any

from shortlist.data.files import optional_json, read_json
from shortlist.errors import UserError
from shortlist.models.files import MINICPM, is_adapter, is_classifier, layer_heads
from shortlist.models.modules import MODULES, backbone_folder, list_modules, longest_text
from shortlist.models.published_late import late_contract
from shortlist.models.published_sparse import sparse_contract
from shortlist.text.contract import Form, InputContract, Reading, named_contract
from shortlist.text.special_tokens import around_one, around_two
from shortlist.text.templates import literal
from shortlist.text.tokenizer import load_tokenizer

KNOWN = {
    r"castorini/repllama-v1-7b-lora-passage": "repllama",
    r"castorini/repllama-v1-7b-lora-doc": "repllama-document",
    r"castorini/rankllama-v1-(7b|13b)-lora-passage": "rankllama-v1",
    r"castorini/rankllama-v1-7b-lora-doc": "rankllama-v1-document",
    r"castorini/monot5-.*": "monot5",
    r"Qwen/Qwen3-Reranker-.*": "qwen3-reranker",
    r"mixedbread-ai/mxbai-rerank-(base|large)-v2": "mxbai-rerank-v2",
    r"BAAI/bge-reranker-v2-gemma": "bge-reranker-v2-gemma",
    r"BAAI/bge-reranker-v2-minicpm-layerwise": "bge-reranker-v2-minicpm-layerwise",
    r"Alibaba-NLP/E2Rank-.*": "e2rank",
    r"google/xtr-base-(en|multilingual)": "xtr",
    r"naver/splade[-_](cocondenser|v2|v3).*": "splade",
    r"intfloat/(multilingual-)?e5-(small|base|large)(-v2)?": "e5",
    r"BAAI/bge-(small|base|large)-en(-v1\.5)?": "bge",
}
"""Hub names (patterns) of models whose files do not describe their input fully, with their contracts."""

POOLING_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_weightedmean_tokens": "weighted",
}
"""sentence-transformers' names of the supported poolings."""


def check_layout(name: str, folder: Path) -> None:
    """Check that a folder holds a model of a known layout without custom code.

    Raises:
        UserError: the layout is unknown, or the model needs code of its own to run.
    """
    config = backbone_folder(folder) / "config.json"
    if not config.exists() and not is_adapter(backbone_folder(folder)):
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
        raise UserError(
            f"{name}: is no model folder (found: {found}); expected config.json (transformers), adapter_config.json "
            f"(PEFT) or {MODULES} (sentence-transformers), weights in safetensors, and a tokenizer."
        )
    if "auto_map" not in optional_json(config):
        return
    from transformers import CONFIG_MAPPING

    kind = optional_json(config).get("model_type")
    computed_here = kind == MINICPM and layer_heads(backbone_folder(folder))
    if kind not in CONFIG_MAPPING and not computed_here:
        raise UserError(
            f"{name}: is of the kind {kind!r}, which transformers has not; it brings code of its own, which other "
            "tools run with trust_remote_code. That is never done here; choose a model of a kind that transformers has."
        )


def published_contract(name: str, folder: Path, kind: str) -> InputContract | None:
    """Find the input contract of a published model by its files or its name.

    Args:
        name: the model's name, as on the command line.
        folder: the folder with its files.
        kind: `document` for a retriever, `pair` for a reranker.

    Returns:
        The contract, or None if it is unknown.

    Raises:
        UserError: the files ask for something that is not supported.
    """
    for pattern, contract in KNOWN.items():
        if re.fullmatch(pattern, name) and getattr(named_contract(contract).form, kind):
            return named_contract(contract)
    if kind == "document" and (found := late_contract(folder) or sparse_contract(name, folder)):
        return found
    if kind == "document" and (folder / MODULES).exists():
        return _of_modules(folder)
    if kind == "pair" and is_classifier(folder):
        return _of_classifier(folder)
    return None


def _of_modules(folder: Path) -> InputContract:
    """Read pooling, normalisation, length and prompts from modules.json and the files it names."""
    listed = list_modules(folder)
    kinds, modules = [kind for kind, _ in listed], dict(listed)
    for module in modules.keys() - {"Transformer", "Pooling", "Dense", "Normalize"}:
        raise UserError(
            f"{folder / MODULES}: module {module!r} is not supported; expected Transformer, Pooling, Dense, Normalize."
        )
    if "Pooling" not in modules:
        raise UserError(f"{folder / MODULES}: has no module Pooling, so this is no retriever.")
    start = [kind for kind in kinds if kind in ("Transformer", "Pooling")]
    if kinds[: len(start)] != start or start not in (["Transformer", "Pooling"], ["Pooling"]):
        raise UserError(
            f"{folder / MODULES}: has the modules {', '.join(kinds)}; expected Transformer, then Pooling, then any "
            "Dense and Normalize."
        )
    pooling = read_json(modules["Pooling"] / "config.json")
    modes = _pooling_modes(pooling)
    if len(modes) != 1 or modes[0] not in POOLING_MODES:
        raise UserError(
            f"{folder}: pools by {' + '.join(modes) or 'nothing'}; expected one of {', '.join(POOLING_MODES)}."
        )
    prompts = optional_json(folder / "config_sentence_transformers.json").get("prompts") or {}
    query, document = prompts.get("query", ""), prompts.get("document") or prompts.get("passage", "")
    if (query or document) and not pooling.get("include_prompt", True):
        raise UserError(f"{folder}: leaves its prompts out of the pooling, which is not supported.")
    backbone = modules.get("Transformer", folder)
    settings = optional_json(backbone / "sentence_bert_config.json")
    tokenizer = load_tokenizer(backbone)
    if settings.get("do_lower_case") and tokenizer.tokenize("Aa Bb") != tokenizer.tokenize("aa bb"):
        raise UserError(f"{folder}: lowers the case of texts before its tokenizer does not, which is not supported.")
    start, end = around_one(tokenizer)
    length = settings.get("max_seq_length") or longest_text(backbone, tokenizer)
    form = Form(
        query=(*start, literal(query) + "{query}", *end),
        document=(*start, literal(document) + "{title} {text}", *end),
        query_length=length,
        document_length=length,
        prompts=tuple((name, text) for name, text in prompts.items() if text),
    )
    normalize = kinds[-1] == "Normalize"
    return InputContract(form, Reading(pooling=POOLING_MODES[modes[0]], normalize=normalize or _is_cosine(folder)))


def _is_cosine(folder: Path) -> bool:
    """Whether vectors that have any length are compared by their angle.

    Raises:
        UserError: they are compared by a distance.
    """
    path = folder / "config_sentence_transformers.json"
    name = optional_json(path).get("similarity_fn_name") or "dot"
    if name not in ("cosine", "dot", "dot_product"):
        raise UserError(f"{path}: compares vectors by {name!r}, which is not supported; expected cosine or dot.")
    return name == "cosine"


def _of_classifier(folder: Path) -> InputContract:
    """Read the contract of a cross-encoder from its tokenizer's output for two texts."""
    settings = optional_json(folder / "config_sentence_transformers.json")
    if settings.get("default_prompt_name"):
        raise UserError(
            f"{folder}: is a cross-encoder with the prompt {settings['default_prompt_name']!r}, which is not "
            "supported; name a --contract."
        )
    tokenizer = load_tokenizer(folder)
    start, middle, end = around_two(tokenizer)
    form = Form(pair=(*start, "{query}", *middle, "{title} {text}", *end), pair_length=longest_text(folder, tokenizer))
    token_types = 1 in _as_transformers_has_it(folder)("a", "b").get("token_type_ids", [])
    return InputContract(form, Reading(pooling="cls", normalize=False, token_types=token_types))


def _as_transformers_has_it(folder: Path) -> Any:
    """Load the tokenizer with the class that the folder names.

    The class decides whether the model gets token types.
    """
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _pooling_modes(settings: dict[str, Any]) -> list[str]:
    """List the pooling modes in use, from either format of sentence-transformers' settings."""
    if "pooling_mode" in settings:
        names = {name.split("_")[2]: name for name in POOLING_MODES}
        mode = settings["pooling_mode"]
        return [names.get(m, m) for m in ([mode] if isinstance(mode, str) else mode)]
    return [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
