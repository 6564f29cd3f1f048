from pathlib import Path

import pytest

from shortlist.data.headers import header_of, read_run_header
from shortlist.data.runs import read_run, write_run
from shortlist.errors import UserError
from shortlist.records import Hit

RUN = {"q1": [Hit("a", 2.0), Hit("b", 1.0)], "q2": [Hit("a", 0.5)]}
HEADER = {
    "schema-version": "0.1",
    "tag": "mine",
    "method": {"retrieval": [{"name": "BM25: k1 .9"}]},
    "é": ["# x", None],
}


def test_a_header_is_read_as_it_was_written_and_the_run_too(tmp_path: Path):
    write_run(tmp_path / "run.trec", RUN, header=HEADER)
    lines = (tmp_path / "run.trec").read_text("utf-8").splitlines()
    assert lines[0] == "# ir_metadata.start"
    assert lines[1] == "# schema-version: '0.1'"
    assert lines.index("# ir_metadata.end") == len(lines) - 4
    assert read_run_header(tmp_path / "run.trec") == HEADER
    assert read_run(tmp_path / "run.trec") == RUN
    write_run(tmp_path / "plain.trec", RUN)
    assert read_run_header(tmp_path / "plain.trec") is None


@pytest.mark.parametrize(
    "text",
    [
        "# a comment\n#\n# another\n\nq1 Q0 a 1 2.0 x\nq1 Q0  b 2 1.0 x\nq2 Q0 a 1 0.5 x\n",  # line by line
        "# a comment\nq1 Q0 a 1 2.0 x\nq1 Q0 b 2 1.0 x\nq2 Q0 a 1 0.5 x\n",
        "# a comment\nquery-id\tcorpus-id\tscore\nq1\ta\t2\nq1\tb\t1\nq2\ta\t0.5\n",
    ],
)
def test_runs_of_all_forms_may_begin_with_comments(tmp_path: Path, text: str):
    (tmp_path / "run").write_text(text)
    assert read_run(tmp_path / "run") == RUN
    assert read_run_header(tmp_path / "run") is None


def test_a_query_may_be_called_like_a_comment(tmp_path: Path):
    (tmp_path / "run").write_text("#1 Q0 a 1 2.0 x\n")
    assert list(read_run(tmp_path / "run")) == ["#1"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# ir_metadata.start\n# tag: x\nq1 Q0 a 1 2.0 x\n", "its header has no end; expected a line"),
        ("# ir_metadata.start\n# - x\n# ir_metadata.end\n", "its header is a list; expected names with values"),
        ("# ir_metadata.start\n# a: [\n# ir_metadata.end\n", "its header is no YAML"),
    ],
)
def test_what_is_no_header_is_refused(tmp_path: Path, text: str, words: str):
    (tmp_path / "run").write_text(text)
    with pytest.raises(UserError, match=words):
        read_run_header(tmp_path / "run")


def test_a_manifest_becomes_a_header_of_primad_fields():
    config = {"collection": "my-data", "split": "test", "k": 10, "out": "x", "where": None}
    manifest = {"config": config, "stage": "rerank", "version": "1", "commit": "abc", "job": "j", "started": "now"}
    found = header_of(manifest, tag="t", made_by=[{"stage": "search", "model": "sha256:1"}])
    assert found["method"]["retrieval"] == [{"name": "search", "model": "sha256:1"}, {"name": "rerank"}]
    assert found["method"]["settings"] == {"collection": "my-data", "split": "test", "k": "10"}
    assert found["data"]["test collection"] == {"name": "my-data", "split": "test"}
    assert found["implementation"]["source"]["commit"] == "abc"
    assert {"platform", "implementation", "method", "data"} <= found.keys()
