import numpy as np
import pytest
import torch

from shortlist.math.projection import (
    GroupGradients,
    along,
    concatenated,
    gradient_norms,
    group_gradient,
    mean_gradient,
    products_of_means,
)

RANDOM = np.random.default_rng(0)


def loss_of(layer: torch.Tensor, query: np.ndarray, documents: np.ndarray, positives: int) -> torch.Tensor:
    """The loss as PyTorch computes it, with the layer between query and documents."""
    scores = torch.tensor(documents) @ (layer.T @ torch.tensor(query)) / 0.5
    return -scores.log_softmax(0)[:positives].mean()


def test_a_gradient_as_worked_out_by_hand():
    """Two documents score alike: each has probability 1/2, so that one is 1/2 too low and the other too high."""
    pull, loss = group_gradient(np.array([1.0, 0.0]), np.array([[1.0, 2.0], [1.0, -2.0]]), 1, temperature=0.5)
    assert pull.tolist() == pytest.approx([0, -4])
    assert loss == pytest.approx(np.log(2))


@pytest.mark.parametrize("positives", [1, 2])
def test_the_outer_product_is_the_gradient_that_pytorch_computes(positives: int):
    query, documents = RANDOM.standard_normal(4), RANDOM.standard_normal((5, 4))
    layer = torch.eye(4, dtype=torch.float64, requires_grad=True)
    expected = loss_of(layer, query, documents, positives)
    expected.backward()
    pull, loss = group_gradient(query, documents, positives, temperature=0.5)
    assert loss == pytest.approx(expected.item())
    np.testing.assert_allclose(np.outer(query, pull), layer.grad, atol=1e-9)


def test_a_step_along_the_gradient_lowers_the_loss():
    query, documents = RANDOM.standard_normal(4), RANDOM.standard_normal((5, 4))
    pull, loss = group_gradient(query, documents, 1, temperature=0.5)
    layer = torch.eye(4, dtype=torch.float64) - 1e-3 * torch.tensor(np.outer(query, pull))
    assert loss_of(layer, query, documents, 1).item() < loss


def test_norms_means_and_products_are_those_of_the_whole_matrices():
    gradients = GroupGradients(RANDOM.standard_normal((3, 4)), RANDOM.standard_normal((3, 4)), np.zeros(3))
    whole = np.einsum("gi,gj->gij", gradients.queries, gradients.pulls)
    np.testing.assert_allclose(gradient_norms(gradients), np.linalg.norm(whole, axis=(1, 2)))
    np.testing.assert_allclose(mean_gradient(gradients), whole.mean(0))
    direction = RANDOM.standard_normal((4, 4))
    np.testing.assert_allclose(along(gradients, direction), (whole * direction).sum((1, 2)))
    np.testing.assert_allclose(mean_gradient(concatenated([gradients, gradients])), whole.mean(0))


def test_products_of_means_leave_out_those_of_groups_with_themselves():
    ones = np.ones((2, 1))
    first = GroupGradients(np.array([[1.0], [3.0]]), ones, np.zeros(2))
    second = GroupGradients(np.array([[2.0], [2.0]]), ones, np.zeros(2))
    products = products_of_means([first])
    assert products == pytest.approx(np.array([[3.0]]))  # 1 times 3; the mean's square is 4
    assert products_of_means([second]) == pytest.approx(np.array([[4.0]]))
    both = products_of_means([first, second])  # 3 4 4 4 is of no vectors; its smaller eigenvalue is raised
    assert np.linalg.eigvalsh(both).min() == pytest.approx(1e-3 * np.linalg.eigvalsh(both).max())
