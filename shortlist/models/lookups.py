"""Lists of weights for the terms of queries, which need no model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open

from shortlist.data.files import read_json
from shortlist.errors import UserError
from shortlist.math.terms import TermWeights
from shortlist.models.folder import ModelFolder
from shortlist.models.modules import MODULES, list_routes
from shortlist.models.published_sparse import LOOKUP_FILE, STATIC
from shortlist.text.marks import TOKEN_ID

LOOKUP_KEY = "query_terms.weight"
"""The key of the list in a folder's weights."""


def read_lookup(folder: ModelFolder, tokenizer: Any, size: int) -> Float32[np.ndarray, " vocabulary"]:
    """Read the weights of queries' terms from a model's folder, without its model.

    Args:
        size: the number of terms of the model's vocabulary.

    Raises:
        UserError: there are none, there are others than the vocabulary's, or some are negative or not finite.
    """
    routes = [path for kind, path in list_routes(folder.path, "query") if kind == STATIC]
    for path in (*routes, folder.path):
        for file in sorted(path.glob("*.safetensors")):
            key = "weight" if path in routes else LOOKUP_KEY
            if (found := _stored(file, key)) is not None:
                return _fitted(found, tokenizer, size, str(file))
        settings = read_json(path / "config.json") if path in routes and (path / "config.json").exists() else {}
        file = path / str(settings.get("path") or LOOKUP_FILE)
        if file.exists():
            return read_named_weights(file, tokenizer, size)
    raise UserError(
        f"{folder.name}: has no weights of queries' terms (no {LOOKUP_KEY!r} in its safetensors, no {LOOKUP_FILE}, no "
        f"SparseStaticEmbedding in {MODULES}), which its contract's lookup needs."
    )


def read_named_weights(path: Path, tokenizer: Any, size: int) -> Float32[np.ndarray, " vocabulary"]:
    """Read a JSON file of each term's weight by its name.

    Special tokens may be left out; they weigh 0.

    Raises:
        UserError: it lacks terms of the vocabulary, has others, or has a weight that is negative or no number.
    """
    values: Mapping[str, Any] = read_json(path)
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    if others := sorted(values.keys() - vocabulary.keys()):
        raise UserError(
            f"{path}: {len(others):,} of its {len(values):,} terms are not in the tokenizer's vocabulary, such as "
            f"{others[0]!r}; expected weights for the terms of the model's own tokenizer."
        )
    lacking = sorted(vocabulary.keys() - values.keys() - set(tokenizer.all_special_tokens))
    if lacking:
        raise UserError(
            f"{path}: has no weight for {len(lacking):,} of the vocabulary's {len(vocabulary):,} terms, such as "
            f"{lacking[0]!r}; expected one for each, 0 where a term is to count for nothing."
        )
    weights = np.zeros(size, dtype=np.float32)
    for name, value in values.items():
        if not isinstance(value, int | float) or not np.isfinite(value) or value < 0:
            raise UserError(f"{path}: the weight of {name!r} is {json.dumps(value)}; expected a number of at least 0.")
        weights[vocabulary[name]] = value
    return weights


def check_weights(weights: Float32[np.ndarray, " vocabulary"], where: str) -> None:
    """Refuse weights that are negative or not finite.

    Raises:
        UserError: one is.
    """
    bad = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if len(bad):
        raise UserError(
            f"{where}: {len(bad):,} weights of queries' terms are negative or not finite, such as that of term "
            f"{bad[0]}, {weights[bad[0]]}; expected numbers of at least 0."
        )


def looked_up(
    token_ids: Sequence[Sequence[int]], weights: Float32[np.ndarray, " vocabulary"], *, most: int = 0
) -> TermWeights:
    """Give each text the weights of its tokens, each once.

    Args:
        token_ids: the ids of each text, which may have marks.
        weights: the weight of each term.
        most: how many terms are kept, those of the greatest weights (0: all).
    """
    parts = []
    for ids in token_ids:
        terms = np.unique(np.array(ids, dtype=np.int32) & TOKEN_ID)
        terms = terms[weights[terms] > 0]
        if most and len(terms) > most:
            terms = np.sort(terms[np.argsort(-weights[terms], kind="stable")[:most]])
        parts.append(terms)
    terms = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
    counts = np.array([len(part) for part in parts], dtype=np.int64)
    return TermWeights(terms.astype(np.int32), weights[terms], counts)


def _stored(path: Path, key: str) -> Float32[np.ndarray, " vocabulary"] | None:
    """Read nothing but the list from a file of weights; None if it has none."""
    try:
        with safe_open(path, framework="np") as weights:
            keys = [one for one in weights.keys() if one == key or one.endswith(f".{key}")]  # noqa: SIM118
            return weights.get_tensor(keys[0]).astype(np.float32) if keys else None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); copy or make the model again.") from None


def _fitted(
    weights: Float32[np.ndarray, " terms"], tokenizer: Any, size: int, where: str
) -> Float32[np.ndarray, " vocabulary"]:
    """Return weights with zeros for terms behind the tokenizer's last, which padded vocabularies have.

    Special tokens behind the last weight weigh 0, too.

    Raises:
        UserError: there are more than the vocabulary has, or fewer, or bad ones.
    """
    if len(weights) > size:
        raise UserError(
            f"{where}: has weights for {len(weights):,} terms, and the model's vocabulary has {size:,}; expected the "
            "list that the model was trained with."
        )
    special = set(tokenizer.all_special_tokens)
    names = sorted(name for name, number in tokenizer.get_vocab().items() if number >= len(weights))
    if lacking := [name for name in names if name not in special]:
        raise UserError(
            f"{where}: has weights for {len(weights):,} terms, and {len(lacking):,} of the vocabulary's come behind "
            f"them, such as {lacking[0]!r}; expected the list that the model was trained with."
        )
    check_weights(weights, where)
    return np.pad(weights, (0, size - len(weights)))
