import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tiny import DOCUMENTS, QUERIES, Tiny

from shortlist.data.figures import svg
from shortlist.errors import UserError
from shortlist.evaluation import lengths
from shortlist.evaluation.lengths import count, draw_lengths
from shortlist.text.tokenizer import load_tokenizer


def measured(capsys: pytest.CaptureFixture[str], **settings) -> dict:
    lengths.run(lengths.Config(**settings, json=True))
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def settings(tiny: Tiny, tmp_path: Path) -> dict:
    return {"collection": str(tiny.collection), "model": str(tiny.llama), "out": tmp_path / "out"}


def test_every_document_is_counted_in_tokens(settings: dict, capsys):
    found = measured(capsys, **settings, limits=(8, 14))
    words = [len(document.text.split()) for document in DOCUMENTS]  # the tiny tokenizer makes a token of each
    assert (found["count"], found["longest"]) == (12, max(words))
    assert found["mean"] == pytest.approx(np.mean(words), abs=1e-3)
    assert found["quantiles"]["50%"] == np.quantile(words, 0.5, method="inverted_cdf")
    assert found["at_most"] == {str(limit): np.mean(np.array(words) <= limit) for limit in (8, 14)}
    with open(settings["out"] / "lengths.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["texts"]) for row in rows) == 12
    assert float(rows[-1]["share_at_most"]) == 1.0


def test_queries_can_be_counted_instead(settings: dict, capsys):
    found = measured(capsys, **settings, split="train")
    assert found["texts"] == "queries of train"
    assert found["count"] == 8
    assert found["longest"] == max(len(query.text.split()) for query in QUERIES[:8])


def test_a_sample_is_spread_over_the_corpus(settings: dict, capsys):
    found = measured(capsys, **settings, sample=3)
    assert found["count"] == 3
    some = [len(DOCUMENTS[place].text.split()) for place in (0, 4, 8)]
    assert found["mean"] == pytest.approx(np.mean(some), abs=1e-3)


def test_a_second_time_the_same_is_printed_and_nothing_counted(settings: dict, capsys):
    found = measured(capsys, **settings)
    lengths.run(lengths.Config(**settings))
    told = capsys.readouterr()
    assert "already done" in told.err
    assert all(words in told.out for words in ("12 documents", "50%", "<= 2048", f"{found['mean']:.1f}"))


def test_a_text_without_words_has_no_tokens(tiny: Tiny):
    assert count(["", "the apple", ""], load_tokenizer(tiny.llama)).tolist() == [2, 0, 1]


def test_the_drawing_shows_the_limits_that_fit_and_leaves_out_the_longest():
    histogram = np.zeros(10_001, dtype=np.int64)
    histogram[:1000], histogram[-1] = 1, 20
    drawing = svg(partial(draw_lengths, histogram, "documents", (512, 2048), 0.03))
    assert "512: 50%" in drawing
    assert "2,048" not in drawing
    assert "the longest 3% left out" in drawing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limits": (0,)}, "--limits has 0"),
        ({"drop_longest": 1.0}, "--drop-longest is 1.0"),
        ({"sample": 0}, "--sample is 0"),
        ({"split": "tset"}, "unknown split .*'tset'"),
        ({"collection": "nowhere"}, "nowhere: no such collection"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        lengths.run(lengths.Config(**(settings | change)))


@pytest.mark.slow
def test_scifact_has_the_length_that_is_known_of_it(shared_data: Path, tmp_path: Path, capsys):
    where = {"collection": str(shared_data / "scifact"), "model": str(shared_data / "llama-tokenizer")}
    measured(capsys, **where, out=tmp_path / "out", sample=1000)
    with open(tmp_path / "out" / "lengths.csv", newline="") as file:
        rows = [(int(row["tokens"]), int(row["texts"])) for row in csv.DictReader(file)]
    cut = sum(texts * min(tokens + 4, 512) for tokens, texts in rows) / 1000  # `<s>passage: ... </s>`
    assert cut == pytest.approx(371, abs=10)
