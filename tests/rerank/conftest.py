"""A run of candidates, and oracles in place of language models."""

from pathlib import Path

import pytest
from oracle import Oracles, put_in_place, write_candidates
from tiny import Tiny


@pytest.fixture
def oracles(monkeypatch: pytest.MonkeyPatch) -> Oracles:
    """Oracles that answer wherever a language model would."""
    return put_in_place(monkeypatch)


@pytest.fixture
def command(tiny: Tiny, tmp_path: Path) -> list[str]:
    """The command without method and model; it writes out.trec."""
    run = write_candidates(tmp_path)
    return ["rerank", "--run", str(run), "--collection", str(tiny.collection), "--out", str(tmp_path / "out.trec")]
