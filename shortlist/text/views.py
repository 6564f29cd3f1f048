"""Views of a text: parts or damaged copies, by which a model learns it."""

from collections.abc import Callable

import numpy as np

View = Callable[[str, np.random.Generator], str]

LEAST, MOST = 0.1, 0.5
"""The shortest and the longest crop, as shares of a text's words."""
DROPPED = 0.5
"""Share of the words that the views `drop` and `mask` take away."""
MASK = "_"
"""The word that stands in a masked word's place."""


def crop(text: str, rng: np.random.Generator) -> str:
    """Cut a random span out of a text.

    https://arxiv.org/abs/2112.09118
    """
    words = text.split()
    size = max(1, round(len(words) * rng.uniform(LEAST, MOST)))
    start = int(rng.integers(0, max(1, len(words) - size + 1)))
    return " ".join(words[start : start + size])


def drop(text: str, rng: np.random.Generator) -> str:
    """Leave out a random half of a text's words, but never all of them."""
    words = text.split()
    kept = rng.random(len(words)) >= DROPPED
    if words and not kept.any():
        kept[rng.integers(len(words))] = True
    return " ".join(word for word, keep in zip(words, kept, strict=True) if keep)


def mask(text: str, rng: np.random.Generator) -> str:
    """Put `_` in the place of a random half of a text's words."""
    return masked(text, rng, share=DROPPED)


def masked(text: str, rng: np.random.Generator, *, share: float) -> str:
    """Put `_` in the place of each word with a probability of `share`."""
    words = text.split()
    return " ".join(
        MASK if hidden else word for word, hidden in zip(words, rng.random(len(words)) < share, strict=True)
    )


VIEWS: dict[str, View] = {"crop": crop, "drop": drop, "mask": mask}
