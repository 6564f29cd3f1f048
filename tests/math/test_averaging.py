import torch

from shortlist.math.averaging import average_weights, choose_greedily

A = {"w": torch.tensor([1.0, 2.0]), "places": torch.tensor([0, 1])}
B = {"w": torch.tensor([3.0, 6.0]), "places": torch.tensor([0, 1])}


def test_tensors_are_averaged_by_their_shares_and_whole_numbers_stay():
    found = average_weights(iter([A, B]), [0.25, 0.75])
    assert found["w"].tolist() == [2.5, 5.0]
    assert found["places"].tolist() == [0, 1]
    assert A["w"].tolist() == [1.0, 2.0]


def test_greedy_choice_tries_the_best_first_and_leaves_out_what_makes_it_worse():
    values = {(2,): 0.6, (2, 0): 0.5, (2, 3): 0.6, (2, 3, 1): 0.7}
    asked = []

    def score_of(numbers: list[int]) -> float:
        asked.append(tuple(numbers))
        return values[tuple(numbers)]

    assert choose_greedily([0.5, 0.1, 0.6, 0.4], score_of) == ([2, 3, 1], 0.7)  # a tie is taken
    assert asked == [(2, 0), (2, 3), (2, 3, 1)]
