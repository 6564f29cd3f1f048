"""The judgements given to a stage: a file, or a split of a collection."""

from pathlib import Path
from typing import Any, NamedTuple

from shortlist.data.collections import open_collection
from shortlist.data.formats import read_qrels
from shortlist.data.manifest import identity, read_manifest
from shortlist.errors import UserError
from shortlist.records import Qrels


class Judgements(NamedTuple):
    """The source of judgements: either a file or a split of a collection."""

    qrels: Path | None
    collection: str | None
    split: str

    def check(self) -> None:
        """Refuse settings that name both sources or neither."""
        if (self.qrels is None) == (self.collection is None):
            raise UserError("expected either --qrels FILE or --collection C, and not both.")

    @property
    def where(self) -> str:
        """The name of the source in messages."""
        return str(self.qrels) if self.qrels is not None else f"{self.collection} ({self.split})"

    def read(self) -> Qrels:
        """Read the judgements.

        Raises:
            UserError: they are missing or cannot be read.
        """
        if self.qrels is not None:
            return read_qrels(self.qrels)
        return open_collection(str(self.collection)).qrels(self.split)

    def made_by(self) -> str | None:
        """Return the machine that made judgements among these; None if nothing says that one did."""
        return self._said().get("machine_made")

    def made_part(self) -> str:
        """Say in words what the machine made: judgements, or the queries too."""
        found = self._said()
        if "machine_pairs" not in found:
            return "queries and judgements"
        made, num_pairs = found["machine_pairs"], found["num_pairs"]
        return "judgements" if made == num_pairs else f"{made:,} of {num_pairs:,} judgements"

    def _said(self) -> dict[str, Any]:
        """Return the results in the manifest of the file, or of its collection."""
        folder = Path(str(self.collection))
        files = [self.qrels] if self.qrels is not None else sorted((folder / "qrels").glob(f"{self.split}.*"))
        folder = folder if self.qrels is None else self.qrels.parent.parent
        for path in [*files, folder]:
            results = ((read_manifest(path) if path.exists() else None) or {}).get("results", {})
            if "machine_made" in results:
                return results
        return {}

    def identity(self) -> dict[str, str]:
        """Hash the judgements, under the name of the setting that gives their source."""
        if self.qrels is not None:
            return {"qrels": identity(self.qrels)}
        return {"collection": open_collection(str(self.collection)).identity(f"qrels/{self.split}")}


def run_names(names: tuple[str, ...] | None, runs: tuple[Path, ...]) -> tuple[str, ...]:
    """Return the names of the runs: those given, or the paths.

    Raises:
        UserError: the number of names differs from the number of runs.
    """
    names = names or tuple(map(str, runs))
    if len(names) != len(runs):
        raise UserError(f"--names has {len(names)} names for {len(runs)} runs; expected one per run.")
    return names
