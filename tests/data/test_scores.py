from pathlib import Path

import numpy as np
import pytest

from shortlist.data.runs import read_run_columns, write_run
from shortlist.data.scores import ScoreLog, list_key
from shortlist.errors import UserError
from shortlist.records import Hit

MADE_FROM = {"model": "m", "contract": "c"}
RUN = {"q1": [Hit("a", 3.0), Hit("b", 2.0)], "q2": [Hit("b", 2.0), Hit("c", 1.0), Hit('"d"', 0.5)]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.trec.scores"


def read(path: Path, made_from: dict[str, str] = MADE_FROM) -> list[float]:
    write_run(path.with_name("candidates.trec"), RUN)
    log = ScoreLog(path, made_from)
    scores = log.read(read_run_columns(path.with_name("candidates.trec")))
    log.close()
    return scores.tolist()


def add(path: Path, *pairs: tuple[str, str, float]) -> None:
    log = ScoreLog(path, MADE_FROM)
    log.append([pair[:2] for pair in pairs], np.array([pair[2] for pair in pairs], dtype=np.float32))
    log.close()


def test_scores_come_back_to_the_last_bit_beside_their_pairs(path: Path):
    third = np.float32(1) / 3
    add(path, ("q2", "c", float(third)), ("q1", "a", -1e-30), ("elsewhere", "a", 9.0))
    add(path, ("q2", '"d"', 5.0), ("q2", "a", 7.0))
    expected = [float(np.float32(-1e-30)), np.nan, np.nan, float(third), 5.0]
    np.testing.assert_array_equal(read(path), expected)


def test_an_empty_log_knows_nothing(path: Path):
    assert np.isnan(read(path)).all()
    assert np.isnan(read(path)).all()


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_line_that_was_cut_off_is_dropped_and_the_next_one_is_whole(path: Path, cut: int):
    add(path, ("q1", "a", 1.0), ("q1", "b", 2.5))
    path.write_bytes(path.read_bytes()[:-cut])
    add(path, ("q2", "c", 4.0))
    np.testing.assert_array_equal(read(path), [1.0, np.nan, np.nan, 4.0, np.nan])


def test_a_log_whose_first_line_was_cut_off_begins_again(path: Path):
    add(path)
    path.write_bytes(path.read_bytes()[:10])
    add(path, ("q1", "a", 1.0))
    assert read(path)[0] == 1.0


def test_what_is_appended_is_there_before_the_log_is_closed(path: Path):
    log = ScoreLog(path, MADE_FROM)
    log.append([("q1", "a")], np.array([1.0], dtype=np.float32))
    assert read(path)[0] == 1.0
    log.close()


def test_scores_of_another_model_are_refused_with_the_difference_named(path: Path):
    add(path, ("q1", "a", 1.0))
    with pytest.raises(UserError, match="holds scores made with another contract; choose another --out"):
        read(path, MADE_FROM | {"contract": "other"})
    with pytest.raises(UserError, match="another model, precision;"):
        read(path, {"model": "n", "contract": "c", "precision": "bf16"})


def test_scores_of_another_model_go_where_they_are_to_be_overwritten(path: Path):
    add(path, ("q1", "a", 1.0))
    ScoreLog(path, MADE_FROM, overwrite=True).close()
    assert read(path)[0] == 1.0
    ScoreLog(path, {"model": "n"}, overwrite=True).close()
    assert np.isnan(read(path, {"model": "n"})).all()


def test_a_log_without_scores_is_nobodys(path: Path):
    ScoreLog(path, MADE_FROM).close()
    ScoreLog(path, {"model": "n"}).close()
    assert np.isnan(read(path, {"model": "n"})).all()
    assert "m" not in path.read_text().replace("model", "").replace("format", "")


def test_a_log_that_was_cleared_goes_on_without_its_scores(path: Path):
    log = ScoreLog(path, MADE_FROM)
    log.append([("q1", "a")], np.array([1.0], dtype=np.float32))
    log.clear()
    log.append([("q1", "b")], np.array([2.0], dtype=np.float32))
    log.close()
    np.testing.assert_array_equal(read(path)[:2], [np.nan, 2.0])


def test_another_file_is_left_alone(path: Path):
    path.write_text("some notes\n")
    with pytest.raises(UserError, match="not a log of scores; move it away"):
        read(path)
    assert path.read_text() == "some notes\n"


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_list_comes_back_whole_or_not_at_all(path: Path, cut: int):
    scores = np.array([1 / 3, np.nan, -1e-30], dtype=np.float32)
    log = ScoreLog(path, MADE_FROM)
    log.append_list("q1", "one", scores)
    log.append_list("q2", "two", scores)
    log.close()
    path.write_bytes(path.read_bytes()[:-cut])
    log = ScoreLog(path, MADE_FROM)
    log.append_list("q3", "three", scores[:1])
    log.close()
    found = ScoreLog(path, MADE_FROM).read_lists()
    assert list(found) == ["one", "three"]
    np.testing.assert_array_equal(found["one"], scores)


def test_a_list_is_another_one_if_its_query_order_or_length_is():
    lists = [("q", ["a", "b"]), ("q", ["b", "a"]), ("q", ["a"]), ("p", ["a", "b"]), ("q", ["ab"])]
    assert len({list_key(*each) for each in lists}) == 5
    assert list_key("q", ["a"]) == list_key("q", ["a"])
