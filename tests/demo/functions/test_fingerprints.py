from pathlib import Path

import numpy as np
import pytest

from shortlist.demo.functions.fingerprints import fingerprint, read_fingerprints, write_fingerprints


def test_what_was_written_is_found_and_nothing_else(tmp_path: Path):
    texts = [f"text number {number}" for number in range(10_000)]
    write_fingerprints(tmp_path / "all.npz", texts)
    found = read_fingerprints(tmp_path / "all.npz")
    assert np.array_equal(found, np.unique([fingerprint(text) for text in texts]).astype(np.uint64))
    assert len(found) == 10_000
    assert not np.isin([fingerprint(f"other {number}") for number in range(10_000)], found).any()


def test_a_text_that_occurs_twice_is_there_once(tmp_path: Path):
    write_fingerprints(tmp_path / "all.npz", ["a", "b", "a"])
    assert len(read_fingerprints(tmp_path / "all.npz")) == 2


def test_a_fingerprint_is_the_same_everywhere_and_no_larger_than_forty_bits():
    assert fingerprint("return the value") == 871_883_422_493
    assert max(fingerprint(str(number)) for number in range(1_000)) < 2**40


@pytest.mark.slow
def test_many_take_less_than_half_of_what_plain_numbers_take(tmp_path: Path):
    write_fingerprints(tmp_path / "all.npz", map(str, range(300_000)))
    assert (tmp_path / "all.npz").stat().st_size < 300_000 * 4
