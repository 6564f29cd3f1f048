"""A pipeline that follows its files, whose new state replaces the old one at once."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, final

from shortlist.data.texts import Change
from shortlist.errors import UserError
from shortlist.index.opening import is_older
from shortlist.pipeline import Pipeline
from shortlist.pipeline.budget import within_budget
from shortlist.pipeline.loading import Opener
from shortlist.pipeline.own import with_own_indexes
from shortlist.pipeline.spec import Description
from shortlist.progress import say

AGAIN_SECONDS = 60
"""How long files that could not be opened are left alone, unless they change: the disk may have been full."""

FileStates = dict[Path, tuple[int, ...]]
"""What changes with each file that a pipeline is made from: its inode, size and time."""


class OpenedState(NamedTuple):
    """A pipeline, and the files that it was opened from."""

    pipeline: Pipeline
    files: FileStates


@final
class LivePipeline:
    """A pipeline whose collection and indexes may change.

    Searches that have begun finish with the state that they began with. A state in which an index was made from another
    corpus than the collection's is not taken.

    Args:
        description: may name the collection's own indexes by naming none; they are brought up to date.
        opener: loads the models, which stay the same.
        command: the command's name, for messages.

    Raises:
        UserError: the pipeline cannot be opened, or finds documents that the collection lacks.
    """

    def __init__(self, description: Description, opener: Opener | None = None, *, command: str) -> None:
        self._opener, self._command = opener or Opener(), command
        self._description = within_budget(description)  # by the steps as they are written, before own indexes are named
        self._lock = threading.Lock()
        self._seen: FileStates | None = None
        self._refused: FileStates | None = None
        self._again = 0.0
        self._state = self._open(self._opener, strict=False)

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline as it is now; a search keeps the one that it began with."""
        return self._state.pipeline

    @property
    def is_refused(self) -> bool:
        """Whether the files have changed into something that cannot be searched."""
        return self._refused is not None

    def change(self) -> Change | None:
        """Return what has happened to the files since the state was opened."""
        state = self._state
        change = getattr(state.pipeline.collection, "change", None)
        happened: Change | None = change() if change is not None else None
        return happened or ("replaced" if _now(state.files) != state.files else None)

    def follow(self, prepare: Callable[[Pipeline], None] | None = None, *, settled: bool = True) -> bool:
        """Replace the pipeline if its files have changed; whether it was replaced.

        If the new state cannot be opened, this says why, once, and the old one stays.

        Args:
            prepare: called with the new pipeline before it replaces the old one; may raise.
            settled: wait with a change until the call after the one that first saw it.
        """
        with self._lock:
            now = _now(self._state.files)
            if self.change() is None or (now == self._refused and time.monotonic() < self._again):
                return False
            if settled and now != self._seen:
                self._seen = now
                return False
            try:
                state = self._open(self._opener.renewed(), strict=True)
                if prepare is not None:
                    prepare(state.pipeline)
            except Exception as error:
                if now != self._refused:
                    words = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                    say(f"{self._command}: the files have changed, and the old ones are searched further; {words}")
                self._refused, self._again = now, time.monotonic() + AGAIN_SECONDS
                return False
            self._state, self._refused, self._seen = state, None, None
        say(f"{self._command}: the files have changed; the new ones are searched from now on.")
        return True

    def _open(self, opener: Opener, *, strict: bool) -> OpenedState:
        """Open the state that the files are in.

        Args:
            strict: refuse indexes that were made from another corpus than the collection holds, instead of saying so.
        """
        description = with_own_indexes(self._description)
        files = _now(_files_of(description))
        pipeline = Pipeline.open(description, opener)
        check_documents(pipeline)
        name, collection = description.collection or "", pipeline.collection
        if strict:
            collection.missing([])  # opens its texts, if nothing has yet
            older = [folder for folder in _folders_of(description) if is_older(folder, name)]
            if older:
                raise UserError(f"{older[0]}: was not made from what {name} holds now.")
        corpus = getattr(collection, "corpus_file", None)
        files |= _now({corpus: ()}) if corpus is not None else {}
        change = getattr(collection, "change", None)
        if strict and change is not None and change() is not None:
            raise UserError(f"{name}: changed while it was opened.")
        return OpenedState(pipeline, files)


def check_documents(pipeline: Pipeline) -> None:
    """Check that a collection has the documents that can be found.

    Raises:
        UserError: it lacks some.
    """
    collection = pipeline.collection
    if not hasattr(collection, "change"):  # nothing that can change
        return
    for step in pipeline.steps:
        doc_ids = getattr(step.stage, "doc_ids", None)
        if doc_ids is not None and (missing := collection.missing(doc_ids)):
            raise UserError(
                f"{collection.name}: lacks {len(missing):,} of the documents that {step.name} finds, such as "
                f"{missing[0]!r}; it has changed since: index or encode it again."
            )


def _folders_of(description: Description) -> list[Path]:
    """List the indexes and vectors that a pipeline reads."""
    values = [part.settings.get(name) for part in description.steps for name in ("index", "vectors")]
    return [value for value in values if isinstance(value, Path)]


def _files_of(description: Description) -> FileStates:
    """Return the manifests of all that a pipeline reads, without their states."""
    settings = [value for part in description.steps for value in part.settings.values()]
    paths = [value / "manifest.json" for value in settings if isinstance(value, Path)]
    return {path: () for path in paths if path.is_file()}


def _now(files: FileStates) -> FileStates:
    return {path: _file_state(path) for path in files}


def _file_state(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns
