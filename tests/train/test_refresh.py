import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from named import load_retriever
from tiny import DOCUMENTS, Tiny

from shortlist import train
from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.data.groups import write_groups
from shortlist.errors import UserError
from shortlist.models.run import embed_documents, embed_queries
from shortlist.records import Document, Group, Query
from shortlist.train import loop
from shortlist.train.build import collect_parts
from shortlist.train.mixture import Mixture
from shortlist.train.refresh import NEGATIVES, Refresh, read_renewed, renew_negatives, renewed_json
from shortlist.train.resume import checkpoints

ALIKE = {"twin": "d0"}
"""A document and another with its text, whose scores differ by rounding alone."""

HARD = Refresh(every=2, depth=3, most_docs=None, seed=0)


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """The tiny collection's documents, one of them twice, and queries of which two have equal texts."""
    folder = tmp_path / "collection"
    write_corpus(folder / "corpus.jsonl", [*DOCUMENTS, Document("twin", DOCUMENTS[0].text)])
    write_queries(
        folder / "queries.jsonl", [Query(f"q{i}", f"which has the {'apple' if i in (0, 3) else i}") for i in range(4)]
    )
    write_qrels(folder / "qrels" / "train.tsv", {f"q{i}": {f"d{i}": 1} for i in range(4)})
    return folder


def settings(tiny: Tiny, out: Path, collection: Path, **change) -> train.Config:
    values = {"kind": "retriever", "backbone": str(tiny.retriever), "collection": str(collection), "out": out}
    values |= {"batch_size": 2, "steps": 7, "learning_rate": 0.01, "warmup_steps": 2, "refresh_steps": 2}
    return train.Config(**(values | {"refresh_depth": 3} | change))


def renewed(tiny: Tiny, config: train.Config, refresh: Refresh = HARD, steps: range = range(2, 4)) -> Any:
    model = load_retriever(str(tiny.retriever))
    return renew_negatives(refresh, model, Mixture(config, collect_parts(config)), steps, token_budget=64, bf16=False)


def test_negatives_are_the_models_best_documents_that_answer_nothing(tiny: Tiny, collection: Path, tmp_path: Path):
    config = settings(tiny, tmp_path / "m", collection)
    [part] = parts = collect_parts(config)
    [found] = renewed(tiny, config)
    assert sorted(found) == Mixture(config, parts).groups_of_each(range(2, 4))[0] == [0, 1, 2, 3]
    model, documents = load_retriever(str(tiny.retriever)), [*DOCUMENTS, Document("twin", DOCUMENTS[0].text)]
    queries = [part.source.queries[group.query_id] for group in part.source.groups]
    scores = embed_queries(model, queries) @ embed_documents(model, documents).T
    for number, negatives in found.items():
        answers = {"d0", "d3", "twin"} if number in (0, 3) else {f"d{number}"}
        ranked = sorted(range(13), key=lambda column: -scores[number][column])
        best = [documents[column].doc_id for column in ranked if documents[column].doc_id not in answers]
        assert {ALIKE.get(doc_id, doc_id) for doc_id in negatives} == {ALIKE.get(doc_id, doc_id) for doc_id in best[:3]}


def test_documents_may_be_a_sample_that_differs_each_time(tiny: Tiny, collection: Path, tmp_path: Path):
    config, sampled = settings(tiny, tmp_path / "m", collection), HARD._replace(most_docs=4, depth=9)
    drawn = {steps: renewed(tiny, config, sampled, range(steps, steps + 2)) for steps in (2, 4)}
    for found in drawn.values():
        assert len({doc_id for negatives in found[0].values() for doc_id in negatives}) <= 4
    assert drawn[2] == renewed(tiny, config, sampled)
    assert {d for ids in drawn[2][0].values() for d in ids} != {d for ids in drawn[4][0].values() for d in ids}


def test_new_negatives_stand_in_place_of_a_groups_own_and_have_no_scores(tiny: Tiny, collection: Path, tmp_path: Path):
    own = [Group(f"q{i}", (f"d{i}",), ("d9", "d10"), (3.0, 2.0, 1.0), (2, 0, 0)) for i in range(4)]
    write_groups(tmp_path / "g.jsonl", own)
    config = settings(tiny, tmp_path / "m", collection, groups=str(tmp_path / "g.jsonl"))
    mixture = Mixture(config, collect_parts(config))
    [(_, batch)] = mixture.batches(range(1), [{0: ("d5",), 1: ("d5",), 2: ("d5",)}])
    for query, group, scores, grades in zip(batch.queries, batch.documents, batch.scores, batch.grades, strict=True):
        given = query.query_id == "q3"
        assert [document.doc_id for document in group[1:]] == (["d9", "d10"] if given else ["d5"])
        assert (scores, grades) == (((3.0, 2.0, 1.0), (2, 0, 0)) if given else ((), (2, 0)))


@pytest.mark.slow
def test_a_training_that_stops_between_refreshes_goes_on_to_the_same_bytes(
    tiny: Tiny, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    change = {"checkpoint_steps": 3, "refresh_steps": 2}
    train.run(settings(tiny, tmp_path / "whole", collection, **change))
    told = re.findall(r"step (\d): (\d) groups have new negatives", capsys.readouterr().err)
    assert told == [("2", "4"), ("4", "4"), ("6", "2")]
    backward, count = loop.backward, iter(range(1, 100))

    def interrupted(*args, **options) -> Any:
        if next(count) == 4:
            raise KeyboardInterrupt
        return backward(*args, **options)

    broken = settings(tiny, tmp_path / "broken", collection, **change)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "backward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.run(broken)
    [checkpoint] = checkpoints(tmp_path / "broken")
    assert checkpoint.name == "step-000003"
    assert sorted(read_renewed(checkpoint)[0]) == [0, 1, 2, 3]
    train.run(broken)
    one, other = (tmp_path / name / "model.safetensors" for name in ("broken", "whole"))
    assert one.read_bytes() == other.read_bytes()
    train.run(settings(tiny, tmp_path / "never", collection, refresh_steps=None, refresh_depth=200))
    assert (tmp_path / "never" / "model.safetensors").read_bytes() != one.read_bytes()


def test_negatives_come_back_from_a_checkpoint_as_they_were(tmp_path: Path):
    found = [{3: ("d1", "d2"), 10: ("d7",)}, {}]
    (tmp_path / NEGATIVES).write_text(renewed_json(found))
    assert read_renewed(tmp_path) == found
    assert json.loads(renewed_json(found)) == [{"3": ["d1", "d2"], "10": ["d7"]}, {}]
    (tmp_path / NEGATIVES).unlink()
    with pytest.raises(UserError, match=r"negatives.json: is missing"):
        read_renewed(tmp_path)


def test_equal_scores_are_in_corpus_order(
    tiny: Tiny, collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = settings(tiny, tmp_path / "m", collection)
    monkeypatch.setattr(
        "shortlist.train.refresh.compute_outputs",
        lambda model, token_ids, **_: train.steps.Rows(torch.ones(len(token_ids), 2)),
    )
    monkeypatch.setattr("shortlist.train.refresh.SEARCHED_AT_ONCE", 2)
    [found] = renewed(tiny, config)
    assert set(found[1]) == {"d0", "d2", "d3"}


def test_a_loss_that_follows_a_teacher_cannot_follow_new_negatives(tiny: Tiny, collection: Path, tmp_path: Path):
    write_groups(tmp_path / "g.jsonl", [Group("q0", ("d0",), ("d1",), (2.0, 1.0))])
    config = settings(tiny, tmp_path / "m", collection, groups=str(tmp_path / "g.jsonl"), loss=("kl",))
    with pytest.raises(UserError, match=r"--refresh-steps: .* no teacher has scored, and --loss kl follows one"):
        collect_parts(config)
