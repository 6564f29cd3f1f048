"""What the name of a model stands for: a folder, looked up once, and what its files say.

A model folder of ours is a Hugging Face folder (config.json, safetensors, tokenizer) plus `contract.json`. A
reranker's weights carry the key `score.weight` beside the backbone's, as in transformers' sequence classifiers. A LoRA
folder holds `adapter_config.json` and `adapter_model.safetensors` instead, head included, and names its base.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from safetensors import safe_open

from shortlist.data.files import read_json
from shortlist.data.manifest import identity
from shortlist.errors import UserError
from shortlist.models.adapters import PICKLED, base_name, is_adapter
from shortlist.models.backbone import not_a_model
from shortlist.models.published import backbone_folder, check_layout, published_contract
from shortlist.models.shipped import shipped_folder, shipped_name
from shortlist.text.contract import InputContract, named_contract
from shortlist.text.tokenizer import has_tokenizer, load_tokenizer

FILES = ["*.json", "*.safetensors", "*.model", "*.txt", PICKLED]
"""What is fetched from the hub: no code, and weights in safetensors only, but for older adapters."""

WEIGHTS = ("*.safetensors", PICKLED)
CONTRACT = "contract.json"


@dataclass(frozen=True)
class ModelFolder:
    """A model's files and what they say, whatever name led there.

    It travels to other processes as it is: they look nothing up again, unless they are on a machine that has the same
    revision elsewhere.
    """

    name: str
    """As on the command line, and which one of the shipped pair."""
    path: Path
    revision: str | None = None
    """The hub's; None for a folder that was named by its path."""
    weights: bool = True
    """Whether weights were fetched too, where the hub has the model."""

    @cached_property
    def base(self) -> "ModelFolder | None":
        """What an adapter belongs on; None for a whole model.

        Raises:
            UserError: the adapter does not say, or nothing is there.
        """
        folder = self.backbone_path
        return open_folder(base_name(folder), weights=self.weights) if is_adapter(folder) else None

    @property
    def whole(self) -> "ModelFolder":
        """Where the weights are that an adapter is merged into; this very folder, if it is no adapter."""
        return self.base.whole if self.base else self

    @property
    def backbone_path(self) -> Path:
        """Where in the folder the backbone is: sentence-transformers may keep it one folder deeper."""
        return backbone_folder(self.path)

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's own, or its base's where an adapter has none.

        Raises:
            UserError: there is none that can be used.
        """
        check_layout(self.name, self.path)
        folder = self.backbone_path
        base = None if has_tokenizer(folder) else self.base
        return base.tokenizer if base else load_tokenizer(folder)

    @cached_property
    def identity(self) -> str:
        """What the model is, for manifests: the contents of a folder, or the name of a hub model with its revision."""
        return f"hub:{self.name}@{self.revision}" if self.revision else identity(self.path)

    @property
    def weight_files(self) -> list[Path]:
        """The files that hold the model's weights; an adapter is merged into its base's."""
        return sorted(self.whole.backbone_path.glob("*.safetensors"))

    @cached_property
    def num_parameters(self) -> int:
        """How many numbers the model is made of, by the heads of its files."""
        total = 0
        for path in self.weight_files:
            with safe_open(path, framework="pt") as weights:
                total += sum(prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
        return total

    def own_contract(self, reads: str) -> InputContract | None:
        """The model's own contract, in its folder or as it was published; None if it says none for this input.

        Args:
            reads: `document` for a retriever, `pair` for a reranker.
        """
        path = self.path / CONTRACT
        if path.exists():
            contract = InputContract.from_dict(read_json(path), where=str(path))
            return contract if getattr(contract.form, reads) else None
        check_layout(self.name, self.path)
        return published_contract(self.name, self.path, reads)

    def contract(self, reads: str, given: str | InputContract | None = None) -> InputContract:
        """The contract to read with: the given one, else the model's own.

        Args:
            reads: as for `own_contract`.
            given: a preset by name, or a contract.

        Raises:
            UserError: nothing says what the input looks like, or it is another kind of model's.
        """
        if isinstance(given, InputContract):
            return given
        if given is not None:
            contract = named_contract(given)
            if not getattr(contract.form, reads):
                raise UserError(f"--contract: {given!r} has no {reads!r} input, so it is for another kind of model.")
            return contract
        contract = self.own_contract(reads)
        if contract is None and (self.path / CONTRACT).exists():
            raise UserError(f"{self.name}: its contract.json has no {reads!r} input, so it is another kind of model.")
        if contract is None:
            raise UserError(
                f"{self.name}: has no contract.json that says how its input looks; name one with --contract."
            )
        return contract

    def any_contract(self, given: str | None = None) -> InputContract:
        """The contract of a retriever or a reranker, whichever it is.

        Raises:
            UserError: nothing says what the input looks like.
        """
        return named_contract(given) if given else self.own_contract("pair") or self.contract("document")

    def __getstate__(self) -> dict[str, Any]:
        """For another process: the base looked up here, the tokenizer read there."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"base": self.base}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """On another machine the hub's copies or the package may lie elsewhere: the same revision is found there."""
        if not state["path"].is_dir():
            state["path"] = open_folder(state["name"], revision=state["revision"]).path
        self.__dict__.update(state)


def open_folder(
    name: str, *, wanted: str = "retriever", weights: bool = True, revision: str | None = None
) -> ModelFolder:
    """The folder that a name stands for: `name` itself, one of the shipped pair, or the hub's (fetched if need be).

    Call it once for a command, and hand on what it returns.

    Args:
        wanted: which one of the shipped pair `shortlist-mini` is.
        weights: without them, fetch the small files only.
        revision: of a hub model (None: the newest).

    Raises:
        UserError: no model is there.
    """
    name = shipped_name(name, wanted) if wanted == "reranker" else name
    path = shipped_folder(name) or Path(name)
    if path.is_dir():
        return ModelFolder(name, path)
    if path.exists() or name.count("/") > 1 or name.startswith((".", "/")):
        raise not_a_model(name, "no such folder")
    patterns = FILES if weights else [pattern for pattern in FILES if pattern not in WEIGHTS]
    pinned = {"revision": revision} if revision else {}
    try:
        path = Path(snapshot_download(name, allow_patterns=patterns, **pinned))
    except Exception as error:  # the hub's client raises a dozen unrelated types
        raise not_a_model(name, error) from None
    return ModelFolder(name, path, path.name, weights)
