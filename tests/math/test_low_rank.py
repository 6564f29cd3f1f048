import torch

from shortlist.math.low_rank import along_rows, leading_directions, project, turned, unproject
from shortlist.math.outliers import draw_layers, outlier_share


def test_directions_are_the_first_singular_vectors_of_the_shorter_side():
    for shape in ((20, 7), (7, 20)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        expected = (right if shape[0] > shape[1] else left.T)[:3]
        found = leading_directions(matrix, 3)
        torch.testing.assert_close((found * expected).sum(1).abs(), torch.ones(3))
        assert (found.gather(1, found.abs().argmax(1, keepdim=True)) > 0).all()
        back = unproject(project(matrix, found), found, tall=shape[0] >= shape[1])
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        torch.testing.assert_close(back, u[:, :3] * s[:3] @ v[:3], atol=1e-5, rtol=1e-4)


def test_a_gradient_is_split_along_rows_and_across_them():
    weight, gradient = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[2.0, 1.0], [5.0, 6.0]])
    of_length, rest = along_rows(weight, gradient)
    torch.testing.assert_close(of_length, torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(rest, torch.tensor([[0.8, -0.6], [5.0, 6.0]]))


def test_a_row_is_turned_and_then_given_its_length():
    weight, turn = torch.tensor([[3.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 3.0], [1.0, 2.0]])
    new = turned(weight, turn, torch.tensor([1.0, 7.0]))
    torch.testing.assert_close(new, torch.tensor([[8**0.5, 8**0.5], [1.0, 2.0]]))


def test_the_share_of_outliers_counts_one_more():
    # the mean size is (6 + 20) / 8 = 3.25; twice that is passed by 20 alone
    matrices = [torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([[0.0, 1.0], [-20.0, 1.0]])]
    assert outlier_share(matrices, 2.0) == 2 / 8
    assert outlier_share(matrices, 13.0) == 1 / 8


def test_layers_are_drawn_without_repeats_and_in_proportion():
    drawn = [draw_layers([0.1, 0.1, 0.8], 1, seed=0, period=period)[0] for period in range(300)]
    assert 200 < drawn.count(2) < 280
    assert drawn != [draw_layers([0.1, 0.1, 0.8], 1, seed=1, period=period)[0] for period in range(300)]
    assert draw_layers([0.2, 0.3, 0.5], 3, seed=0, period=4) == [0, 1, 2]


def test_directions_of_rounding_alone_are_left_empty():
    left, right = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in ((9, 2), (2, 6)))
    lengths = leading_directions(left @ right, 4).norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 1.0, 0.0, 0.0]))
