"""Model folders: finding the folder for a model's name, and reading its files.

A model folder written by shortlist is a Hugging Face folder (config.json, safetensors, tokenizer) plus `contract.json`.
A reranker's weights have the key `score.weight` beside the backbone's keys, as in sequence classifiers of transformers.
An adapter's folder holds `adapter_config.json` and `adapter_model.safetensors` instead, with any head, and names its
base model.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from shortlist.data.contents import check_files
from shortlist.data.files import optional_json, read_json
from shortlist.data.manifest import check_output, identity, read_manifest
from shortlist.errors import UserError
from shortlist.models.files import (
    CONFIG,
    PICKLED,
    POSITIONS,
    base_name,
    first_line,
    is_adapter,
    is_classifier,
    not_a_model,
)
from shortlist.models.modules import MODULES, backbone_folder
from shortlist.models.published import check_layout, published_contract
from shortlist.models.published_late import METADATA, is_stanford
from shortlist.models.published_sparse import LOOKUP_FILE
from shortlist.models.shipped import shipped_folder, shipped_name
from shortlist.text.contract import TEMPLATES, InputContract, named_contract
from shortlist.text.tokenizer import has_tokenizer, load_tokenizer

FETCHED = ["*.json", "*.safetensors", "*.model", "*.txt", METADATA, PICKLED]
"""The files to fetch from the hub: no code, and weights only in safetensors, except for older adapters."""

WEIGHTS = ("*.safetensors", PICKLED)
CONTRACT = "contract.json"
CHECKPOINT = "training.json"
"""The state of the training run in a checkpoint, which lists the checkpoint's files as a manifest does."""
ROLES = {"document": "retriever", "pair": "reranker"}
"""What models are for that read this input."""
OTHER = {"document": "pair", "pair": "document"}


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder, and the information in its files.

    It can be sent to other processes. They use the same folder, unless their machine keeps the same revision in another
    place.
    """

    name: str
    """The name on the command line, completed for the shipped pair."""
    path: Path
    revision: str | None = None
    """The revision on the hub; None for a local folder."""
    weights: bool = True
    """Whether weights were fetched too, for a model from the hub."""
    given_base: str | None = None
    """The name of an adapter's base, if it is not the one that the adapter names."""

    @cached_property
    def base(self) -> "ModelFolder | None":
        """The model that an adapter was made for; None for a whole model.

        Raises:
            UserError: the adapter does not name its base, or the base is missing.
        """
        folder = self.backbone_path
        if not is_adapter(folder):
            return None
        try:
            return open_folder(self.given_base or base_name(folder), weights=self.weights)
        except UserError as error:
            raise UserError(
                f"{self.name}: is an adapter, and its base model cannot be opened: {error} If the base has moved, make "
                f"an adapter that finds it: shortlist export {self.name} --to peft --base BASE --out NEW."
            ) from None

    @property
    def whole(self) -> "ModelFolder":
        """The folder of the whole model, which is under any adapters."""
        return self.base.whole if self.base else self

    @property
    def backbone_path(self) -> Path:
        """The folder of the backbone, which sentence-transformers may keep one folder deeper."""
        return backbone_folder(self.path)

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's tokenizer, or the base's if an adapter has none.

        Raises:
            UserError: there is no usable tokenizer.
        """
        check_layout(self.name, self.path)
        folder = self.backbone_path
        base = None if has_tokenizer(folder) else self.base
        return base.tokenizer if base else load_tokenizer(folder)

    @cached_property
    def identity(self) -> str:
        """The identity of the model for manifests.

        It is computed from the contents of a local folder, or is the name and revision of a hub model. That of an
        adapter's base follows after a `+`.
        """
        own = f"hub:{self.name}@{self.revision}" if self.revision else identity(self.path)
        return f"{own}+{self.base.identity}" if self.base else own

    @property
    def weight_files(self) -> list[Path]:
        """The files of the model's weights; for an adapter, the files of its base."""
        return sorted(self.whole.backbone_path.glob("*.safetensors"))

    def has_tensor(self, name: str) -> bool:
        """Whether the model's files have a tensor with this name, after any prefix."""
        keys = (key for path in self.weight_files for key in _keys(path))
        return any(key == name or key.endswith(f".{name}") for key in keys)

    @cached_property
    def num_parameters(self) -> int:
        """The number of parameters, read from the headers of the weight files."""
        from safetensors import safe_open

        total = 0
        for path in self.weight_files:
            with safe_open(path, framework="pt") as weights:
                total += sum(prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
        return total

    @cached_property
    def costs(self) -> dict[str, int | float]:
        """The number of parameters, and the time and memory of a training done here.

        The names are those of `data.manifest.stages`.
        """
        manifest = read_manifest(self.path) or {}
        took = manifest.get("results", {}) if manifest.get("stage") == "train" else {}
        training = {"training_seconds": took.get("seconds"), "training_bytes": took.get("peak_bytes")}
        return {"num_parameters": self.num_parameters} | {name: value for name, value in training.items() if value}

    @cached_property
    def num_positions(self) -> int | None:
        """The most tokens that the model's learned positions allow; None if it learned none.

        An adapter's virtual tokens take some of them.
        """
        if self.base is not None:
            virtual = read_json(self.backbone_path / CONFIG).get("num_virtual_tokens") or 0
            return self.base.num_positions and self.base.num_positions - virtual
        check_layout(self.name, self.path)
        keys = {key for path in self.weight_files for key in _keys(path)}
        if keys and not any(key.endswith(tuple(f"{name}.weight" for name in POSITIONS)) for key in keys):
            return None
        from shortlist.models.backbone import empty_backbone, num_positions

        return num_positions(empty_backbone(str(self.whole.backbone_path)))

    def check_lengths(self, contract: InputContract) -> InputContract:
        """Return a contract if the model has a position for every token of its inputs.

        Raises:
            UserError: it has not.
        """
        if contract.form.within(self.num_positions) != contract.form:
            kinds = [kind for kind in TEMPLATES if getattr(contract.form, kind)]
            longest = max(getattr(contract.form, f"{kind}_length") for kind in kinds)
            raise UserError(
                f"{self.name}: has positions for {self.num_positions} tokens, and inputs may have {longest}; expected "
                f"{self.num_positions} or less (--max-length, --query-length, --window)."
            )
        return contract

    def own_contract(self, reads: str) -> InputContract | None:
        """Find the contract in the folder or of the published model.

        Args:
            reads: `document` for a retriever, `pair` for a reranker.

        Returns:
            The contract, or None if there is none for this input.
        """
        path = self.path / CONTRACT
        if path.exists():
            contract = InputContract.from_dict(read_json(path), where=str(path))
            return contract if getattr(contract.form, reads) else None
        check_layout(self.name, self.path)
        return published_contract(self.name, self.path, reads)

    def contract(self, reads: str, given: str | InputContract | None = None) -> InputContract:
        """Return the given contract, or the model's own if none is given.

        Lengths of a preset or of the model's own are at most its positions.

        Args:
            reads: as for `own_contract`.
            given: the name of a preset, or a contract.

        Raises:
            UserError: the model has no contract, or the contract is for another kind of model.
        """
        if isinstance(given, InputContract):
            return given
        if given is not None:
            contract = named_contract(given)
            if not getattr(contract.form, reads):
                raise UserError(f"--contract: {given!r} is for a {ROLES[OTHER[reads]]}; a {ROLES[reads]} is wanted.")
            return self._within_positions(contract)
        contract = self.own_contract(reads)
        if contract is None:
            raise self._mistaken(reads)
        if contract.form.feedback:
            raise UserError(
                f"{self.name}: is a feedback encoder, which reads queries with documents; a {ROLES[reads]} is wanted. "
                "Name it in a step `feedback: encoder`, and elsewhere the retriever that it was trained from."
            )
        return self._within_positions(contract)

    def feedback_contract(self) -> InputContract:
        """Return the contract of a feedback encoder.

        Raises:
            UserError: it is another kind of model.
        """
        contract = self.own_contract("document") or InputContract()
        contract.form.check_feedback(self.name)
        return self._within_positions(contract)

    def _within_positions(self, contract: InputContract) -> InputContract:
        return replace(contract, form=contract.form.within(self.num_positions))

    def is_known(self, reads: str) -> bool:
        """Whether a look at the files tells how the model reads this input."""
        if (self.path / CONTRACT).exists():
            return self.own_contract(reads) is not None
        if reads == "pair":
            return is_classifier(self.path)
        return (self.path / MODULES).exists() or (self.path / LOOKUP_FILE).exists() or is_stanford(self.path)

    def _mistaken(self, reads: str) -> UserError:
        """Make the error for a model that is not known to read this input."""
        if self.is_known(OTHER[reads]):
            kind = (read_manifest(self.path) or {}).get("config", {}).get("kind")
            found = "language model" if kind == "language-model" else ROLES[OTHER[reads]]
            return UserError(f"{self.name}: is a {found}; a {ROLES[reads]} is wanted.")
        elsewhere = "--retriever-contract in serve" if reads == "document" else "--reranker-contract beside a retriever"
        flags = f"--contract ({elsewhere})"
        return UserError(f"{self.name}: has no contract.json that says how its input looks; name one with {flags}.")

    def any_contract(self, given: str | None = None) -> InputContract:
        """Return the contract of the model, whether it is a retriever or a reranker.

        Raises:
            UserError: the model has no contract.
        """
        if given:
            return self._within_positions(named_contract(given))
        contract = self.own_contract("pair") or self.own_contract("document") or self.contract("document")
        return self._within_positions(contract)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process.

        It includes the base, so that the base is not looked up again. The other process reads the tokenizer itself.
        """
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"base": self.base}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state in another process.

        On another machine the hub's cache or the package may be in another place, where the same revision is found.
        """
        if not state["path"].is_dir():
            state["path"] = open_folder(state["name"], revision=state["revision"]).path
        self.__dict__.update(state)


def _keys(path: Path) -> Iterator[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as weights:
            yield from weights.keys()
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); copy or make the model again.") from None


def open_folder(
    name: str,
    *,
    wanted: str = "retriever",
    weights: bool = True,
    revision: str | None = None,
    base: str | None = None,
) -> ModelFolder:
    """Find the folder for a model's name, fetching it from the hub if necessary.

    Call this once per command, and pass on the result.

    Args:
        name: a folder, one of the shipped models, or a name on the hub.
        wanted: the kind of model that `shortlist-mini` stands for.
        weights: whether to fetch the weights, or only the small files.
        revision: the revision of a hub model (None: the newest).
        base: the base model of an adapter (None: as the adapter says).

    Raises:
        UserError: there is no such model, or a file of a model of ours is not as it was written.
    """
    name = shipped_name(name, wanted) if wanted in ("reranker", "language-model") else name
    path = shipped_folder(name) or Path(name)
    if path.is_dir():
        if weights:
            check_written(path)
        return ModelFolder(name, path, given_base=base)
    if path.exists() or name.count("/") > 1 or name.startswith((".", "/")):
        raise not_a_model(name, "no such folder")
    patterns = FETCHED if weights else [pattern for pattern in FETCHED if pattern not in WEIGHTS]
    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise not_a_model(name, f"there is no such folder, and from the hub: {first_line(error)}") from None
    return ModelFolder(name, path, path.name, weights, base)


def check_written(folder: Path) -> None:
    """Compare a model's files with what their manifest or checkpoint lists, if there is one.

    Raises:
        UserError: a file is missing or is not as it was written.
    """
    check_output(folder)
    files = optional_json(folder / CHECKPOINT).get("files", {})
    check_files(folder, files, remedy="delete this checkpoint; the training goes on from the one before it.")


def snapshot_download(name: str, **options: Any) -> str:
    """Fetch a model's files from the hub, whose client takes long to import."""
    from huggingface_hub import snapshot_download as fetch

    return fetch(name, **options)


def check_model(name: str, reads: str, contract: str | None = None) -> None:
    """Refuse the name of a model that cannot read this input, without loading its weights.

    Args:
        reads: `document` for a retriever, `pair` for a reranker.
        contract: name of the input contract (None: the model's own).

    Raises:
        UserError: there is no such model, it is of another kind, or the contract is unknown or for another kind.
    """
    folder = open_folder(name, wanted=ROLES[reads], weights=False)
    if contract is not None or not folder.is_known(reads):
        folder.contract(reads, contract)
