"""The documents that a search may find."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, final
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Bool

from shortlist.data.ids import DocIds

if TYPE_CHECKING:
    import pyarrow as pa


@final
class Allowed:
    """Documents that a search may find, as a filter has selected them.

    An object is made once for a filter: indexes keep what they have prepared for it as long as it lives.

    Args:
        doc_ids: the ids of the documents, as texts or an array of Arrow.
    """

    def __init__(self, doc_ids: "Iterable[str] | pa.Array | pa.ChunkedArray", *, _of_segments: bool = False) -> None:
        import pyarrow as pa

        given: Any = doc_ids if isinstance(doc_ids, pa.Array | pa.ChunkedArray) else list(doc_ids)
        self._ids: Any = given.cast(pa.large_string()) if hasattr(given, "cast") else pa.array(given, pa.large_string())
        self._of_segments = _of_segments
        self._masks: WeakKeyDictionary[DocIds, Bool[np.ndarray, " docs"]] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"<Allowed: {len(self):,} documents>"

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.doc_ids)

    def __contains__(self, doc_id: str) -> bool:
        return (doc_id.rpartition("#")[0] if self._of_segments else doc_id) in self._set

    @cached_property
    def doc_ids(self) -> list[str]:
        """The ids of the documents."""
        return self._ids.to_pylist()

    @cached_property
    def _set(self) -> frozenset[str]:
        return frozenset(self.doc_ids)

    @cached_property
    def segments(self) -> "Allowed":
        """The same documents, where a search finds their segments: `d#0` is allowed if `d` is."""
        return Allowed(self._ids, _of_segments=True)

    @property
    def of_segments(self) -> bool:
        """Whether the ids to ask for are of segments."""
        return self._of_segments

    def mask(self, doc_ids: "Sequence[str] | pa.Array | pa.ChunkedArray") -> Bool[np.ndarray, " docs"]:
        """Say of each document of an index whether it may be found.

        Args:
            doc_ids: the ids of the index's documents; for those of an index that stays open, the mask is kept.
        """
        if not isinstance(doc_ids, DocIds):
            return self._mask(doc_ids)
        if doc_ids not in self._masks:
            self._masks[doc_ids] = self._mask(doc_ids)
        return self._masks[doc_ids]

    def _mask(self, doc_ids: Any) -> Bool[np.ndarray, " docs"]:
        import pyarrow as pa

        asked: Any = doc_ids.to_arrow() if isinstance(doc_ids, DocIds) else doc_ids
        if not isinstance(asked, pa.Array | pa.ChunkedArray):
            asked = pa.array(list(doc_ids))
        asked = asked.cast(pa.large_string())
        pc: Any = import_module("pyarrow.compute")  # whose functions no type checker knows
        if self._of_segments:
            asked = pc.replace_substring_regex(asked, "#[^#]*$", "")
        return pc.is_in(asked, self._ids).to_numpy(zero_copy_only=False)
