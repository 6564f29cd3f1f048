import pytest

from shortlist.math.averaging import macro_average


def test_every_part_counts_alike():
    parts = [{"nDCG@10": 0.3, "R@100": 1.0}, {"nDCG@10": 0.6, "R@100": 0.0}, {"nDCG@10": 0.9, "R@100": 0.5}]
    assert macro_average(parts) == pytest.approx({"nDCG@10": 0.6, "R@100": 0.5})


@pytest.mark.parametrize("parts", [[], [{"nDCG@10": 0.3}, {"RR@10": 0.3}], [{"a": 1.0}, {"a": 1.0, "b": 1.0}]])
def test_parts_that_cannot_be_averaged_are_refused(parts):
    with pytest.raises(ValueError, match="one or more parts, all with the same measures"):
        macro_average(parts)
