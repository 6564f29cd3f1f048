"""A run of candidates, and oracles in place of language models."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from oracle import Oracles, put_in_place, write_candidates
from tiny import Tiny


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let logs not wait until each answer is on the disk, which takes longer than all else here."""
    connect = sqlite3.connect

    def connected(*where: Any, **how: Any) -> sqlite3.Connection:
        file = connect(*where, **how)
        file.execute("pragma synchronous = off")
        return file

    monkeypatch.setattr(sqlite3, "connect", connected)


@pytest.fixture
def oracles(monkeypatch: pytest.MonkeyPatch) -> Oracles:
    """Oracles that answer wherever a language model would."""
    return put_in_place(monkeypatch)


@pytest.fixture
def command(tiny: Tiny, tmp_path: Path) -> list[str]:
    """The command without method and model; it writes out.trec."""
    run = write_candidates(tmp_path)
    return ["rerank", "--run", str(run), "--collection", str(tiny.collection), "--out", str(tmp_path / "out.trec")]
