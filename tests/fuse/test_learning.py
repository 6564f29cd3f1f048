from pathlib import Path

import numpy as np
import pytest

from shortlist.data.formats import read_qrels
from shortlist.data.fusers import SCORERS, column_names, open_fuser
from shortlist.data.runs import read_run
from shortlist.errors import UserError
from shortlist.fuse import learn
from shortlist.fuse.learning import (
    LEARNERS,
    folds_of,
    importance,
    learn_trees,
    make_examples,
    mean_of,
    rehearse,
)
from shortlist.math.fusion import FUSIONS
from shortlist.records import Hit, Qrels, Run

SIX = ["THUIRr0301", "pircRBa1", "uwmtCR0", "aplrob03a", "VTcdhgp1", "fub03IeOLKe3"]


def made(num_queries: int = 20, seed: int = 0) -> tuple[list[Run], Qrels]:
    """Two searchers of ten documents each: the first knows what is relevant, the second does not."""
    random, runs, qrels = np.random.default_rng(seed), ({}, {}), {}
    for query in range(num_queries):
        relevant = random.random(10) < 0.3
        qrels[f"q{query}"] = {f"d{number}": int(known) for number, known in enumerate(relevant)}
        for run, scores in zip(runs, (relevant + random.normal(0, 0.3, 10), random.random(10)), strict=True):
            run[f"q{query}"] = [Hit(f"d{place}", float(scores[place])) for place in np.argsort(-scores)]
    return list(runs), qrels


def test_every_query_is_in_one_fold_and_folds_are_about_as_large():
    assert np.bincount(folds_of(23)).tolist() == [5, 5, 5, 4, 4]
    assert np.bincount(folds_of(3)).tolist() == [1, 1, 1]
    assert folds_of(23, seed=1).tolist() != folds_of(23).tolist()


def test_no_query_is_scored_by_what_was_learned_from_it():
    runs, qrels = made(6)
    examples = make_examples(runs, qrels, LEARNERS["logistic"].features)
    rehearsal = rehearse(examples, "logistic")
    folds = folds_of(6)
    for place, example in enumerate(examples):
        others = [one for one, fold in zip(examples, folds, strict=True) if fold != folds[place]]
        assert example not in others
        expected = SCORERS["logistic"](LEARNERS["logistic"].fit(others), example.features.shape[1])
        np.testing.assert_allclose(rehearsal.scores[place](example.features), expected(example.features))


def test_the_searcher_that_knows_counts_and_the_other_does_not():
    runs, qrels = made()
    examples = make_examples(runs, qrels, LEARNERS["logistic"].features)
    rehearsal = rehearse(examples, "logistic")
    knows, guesses, nothing = importance(rehearsal, qrels, "nDCG@10", [range(3), range(3, 6), [6]])
    assert knows > 0.1
    assert abs(guesses) < 0.05
    assert nothing == 0  # both have found everything
    assert mean_of(rehearsal.run(), qrels, "nDCG@10") > mean_of(FUSIONS["zscore"](runs), qrels, "nDCG@10")


def test_what_is_learned_is_json_that_fuses_again():
    runs, qrels = made()
    content = learn(runs, qrels, "logistic", "nDCG@10")
    content["runs"] = [{}, {}]
    fuser = open_fuser(content, where="here")
    assert mean_of(fuser(runs), qrels, "nDCG@10") >= content["measured"]["learned"] - 0.02
    assert [*content["feature_importance"]] == column_names(2, LEARNERS["logistic"].features)
    with pytest.raises(UserError, match="of 2 runs was given 3"):
        fuser([*runs, runs[0]])


@pytest.mark.parametrize(
    "change",
    [
        {"features": ["zscore", "typo"]},
        {"parameters": {"weights": [1.0], "bias": 0}},
        {"parameters": {"weights": [None] * 7, "bias": 0}},
        {"learner": "kan"},
        {"runs": [{}]},
        {"learner": "trees"},
    ],
)
def test_a_file_that_is_no_fusion_is_refused(change: dict):
    runs, qrels = made()
    content = learn(runs, qrels, "logistic", "nDCG@10") | {"runs": [{}, {}]} | change
    with pytest.raises(UserError, match=r"here: is no learned fusion .* wrote"):
        open_fuser(content, where="here")


def test_queries_that_nobody_judged_or_that_find_nothing_are_refused():
    runs, qrels = made(3)
    with pytest.raises(UserError, match="1 of their queries are judged"):
        make_examples(runs, {"q0": qrels["q0"]}, ["found"])
    with pytest.raises(UserError, match="0 find a relevant document"):
        make_examples(runs, {query_id: {} for query_id in qrels}, ["found"])


@pytest.fixture(scope="module")
def robust(shared_data: Path) -> tuple[list[Run], Qrels]:
    folder = shared_data / "robust03"
    return [read_run(folder / "runs" / f"{name}.gz") for name in SIX], read_qrels(folder / "qrels.gz")


def test_robust_2003_gives_the_known_values(robust: tuple[list[Run], Qrels]):
    """RRF .473/.304, z-scores .490/.305, logistic regression .483/.317 were measured with folds of another draw."""
    runs, qrels = robust
    equal = FUSIONS["zscore"](runs)
    rehearsal = rehearse(make_examples(runs, qrels, LEARNERS["logistic"].features), "logistic")
    learned = rehearsal.run()
    assert mean_of(equal, qrels, "AP") == pytest.approx(0.3067, abs=1e-4)
    assert mean_of(learned, qrels, "AP") == pytest.approx(0.317, abs=0.006)
    assert mean_of(learned, qrels, "nDCG@10") == pytest.approx(0.483, abs=0.02)
    assert mean_of(learned, qrels, "AP") > mean_of(equal, qrels, "AP") + 0.01


@pytest.mark.slow
def test_small_trees_learn_robust_2003_and_score_as_lightgbm_does(robust: tuple[list[Run], Qrels]):
    pytest.importorskip("lightgbm")
    runs, qrels = robust
    examples = make_examples(runs, qrels, LEARNERS["trees"].features)
    learned = rehearse(examples, "trees").run()
    assert mean_of(learned, qrels, "AP") == pytest.approx(0.318, abs=0.006)
    assert mean_of(learned, qrels, "nDCG@10") == pytest.approx(0.492, abs=0.02)


def test_trees_are_scored_as_lightgbm_scores_them(monkeypatch: pytest.MonkeyPatch):
    lightgbm = pytest.importorskip("lightgbm")
    boosters, train = [], lightgbm.train
    monkeypatch.setattr(lightgbm, "train", lambda *given: boosters.append(train(*given)) or boosters[0])
    examples = make_examples(*made(), LEARNERS["trees"].features)
    score = SCORERS["trees"](learn_trees(examples), examples[0].features.shape[1])
    np.testing.assert_allclose(score(examples[0].features), boosters[0].predict(examples[0].features), atol=1e-12)
    assert np.ptp(score(examples[0].features)) > 0


def test_trees_without_lightgbm_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "lightgbm", None)
    with pytest.raises(UserError, match=r"--learner trees: .*pip install 'shortlist\[learn\]'"):
        rehearse(make_examples(*made(6), LEARNERS["trees"].features), "trees")
