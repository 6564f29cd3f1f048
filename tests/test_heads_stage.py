"""The command `heads`: heads that find relevant documents, on judged queries."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DOCUMENTS, QUERIES, Tiny, write_speaker

from shortlist.cli import main
from shortlist.data.manifest import read_manifest
from shortlist.data.runs import read_run, write_run
from shortlist.heads import METHODS, Judged, compare_heads
from shortlist.records import Hit
from shortlist.rerankers.kinds import load_reranker


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speaker(tmp_path_factory.mktemp("speaker") / "model", num_hidden_layers=2, num_key_value_heads=1)


def found(tiny: Tiny, speaker: Path, out: Path, *flags: Any) -> dict[str, Any]:
    paths = ["--model", str(speaker), "--collection", str(tiny.collection), "--split", "test", "--out", str(out)]
    assert main(["heads", *paths, "--queries", "3", "--depth", "4", *map(str, flags)]) == 0
    return json.loads(out.read_text("utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_heads_are_chosen_by_their_scores_and_read_by_the_reranker(
    method: str, tiny: Tiny, speaker: Path, tmp_path: Path
):
    heads = found(tiny, speaker, tmp_path / "heads.json", "--method", method, "--count", 2)
    assert len(heads["scores"]) == 4
    assert [heads["scores"][name] for name in heads["heads"]] == sorted(heads["scores"].values(), reverse=True)[:2]
    assert (heads["method"], heads["queries"]) == (method, 3)
    manifest = read_manifest(tmp_path / "heads.json")
    assert manifest is not None
    assert manifest["results"]["heads"] == heads["heads"]
    assert manifest["made_from"]["model"] == heads["model"]
    write_run(tmp_path / "run.trec", {"q0": [Hit(f"d{i}", 9.0 - i) for i in range(4)]})
    paths = ["--run", str(tmp_path / "run.trec"), "--collection", str(tiny.collection), "--model", str(speaker)]
    how = ["--method", "attention", "--heads", str(tmp_path / "heads.json"), "--signal", heads["signal"]]
    assert main(["rerank", *paths, *how, "--out", str(tmp_path / "out.trec")]) == 0
    reranker: Any = load_reranker(
        "attention", model=str(speaker), heads=",".join(heads["heads"]), signal=heads["signal"]
    )
    scores = reranker.score(QUERIES[0], DOCUMENTS[:4])
    order = [f"d{i}" for i in sorted(range(4), key=lambda i: -scores[i])]
    assert [hit.doc_id for hit in read_run(tmp_path / "out.trec")["q0"]] == order


def test_a_head_that_looks_at_relevant_documents_wins():
    class Planted:
        """The second of three heads gives the relevant document all."""

        signal, calibrated = "mass", False

        def __call__(self, query: Any, documents: Any) -> Any:
            spans = [slice(i, i + 1) for i in range(len(documents))]
            values = torch.full((3, len(documents)), 0.1)
            values[1, int(query.query_id[1:])] = 0.8
            return values, spans, 0

    lists = [Judged(query, DOCUMENTS[:4], [int(i == n) for i in range(4)], [1]) for n, query in enumerate(QUERIES[:4])]

    def mass(scores: torch.Tensor, grades: torch.Tensor, judged: torch.Tensor) -> torch.Tensor:
        return scores[:, grades > 0].sum(1)

    assert compare_heads(lists, Planted(), mass).tolist() == pytest.approx([0.1, 0.8, 0.1])  # type: ignore[arg-type]


@pytest.mark.slow
def test_what_cannot_be_judged_is_refused(
    tiny: Tiny, speaker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    paths = ["heads", "--model", str(speaker), "--collection", str(tiny.collection), "--split", "test"]
    paths += ["--out", str(tmp_path / "heads.json")]
    write_run(tmp_path / "run.trec", {"q0": [Hit("d0", 1.0)]})
    assert main([*paths, "--run", str(tmp_path / "run.trec")]) == 1
    assert "has candidates that are relevant and others that are not" in capsys.readouterr().err
    assert main([*paths, "--depth", "1"]) == 1
    assert "--depth is 1; expected at least 2" in capsys.readouterr().err
    assert main([*paths, "--temperature", "0"]) == 1
    assert "--temperature is 0; expected more than 0" in capsys.readouterr().err
