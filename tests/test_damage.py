"""Damaged files of every kind: what is read is what was written, or an error says that it is not."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from named import retriever_to_train
from tiny import DOCUMENTS, Tiny

from shortlist import index
from shortlist.config import NotInJob
from shortlist.data.groups import open_groups, write_groups
from shortlist.data.jobs import Job, JobSpec, start_job
from shortlist.data.runs import read_run, read_run_columns, write_run
from shortlist.data.scores import ScoreLog
from shortlist.data.stores.shards import finished_shards
from shortlist.data.stores.snapshots import document_keys, read_known, renew
from shortlist.data.stores.tokens import TokenReader, TokenWriter
from shortlist.data.stores.vectors import VectorReader, VectorWriter
from shortlist.errors import UserError
from shortlist.index.flat import FlatIndex
from shortlist.index.opening import open_index
from shortlist.index.protocols import Opening
from shortlist.math.maxsim import TokenVectors
from shortlist.models.folder import open_folder
from shortlist.models.retriever import Retriever
from shortlist.records import Group, Hit, Query
from shortlist.train.optimizers import new_optimizer
from shortlist.train.resume import State, load_checkpoint, save_checkpoint

VECTORS = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)
RUN = {"q0": [Hit("d1", 2.5), Hit("d2", 1.25)], "q1": [Hit("d3", 0.5)]}


@dataclass(frozen=True, kw_only=True)
class Config:
    out: NotInJob[Path]
    overwrite: NotInJob[bool] = False


def begin(out: Path, *, folder: bool) -> Job:
    return start_job(Config(out=out), JobSpec("mine", {}, folder=folder, writes=["*"]))


def write_store(folder: Path, dtype: str = "float32") -> None:
    for shard in range(3):
        documents = DOCUMENTS[4 * shard : 4 * shard + 4]
        ids = [document.doc_id for document in documents]
        rows = VECTORS[4 * shard : 4 * shard + 4]
        VectorWriter(folder, 8, dtype).write_shard(shard, ids, rows, document_keys(documents))


def make_store(folder: Path, dtype: str = "float32") -> None:
    job = begin(folder, folder=True)
    write_store(folder, dtype)
    job.finish()


def make_tokens(folder: Path) -> None:
    job = begin(folder, folder=True)
    for shard in range(3):
        documents = DOCUMENTS[4 * shard : 4 * shard + 4]
        rows = VECTORS[4 * shard : 4 * shard + 4] / np.linalg.norm(VECTORS[4 * shard : 4 * shard + 4], axis=1)[:, None]
        vectors = TokenVectors(rows, np.array([2, 0, 1, 1]))
        ids = [document.doc_id for document in documents]
        TokenWriter(folder, 8, "residual2").write_shard(shard, ids, vectors, document_keys(documents))
    renew(folder, DOCUMENTS[::-1])
    job.finish()


def read_tokens(folder: Path) -> Any:
    store = TokenReader(folder)
    found, known = store.take(np.arange(store.num_docs)), read_known(folder, finished_shards(folder))
    return found.values.tolist(), found.counts.tolist(), known.keys.tolist(), known.rows.tolist()


def read_store(folder: Path) -> Any:
    found = FlatIndex(VectorReader(folder)).find(VECTORS[:2], 12)
    known = read_known(folder, finished_shards(folder))
    return found, known.keys.tolist(), known.rows.tolist()


def make_updated(folder: Path) -> None:
    write_store(folder)
    renew(folder, DOCUMENTS[::-1])


def make_index(kind: str) -> Callable[[Path, Tiny], None]:
    def make(folder: Path, tiny: Tiny) -> None:
        store = folder.with_name("store")
        write_store(store)
        source = {"collection": str(tiny.collection)} if kind == "bm25" else {"vectors": store}
        index.run(index.Config(kind=kind, out=folder, **source))

    return make


def read_index(folder: Path) -> Any:
    opened = open_index(folder, Opening(vectors=folder.with_name("store")))
    if hasattr(opened, "search"):
        return opened.search([Query("q", document.text) for document in DOCUMENTS[:3]], 5)
    return opened.find(VECTORS[:2], 5)


def make_model(folder: Path, tiny: Tiny) -> None:
    job = begin(folder, folder=True)
    shutil.copytree(tiny.retriever, folder, dirs_exist_ok=True)
    job.finish()


def make_run(folder: Path, tiny: Tiny) -> None:
    job = begin(folder / "run.trec", folder=False)
    write_run(job.out, RUN, tag="t")
    job.finish()


def make_groups(folder: Path, tiny: Tiny) -> None:
    job = begin(folder / "groups.jsonl", folder=False)
    write_groups(job.out, [Group("q0", ("d1",), ("d2", "d3"), (3.0, 2.0, 1.0))])
    job.finish()


def make_scores(folder: Path, tiny: Tiny) -> None:
    write_run(folder / "candidates.trec", RUN, tag="t")
    log = ScoreLog(folder / "log.scores", {"model": "m"})
    log.append([("q0", "d1"), ("q0", "d2"), ("q1", "d3")], np.array([1.5, 2.5, 3.5]))
    log.close()


def read_scores(folder: Path) -> Any:
    log = ScoreLog(folder / "log.scores", {"model": "m"})
    scores = log.read(read_run_columns(folder / "candidates.trec"))
    log.close()
    return np.where(np.isnan(scores), [1.5, 2.5, 3.5], scores).tolist()  # an unknown one is computed again


def make_checkpoint(folder: Path, tiny: Tiny) -> None:
    model = retriever_to_train(str(tiny.llama), None)
    optimizer = new_optimizer(model, learning_rate=0.1)
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    save_checkpoint(folder, model, optimizer, State(step=1, token_budget=9), keep=1)


def checkpoint_reader(tiny: Tiny) -> Callable[[Path], Any]:
    model = retriever_to_train(str(tiny.llama), None)

    def read(folder: Path) -> Any:
        optimizer = new_optimizer(model, learning_rate=0.1)
        state = load_checkpoint(folder, model, optimizer)
        moments = [[value.tolist() for value in optimizer.state[p].values()] for p in model.parameters()]
        return state, [p.tolist() for p in model.parameters()], moments

    return read


KINDS: dict[str, tuple[Callable[[Path, Tiny], Any], Callable[[Path], Any], str]] = {
    "vectors": (lambda folder, tiny: make_store(folder), read_store, "*"),
    "int8": (lambda folder, tiny: make_store(folder, "int8"), read_store, "*"),
    "updated": (lambda folder, tiny: make_updated(folder), read_store, "*"),
    "tokens": (lambda folder, tiny: make_tokens(folder), read_tokens, "*"),
    "bm25": (make_index("bm25"), read_index, "*"),
    "narrow": (make_index("narrow"), read_index, "*"),
    "hnsw": (make_index("hnsw"), read_index, "*"),
    "ivf-flat": (make_index("ivf-flat"), read_index, "*"),
    "model": (
        make_model,
        lambda folder: Retriever.load(open_folder(str(folder))).encode_documents(DOCUMENTS[:2]).tolist(),
        "*",
    ),
    "run": (make_run, lambda folder: read_run(folder / "run.trec"), "run.trec"),
    "groups": (make_groups, lambda folder: open_groups(str(folder / "groups.jsonl")), "groups.jsonl"),
    "scores": (make_scores, read_scores, "log.scores"),
    "checkpoint": (make_checkpoint, lambda folder: None, "checkpoints/*/*"),
}
"""For each kind of output: how it is made, what reading it gives, and its files."""


def damages(content: bytes) -> Iterator[tuple[str, bytes | None]]:
    """Contents with a few bytes changed at the start, in the middle or at the end, cut short, or gone."""
    for place in (0, 9, len(content) // 2, max(0, len(content) - 9)):
        region = content[place : place + 4]
        for name, other in (("flip", bytes(byte ^ 1 for byte in region)), ("zero", bytes(len(region)))):
            yield f"{name} at {place}", content[:place] + other + content[place + len(region) :]
    yield "cut", content[:-1]
    yield "empty", b""
    yield "gone", None


def put(path: Path, content: bytes | None) -> None:
    """Put a file in the place of another, which stays as it is for who has it open."""
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused_or_changes_nothing(kind: str, tiny: Tiny, tmp_path: Path):
    make, read, pattern = KINDS[kind]
    folder = tmp_path / "out"
    if kind in ("run", "groups", "scores", "checkpoint"):
        folder.mkdir()
    make(folder, tiny)
    read = checkpoint_reader(tiny) if kind == "checkpoint" else read
    before = read(folder)
    paths = [path for path in sorted(folder.glob(pattern)) if path.is_file() and "manifest" not in path.name]
    assert paths
    wrong, refused = [], 0
    for path in paths:
        content = path.read_bytes()
        for name, damaged in damages(content):
            if damaged == content:
                continue
            put(path, damaged)
            try:
                if read(folder) != before:
                    wrong.append(f"{path.name}: {name}")
            except UserError:
                refused += 1
            put(path, content)
    assert wrong == []
    assert refused
    assert read(folder) == before
