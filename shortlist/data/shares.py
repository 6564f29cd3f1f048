"""Shares of queries that go to each split, decided by the texts of the queries."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from shortlist.data.triplets import text_id
from shortlist.errors import UserError
from shortlist.records import Group, Qrels, Query

SPLIT_NAME = re.compile(r"[\w.-]+")


def parse_shares(split: str | Sequence[str]) -> dict[str, float]:
    """Parse `--split`: one name, or names with their shares, such as `train=.8 test=.2`.

    Raises:
        UserError: several names without shares, a share that is not more than 0, shares that do not add up to 1.
    """
    words = [split] if isinstance(split, str) else list(split)
    if len(words) == 1 and "=" not in words[0]:
        return {words[0]: 1.0}
    shares: dict[str, float] = {}
    for word in words:
        name, _, text = word.partition("=")
        if not SPLIT_NAME.fullmatch(name) or name in shares or not _share(text) > 0:
            raise UserError(
                f"--split {word}: expected one name, or several as NAME=SHARE, each name once and each share more than "
                "0, such as train=.7 dev=.15 test=.15."
            )
        shares[name] = _share(text)
    if abs(math.fsum(shares.values()) - 1) > 1e-6:
        raise UserError(
            f"--split {' '.join(words)}: the shares add up to {math.fsum(shares.values()):.6g}; expected 1."
        )
    return shares


def _share(text: str) -> float:
    """Read a share; what is no number counts as 0."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def split_by_text(text: str, shares: Mapping[str, float]) -> str:
    """Return the split of a query, by a hash of its text.

    It does not depend on other queries. Texts that differ only in case go to the same split.
    """
    place = int(text_id(text.casefold())[:13], 16) / 16**13  # 52 bits, so always less than 1
    *splits, last = shares
    ends = accumulate(shares.values())
    return next((split for split, end in zip(splits, ends, strict=False) if place < end), last)


def divide(
    groups: Iterable[Group], queries: Mapping[str, Query], qrels: Qrels, shares: Mapping[str, float]
) -> tuple[list[Group], dict[str, Qrels]]:
    """Divide queries among splits.

    Returns:
        The groups of the first split, and the judgements of each.

    Raises:
        UserError: a split gets no query.
    """
    split_of_query = {query_id: split_by_text(queries[query_id].text, shares) for query_id in qrels}
    judged: dict[str, Qrels] = {split: {} for split in shares}
    for query_id, split in split_of_query.items():
        judged[split][query_id] = qrels[query_id]
    if empty := next((split for split in shares if not judged[split]), None):
        raise UserError(
            f"--split: none of {len(qrels):,} queries falls to {empty!r}; give it a larger share, or leave it out."
        )
    return [group for group in groups if group.query_id in judged[next(iter(shares))]], judged
