"""Choice of a few items from all strata of a score."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


def to_unit(values: Float[np.ndarray, " items"]) -> Float[np.ndarray, " items"]:
    """Scale values to [0, 1]; equal ones all become 0."""
    width = values.max() - values.min()
    return (values - values.min()) / width if width > 0 else np.zeros(len(values))


class Stratum(NamedTuple):
    """A part of the range of scores, with its items."""

    low: float
    high: float
    size: int
    taken: int


def take_from_strata(
    scores: Float[np.ndarray, " items"], size: int, *, num_strata: int, hardest: float, seed: int
) -> tuple[Int[np.ndarray, " taken"], list[Stratum]]:
    """Take items at random from equally wide strata, about as many from each.

    The items with the highest scores are left out first. The smallest stratum comes first, and gives all that it has or
    an equal share of what is still wanted.

    Args:
        size: how many to take, at most as many as are left in.
        hardest: share of the items, those of the highest scores, that are left out.

    Returns:
        The numbers of the items, ascending, and the strata that have items, from low to high.

    https://arxiv.org/abs/2401.17197
    """
    random = np.random.default_rng(seed)
    order = np.argsort(scores, kind="stable")[: len(scores) - int(hardest * len(scores))]
    edges = np.linspace(scores[order[0]], scores[order[-1]], num_strata + 1)
    places = np.clip(np.searchsorted(edges, scores[order], side="right") - 1, 0, num_strata - 1)
    members = {place: order[places == place] for place in np.unique(places).tolist()}
    taken: dict[int, Int[np.ndarray, " some"]] = {}
    for done, place in enumerate(sorted(members, key=lambda place: len(members[place]))):
        wanted = (size - sum(map(len, taken.values()))) // (len(members) - done)
        taken[place] = random.permutation(members[place])[:wanted]
    strata = [
        Stratum(float(edges[place]), float(edges[place + 1]), len(members[place]), len(taken[place]))
        for place in sorted(members)
    ]
    return np.sort(np.concatenate(list(taken.values()))), strata
