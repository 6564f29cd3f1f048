"""Judgements as the stages that measure are given them: a file, or a split of a collection."""

from pathlib import Path
from typing import NamedTuple

from shortlist.data.collections import open_collection
from shortlist.data.formats import read_qrels
from shortlist.data.manifest import identity
from shortlist.errors import UserError
from shortlist.records import Qrels


class Judgements(NamedTuple):
    """Where judgements are: either in a file, or in a split of a collection."""

    qrels: Path | None
    collection: str | None
    split: str

    def check(self) -> None:
        """Refuse neither of the two, and both."""
        if (self.qrels is None) == (self.collection is None):
            raise UserError("expected either --qrels FILE or --collection C, and not both.")

    @property
    def where(self) -> str:
        """What to call the place in a message."""
        return str(self.qrels) if self.qrels is not None else f"{self.collection} ({self.split})"

    def read(self) -> Qrels:
        """The judgements.

        Raises:
            UserError: they are not there, or cannot be read.
        """
        if self.qrels is not None:
            return read_qrels(self.qrels)
        return open_collection(str(self.collection)).qrels(self.split)

    def identity(self) -> dict[str, str]:
        """A hash of their contents, under the name of the setting that names them."""
        if self.qrels is not None:
            return {"qrels": identity(self.qrels)}
        return {"collection": open_collection(str(self.collection)).identity(f"qrels/{self.split}")}


def run_names(names: tuple[str, ...] | None, runs: tuple[Path, ...]) -> tuple[str, ...]:
    """What to call each run: the names given, or else their paths.

    Raises:
        UserError: not one name per run.
    """
    names = names or tuple(map(str, runs))
    if len(names) != len(runs):
        raise UserError(f"--names has {len(names)} names for {len(runs)} runs; expected one per run.")
    return names
