"""Detection of copied functions, even after renaming, reformatting or changes of comments."""

import ast
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable

SHINGLE = 5
"""Number of words per shingle."""
NEAR = 0.7
"""Two bodies count as the same if the Jaccard similarity of their shingle sets is at least this."""

WORD = re.compile(r"[^\W\d_]+|\d+")
COMMENT_OR_STRING = re.compile(
    r'#[^\n]*|""".*?"""|\'\'\'.*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.DOTALL
)


def normalized(text: str) -> str:
    """Return the lowercase words of a text, with one space between.

    Identifiers are split at underscores, and punctuation is dropped.
    """
    return " ".join(WORD.findall(text.lower()))


def quiet_parse(source: str) -> ast.Module:
    """Parse like `ast.parse`, without its warnings.

    Invalid escapes in other people's strings are not ours to report.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


def body_words(text: str) -> str:
    """Return the normalised words of a function's body.

    `text` is one function; its name, signature and comments are left out.
    """
    first = quiet_parse(text).body[0].body[0]  # pyright: ignore[reportAttributeAccessIssue]
    lines = text.split("\n")[first.lineno - 1 :]
    lines[0] = lines[0].encode()[first.col_offset :].decode()  # ast counts columns in UTF-8 bytes
    code = COMMENT_OR_STRING.sub(lambda match: "" if match[0].startswith("#") else match[0], "\n".join(lines))
    return normalized(code)


def shingles(body: str) -> set[tuple[str, ...]]:
    """Return every run of five words; a shorter text is one shingle."""
    words = tuple(body.split())
    return {words[start : start + SHINGLE] for start in range(max(len(words) - SHINGLE + 1, 1))}


class Overlap:
    """An index that finds all bodies that resemble another one.

    Bodies resemble each other if the Jaccard similarity of their shingles is at least 0.7; the search is exact. Two
    sets that similar must share one of the first `floor(0.3 n) + 1` shingles of each, in any common order, so only
    those are indexed and looked up (prefix filtering, https://doi.org/10.1145/1242572.1242591).
    """

    def __init__(self, bodies: Iterable[str]):
        self._bodies = [shingles(body) for body in bodies]
        self._index: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for position, body in enumerate(self._bodies):
            for shingle in _prefix(body):
                self._index[shingle].append(position)

    def near(self, body: str) -> set[int]:
        """Return the positions of the bodies that resemble this one."""
        body_shingles = shingles(body)
        found = {position for shingle in _prefix(body_shingles) for position in self._index.get(shingle, ())}
        return {position for position in found if _jaccard(body_shingles, self._bodies[position]) >= NEAR}


def _prefix(body: set[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return sorted(body, key=hash)[: int((1 - NEAR) * len(body)) + 1]


def _jaccard(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)
