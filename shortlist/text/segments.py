"""Long documents as overlapping segments, which are documents themselves."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from shortlist.errors import UserError
from shortlist.records import Document, Query
from shortlist.text.batching import batches_by_size, windows
from shortlist.text.contract import InputContract
from shortlist.text.inputs import CHARACTERS_A_CALL, Inputs

Segments = Literal["whole", "firstp", "maxp", "avgp"]
"""Part of a document to read, and the source of its score: the whole document in one input; its first segment alone;
every segment, with the best or the mean of their scores."""

PairSegments = Literal["whole", "firstp", "maxp", "avgp", "extract"]
"""The same beside a query; also an extract, the sentences that hold most of the query's words."""

T = TypeVar("T")

DOCUMENTS_AT_ONCE = 1000

_CHUNK = re.compile(r"(.+)#[0-9]+", re.DOTALL)

FEWEST_TOKENS = 8
"""Least room for text in a segment. With less, next to a long title or query, a document is not split."""


def refuse_unused(segments: PairSegments, given: Iterable[str]) -> None:
    """Refuse settings of segments that would change nothing.

    Args:
        given: which of `window` and `stride` the user has set.

    Raises:
        UserError: one of them has no effect.
    """
    for name in given:
        if name in unused_settings(segments):
            wanted = "maxp or avgp" if name == "stride" else "firstp, maxp or avgp"
            raise UserError(f"--{name} changes nothing with --segments {segments}; leave it out, or say {wanted}.")


def segment_contract(
    contract: InputContract, segments: PairSegments, *, window: int, stride: int, max_length: int | None
) -> InputContract:
    """Adjust a contract's lengths to whole documents or to segments.

    In the returned contract, an input (of a document or a pair) holds a whole document or one segment.

    Raises:
        UserError: window and stride do not fit together, or `max_length` is given for segments.
    """
    if segments == "whole":
        return contract.with_lengths(document=max_length)
    if max_length is not None:
        raise UserError(f"--max-length is of whole documents; with --segments {segments} say --window.")
    if "stride" in unused_settings(segments):
        stride = min(max(1, stride), window)
    if not 1 <= stride <= window:
        raise UserError(f"--window is {window} and --stride {stride}; expected 1 <= stride <= window.")
    return contract.with_lengths(document=window)


def segment_settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Read the settings of `segment_contract` from an output's manifest."""
    config = manifest["config"]
    defaults = {"segments": "whole", "window": 512, "stride": 256, "max_length": None}
    return {name: config.get(name, default) for name, default in defaults.items()}


def unused_settings(segments: PairSegments) -> tuple[str, ...]:
    """List the settings, among `segments`, `window` and `stride`, that change nothing."""
    return {"whole": ("segments", "window", "stride"), "firstp": ("stride",), "extract": ("stride",)}.get(segments, ())


def document_segments(inputs: Inputs, documents: Sequence[Document], *, stride: int) -> list[list[Document]]:
    """Split each document into segments that fit the input length, title and prompt included.

    Args:
        inputs: their document length is the length of a segment.
        stride: tokens from the beginning of one segment's text to the beginning of the next one's.

    Returns:
        For each document, its segments. A document that fits is returned as it is. Otherwise segments cover all of its
        text, begin and end between words if possible, and have its id, title and url.
    """
    found: list[list[Document]] = []
    for part in _parts(documents, documents):  # a token of a document has a hundred bytes until it is split
        bare = inputs.document_ids([document._replace(text="") for document in part], cut=False)
        whole = inputs.document_ids(part, cut=False)
        found += _segmented(inputs, part, bare, whole, inputs.form.document_length, stride)
    return found


def pair_segments(
    inputs: Inputs, pairs: Sequence[tuple[Query, Document]], *, stride: int
) -> list[list[tuple[Query, Document]]]:
    """Split each pair into pairs of the query with a segment, as in `document_segments`."""
    found: list[list[tuple[Query, Document]]] = []
    for part in _parts(pairs, [document for _, document in pairs]):
        bare = inputs.pair_ids([(query, document._replace(text="")) for query, document in part], cut=False)
        whole = inputs.pair_ids(part, cut=False)
        split = _segmented(inputs, [document for _, document in part], bare, whole, inputs.form.pair_length, stride)
        found += [[(query, segment) for segment in segments] for (query, _), segments in zip(part, split, strict=True)]
    return found


def _parts(items: Sequence[T], documents: Sequence[Document]) -> Iterator[Sequence[T]]:
    """Yield the items in parts whose documents' texts are of bounded size."""
    sizes = [len(document.text) for document in documents]
    return batches_by_size(items, sizes, most=CHARACTERS_A_CALL, count=DOCUMENTS_AT_ONCE)


def named_segments(inputs: Inputs, documents: Iterable[Document], *, stride: int) -> Iterator[Document]:
    """Yield the segments of a corpus; segment 0 of document `d` has the id `d#0`."""
    for window in windows(documents, DOCUMENTS_AT_ONCE):
        for segments in document_segments(inputs, window, stride=stride):
            for number, segment in enumerate(segments):
                yield segment._replace(doc_id=f"{segment.doc_id}#{number}")


def whole_id(segment_id: str) -> str:
    """Return the id of the document that a segment of `named_segments` belongs to."""
    return segment_id.rpartition("#")[0]


def document_of(doc_id: str) -> str:
    """Return the id of the document that a chunk such as `d#3` belongs to."""
    found = _CHUNK.fullmatch(doc_id)
    return doc_id if found is None else found[1]


def _segmented(
    inputs: Inputs,
    documents: Sequence[Document],
    bare: Sequence[Sequence[int]],
    whole: Sequence[Sequence[int]],
    length: int,
    stride: int,
) -> list[list[Document]]:
    long = [i for i, ids in enumerate(whole) if len(ids) > length and length - len(bare[i]) > FEWEST_TOKENS]
    spans = dict(zip(long, inputs.token_spans([documents[i].text for i in long]), strict=True))
    segments = [[document] for document in documents]
    for i in long:
        room = length - len(bare[i]) - 1  # text may take one token more after a prompt than alone
        texts = cut(documents[i].text, spans[i], room=room, stride=stride)
        segments[i] = [documents[i]._replace(text=text) for text in texts]
    return segments


def cut(text: str, spans: Sequence[tuple[int, int]], *, room: int, stride: int) -> list[str]:
    """Cut a text into overlapping parts of at most `room` tokens.

    Together the parts cover the whole text. They begin and end between words if possible.

    Args:
        spans: first character and end of each token.
        stride: most tokens from the beginning of one part to the beginning of the next. There may be fewer, so that the
            part begins between words.
    """
    begins = [_begins_a_word(text, start) for start, _ in spans]
    parts, begin = [], 0
    while True:
        end = len(spans) if begin + room >= len(spans) else _back_to_a_word(begins, begin + room, begin + room // 2)
        parts.append(text[spans[begin][0] : spans[end - 1][1]].strip())
        if end == len(spans):
            return parts
        begin = _back_to_a_word(begins, min(begin + stride, end), begin)


def _begins_a_word(text: str, place: int) -> bool:
    return place == 0 or text[place].isspace() or text[place - 1].isspace()


def _back_to_a_word(begins: Sequence[bool], place: int, least: int) -> int:
    """Find the last token up to `place` and after `least` that begins a word.

    If there is none, `place` is returned.
    """
    return next((i for i in range(place, least, -1) if begins[i]), place)
