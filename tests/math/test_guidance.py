import pytest
import torch

from shortlist.math.guidance import guided

KEEP = torch.tensor([[True, True, True, True, False]])
RELEVANCE = torch.tensor([[0.0, 1.0, 0.0, 0.0, torch.nan]])
SIMILARITIES = torch.tensor([[0.4, 0.5, 0.48, 0.6, torch.nan]])


@pytest.mark.parametrize(
    ("margin", "relative", "kept"),
    [
        (0.0, False, [1, 1, 1, 0, 0]),  # the bar is 0.5
        (0.05, False, [1, 1, 0, 0, 0]),  # 0.45
        (0.1, True, [1, 1, 0, 0, 0]),  # 0.45
        (0.03, True, [1, 1, 1, 0, 0]),  # 0.485
        (0.5, False, [0, 1, 0, 0, 0]),  # the positive stays, whatever the margin
        (-0.2, False, [1, 1, 1, 1, 0]),
    ],
)
def test_what_the_guide_finds_as_relevant_as_the_positive_does_not_count(margin: float, relative: bool, kept: list):
    found = guided(KEEP, SIMILARITIES, RELEVANCE, margin=margin, relative=relative)
    assert found[0].int().tolist() == kept


def test_a_relative_margin_lowers_the_bar_below_negative_similarities_too():
    found = guided(KEEP, SIMILARITIES - 1, RELEVANCE, margin=0.1, relative=True)  # -0.5 - 0.05
    assert found[0].int().tolist() == [1, 1, 0, 0, 0]


def test_the_guide_takes_away_no_relevant_document_and_nothing_of_a_query_without_any():
    grades = torch.tensor([[0.0, 2.0, 0.0, 1.0, 0.0]])
    assert guided(KEEP, SIMILARITIES, grades)[0].int().tolist() == [1, 1, 1, 1, 0]
    assert torch.equal(guided(KEEP, SIMILARITIES, torch.zeros(1, 5)), KEEP)
