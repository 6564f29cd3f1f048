"""Averages of models' weights (model soups)."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor


def average_weights(states: Iterable[Mapping[str, Tensor]], shares: Sequence[float]) -> dict[str, Tensor]:
    """Compute the weighted sum of several models' tensors, name by name.

    Tensors of whole numbers are those of the first model. One state is read at a time.

    Args:
        shares: the share of each model; they should add up to 1.

    https://arxiv.org/abs/2203.05482
    """
    total: dict[str, Tensor] = {}
    for share, state in zip(shares, states, strict=True):
        for name, value in state.items():
            if name not in total:
                total[name] = value * share if value.is_floating_point() else value.clone()
            elif value.is_floating_point():
                total[name].add_(value, alpha=share)
    return total


def choose_greedily(scores: Sequence[float], score_of: Callable[[list[int]], float]) -> tuple[list[int], float]:
    """Choose the models whose average scores best, adding one after another.

    They are tried from the best to the worst, and one is left out if the average with it scores lower than without it.

    Args:
        scores: the score of each model alone.
        score_of: scores the average of some models, given by their numbers.

    Returns:
        The numbers of the chosen models, and the score of their average.

    https://arxiv.org/abs/2203.05482
    """
    first, *others = sorted(range(len(scores)), key=lambda number: -scores[number])
    chosen, best = [first], scores[first]
    for number in others:
        score = score_of([*chosen, number])
        if score >= best:
            chosen, best = [*chosen, number], score
    return chosen, best
