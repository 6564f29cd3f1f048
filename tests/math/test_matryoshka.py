import torch

from shortlist.math.matryoshka import nested, shortened

VECTORS = torch.tensor([[3.0, 4.0, 12.0], [0.0, -2.0, 0.0]])


def test_a_vector_is_cut_and_then_scaled_again():
    torch.testing.assert_close(shortened(VECTORS, 2, unit=True), torch.tensor([[0.6, 0.8], [0.0, -1.0]]))
    assert shortened(VECTORS, 2, unit=False).tolist() == [[3.0, 4.0], [0.0, -2.0]]


def test_scaling_before_the_cut_changes_nothing():
    unit = VECTORS / VECTORS.norm(dim=1, keepdim=True)
    torch.testing.assert_close(shortened(unit, 2, unit=True), shortened(VECTORS, 2, unit=True))


def test_each_dimension_gets_its_own_vectors_and_none_leaves_them_as_they_are():
    assert [part.shape[1] for part in nested(VECTORS, (3, 1), unit=True)] == [3, 1]
    assert nested(VECTORS, (), unit=True)[0] is VECTORS
