"""Prompts that begin alike, found so that their common beginning is computed once."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

PromptIds = Sequence[int] | Int[np.ndarray, " _"]

LEAST_SAVED = 0.2
"""Share of all tokens that must be saved; less is not worth the copies of keys and values."""


class Alike(NamedTuple):
    """Prompts whose first ids are the same."""

    length: int
    """The number of ids in common, at most; 0 for prompts that are computed whole."""
    members: list[int]


def shared_prefixes(prompts: Sequence[PromptIds], kept: Sequence[int]) -> list[Alike]:
    """Group prompts by their beginnings, so that the most tokens are computed only once.

    Args:
        prompts: the token ids of each prompt.
        kept: the number of ids at the end of each prompt that are not shared; at least 1.

    Returns:
        Groups that together have every prompt once; a prompt that shares nothing is in a group of length 0.
    """
    order = sorted(range(len(prompts)), key=lambda number: tuple(prompts[number]))
    ids = [np.asarray(prompts[number]) for number in order]
    common = [_common(one, other) for one, other in pairwise(ids)]
    room = [len(prompts[number]) - kept[number] for number in order]
    found, saved = _best_groups(common, room)
    if saved < LEAST_SAVED * sum(map(len, prompts)):
        return [Alike(0, list(range(len(prompts))))] if prompts else []
    groups = [Alike(length, sorted(order[start:end])) for start, end, length in found]
    alone = sorted({*range(len(prompts))}.difference(*(group.members for group in groups)))
    return groups + ([Alike(0, alone)] if alone else [])


def _common(one: Int[np.ndarray, " _"], other: Int[np.ndarray, " _"]) -> int:
    """Count the ids at the beginning that two prompts have in common."""
    shorter = min(len(one), len(other))
    differ = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(differ[0]) if len(differ) else shorter


class _Node(NamedTuple):
    """Sorted prompts that share a beginning, and the best groups among them."""

    start: int
    shared: int
    """The ids that they have in common with one another and with the next prompt."""
    room: int
    groups: list[tuple[int, int, int]]
    """Start, end and length in common of each group."""
    saved: int


def _best_groups(common: Sequence[int], room: Sequence[int]) -> tuple[list[tuple[int, int, int]], int]:
    """Choose spans of sorted prompts that share a beginning, with the tokens saved.

    Prompts that share more with one another than with their neighbours form a tree. At each of its nodes either all
    prompts share what they all have in common, or its branches share what they have, whichever saves more.

    Args:
        common: the ids that each prompt has in common with the next.
        room: the most ids of each prompt that may be shared.
    """
    open_nodes: list[_Node] = []  # from the root down
    for place, after in enumerate([*common, -1][: len(room)]):
        node = _Node(place, after, room[place], [], 0)
        while open_nodes and open_nodes[-1].shared >= after:
            above = open_nodes.pop()
            least, groups, saved = min(above.room, node.room), above.groups + node.groups, above.saved + node.saved
            length = min(above.shared, least)
            if above.shared > after and (whole := length * (place - above.start)) > saved:
                groups, saved = [(above.start, place + 1, length)], whole
            node = _Node(above.start, after, least, groups, saved)
        open_nodes.append(node)
    return (open_nodes[0].groups, open_nodes[0].saved) if open_nodes else ([], 0)
