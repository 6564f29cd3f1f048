import numpy as np
import pytest
from scipy.stats import studentized_range

from shortlist.math import all_pairs
from shortlist.math.all_pairs import pairs_of, randomisation_tests, randomised_tukey, range_tail, t_tests, tukey_hsd
from shortlist.math.significance import paired_t_test, randomisation_test


def values(num_systems: int, num_queries: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.random((num_systems, num_queries)) + np.linspace(0, 0.3, num_systems)[:, None]


def differences(table: np.ndarray) -> list[np.ndarray]:
    return [table[one] - table[two] for one in range(len(table)) for two in range(one + 1, len(table))]


def test_the_pairs_come_in_the_order_of_their_systems():
    assert [part.tolist() for part in pairs_of(3)] == [[0, 0, 1], [1, 2, 2]]


def test_the_t_tests_are_those_of_each_pair():
    table = values(5, 12)
    table[3] = table[1]
    table[4] = table[2] + 0.25
    assert t_tests(table) == pytest.approx([paired_t_test(each) for each in differences(table)], abs=1e-12)


def test_the_randomisation_tests_of_few_queries_are_those_of_each_pair():
    table = values(4, 7)
    table[3] = table[0]
    assert randomisation_tests(table) == pytest.approx([randomisation_test(each) for each in differences(table)])


def test_the_randomisation_tests_of_many_queries_near_those_of_each_pair(monkeypatch):
    table = values(3, 40)
    found = randomisation_tests(table, resamples=4000)
    assert found == pytest.approx(t_tests(table), abs=0.03)
    monkeypatch.setattr(all_pairs, "BATCH", 1000)  # many small parts give the same
    assert randomisation_tests(table, resamples=4000) == pytest.approx(found)


def test_tukeys_test_of_two_systems_is_the_paired_t_test():
    table = values(2, 9)
    assert tukey_hsd(table) == pytest.approx(t_tests(table), abs=1e-9)


def test_tukeys_test_subtracts_what_queries_have_in_common():
    table = values(4, 9)
    harder = table + np.linspace(0, 5, 9)
    assert tukey_hsd(harder) == pytest.approx(tukey_hsd(table))
    assert randomised_tukey(harder, resamples=200) == pytest.approx(randomised_tukey(table, resamples=200))
    order = np.array([2, 0, 3, 1])
    first, second = pairs_of(4)
    square = np.ones((4, 4))
    square[first, second] = square[second, first] = tukey_hsd(table)
    assert tukey_hsd(table[order]) == pytest.approx(square[order][:, order][first, second])


def test_systems_without_noise_differ_or_not():
    table = np.tile(np.arange(5.0), (3, 1)) + np.array([[0.0], [0.0], [1.0]])
    assert tukey_hsd(table).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("critical", "num_systems", "freedom", "level"),
    [(3.877, 3, 10, 0.05), (4.232, 5, 20, 0.05), (5.270, 3, 10, 0.01), (17.97, 2, 1, 0.05), (26.98, 3, 1, 0.05)],
)
def test_the_range_reaches_the_tables_critical_values(critical, num_systems, freedom, level):
    assert range_tail(np.array([critical]), num_systems, freedom)[0] == pytest.approx(level, rel=0.002)


@pytest.mark.slow
def test_the_range_equals_scipys(monkeypatch):
    ranges = np.array([0.0, 2.0, 6.0])
    found = range_tail(ranges, 37, 1512)
    assert found == pytest.approx(studentized_range.sf(ranges, 37, 1512), abs=1e-9)
    monkeypatch.setattr(all_pairs, "BATCH", 1)
    assert range_tail(ranges, 37, 1512) == pytest.approx(found, abs=1e-15)


def test_tukeys_test_by_randomisation_nears_tukeys_test():
    table = np.random.default_rng(1).normal(0, 1, (4, 40))  # of equal systems: differences widen the random ranges
    assert randomised_tukey(table, resamples=3000) == pytest.approx(tukey_hsd(table), abs=0.05)
    table[1] = table[0]
    assert randomised_tukey(table, resamples=300)[0] == 1.0


def test_tukeys_test_by_randomisation_of_two_queries_counts_the_assignments():
    table = np.array([[0.0, 0.0], [1.0, 2.0]])  # the sums differ by 3, 1, 1 or 3
    assert randomised_tukey(table, resamples=4000)[0] == pytest.approx(0.5, abs=0.03)
