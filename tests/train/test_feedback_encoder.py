"""Retrievers' query encoders that learn to read the first documents of a run (ANCE-PRF, LoL)."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import DOCUMENTS, QUERIES, Tiny
from torch import Tensor

from shortlist import Pipeline, encode, export, inspect, train
from shortlist.data.collections import open_collection
from shortlist.data.runs import write_run
from shortlist.errors import UserError
from shortlist.export.card import card
from shortlist.math.ranking import Ranking
from shortlist.models.folder import open_folder
from shortlist.models.outputs import Rows
from shortlist.models.retriever import Retriever
from shortlist.pipeline.spec import parse_description
from shortlist.records import Hit
from shortlist.settings.encode import Config as EncodeConfig
from shortlist.settings.feedback import FeedbackSettings
from shortlist.text.inputs import Inputs
from shortlist.train.examples import Batch
from shortlist.train.feedback import FirstDocuments, Revisions, compared, losses_of_queries
from shortlist.train.log import read_log
from shortlist.train.losses import parse_losses, total_loss
from shortlist.train.settings import check_settings

from .test_resume import interrupted, steps, weights

HEADS = {f"q{i}": [f"d{(i + place) % 12}" for place in range(6)] for i in range(12)}
BATCH = Batch(
    queries=QUERIES[:3],
    documents=[[DOCUMENTS[i], DOCUMENTS[i + 6]] for i in range(3)],
    positives=[frozenset({f"d{i}"}) for i in range(3)],
)
INFONCE = parse_losses(["infonce"], temperature=0.5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over the training's queries whose first documents are HEADS."""
    path = tmp_path_factory.mktemp("run") / "first.trec"
    write_run(path, {name: [Hit(doc_id, 9.0 - rank) for rank, doc_id in enumerate(ids)] for name, ids in HEADS.items()})
    return path


def settings(tiny: Tiny, out: Path, run: Path, **change: Any) -> train.Config:
    values: dict[str, Any] = {"kind": "retriever", "backbone": str(tiny.retriever), "out": out, "feedback": run}
    values |= {"collection": str(tiny.collection), "query_length": 64, "temperature": 0.1}
    values |= {"batch_size": 4, "steps": 4, "learning_rate": 0.01, "warmup_steps": 2, "checkpoint_steps": 2}
    return train.Config(**(values | change))


@pytest.fixture(scope="module")
def encoder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    """A feedback encoder, trained for a few steps."""
    out = tmp_path_factory.mktemp("encoder") / "model"
    train.run(settings(tiny, out, run, steps=12))
    return out


def inputs_of(encoder: Path) -> Inputs:
    folder = open_folder(str(encoder))
    return Inputs(folder.feedback_contract().form, folder.tokenizer)


def revisions_of(encoder: Path, tiny: Tiny, heads: FirstDocuments = HEADS, **change: Any) -> Revisions:
    chosen = FeedbackSettings(**({"docs": 3, "depth": 3, "versions": 1, "lol": 0.0} | change))
    return Revisions(inputs_of(encoder), heads, open_collection(str(tiny.collection)), chosen)


@pytest.fixture(scope="module")
def vectors(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documents' vectors, by the model that the encoder starts from."""
    out = tmp_path_factory.mktemp("stored") / "vectors"
    encode.run(EncodeConfig(model=str(tiny.retriever), collection=str(tiny.collection), out=out))
    return out


def described(tiny: Tiny, vectors: Path, **change: Any) -> dict[str, Any]:
    """A pipeline that searches the vectors twice."""
    dense = {"find": "dense", "model": str(tiny.retriever), "vectors": str(vectors), "depth": 12}
    again = {"feedback": "encoder", "of": "dense", "depth": 12, **change}
    return {"collection": str(tiny.collection), "steps": {"dense": dense, "again": again}}


def random_rows(count: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_the_encoder_learns_and_only_queries_have_a_gradient(encoder: Path, tiny: Tiny):
    losses = [record["loss"] for record in read_log(encoder)]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert weights(encoder) != weights(tiny.retriever)
    frozen = Inputs(open_folder(str(tiny.retriever)).contract("document").form, inputs_of(encoder).tokenizer)
    example = revisions_of(encoder, tiny).example(BATCH, INFONCE, frozen, rng=np.random.default_rng(0))
    shown = [document for group in BATCH.documents for document in group]
    assert example.guide_ids == frozen.document_ids(shown)  # as they are encoded without feedback
    queries, documents = random_rows(3).requires_grad_(), random_rows(6, seed=1)
    outcome = example.objective(Rows(queries), guide_rows=Rows(documents))
    torch.testing.assert_close(outcome.loss, F.cross_entropy(queries @ documents.T / 0.5, torch.tensor([0, 2, 4])))
    outcome.loss.backward()
    assert queries.grad is not None
    assert ((queries.grad * documents[[0, 2, 4]]).sum(1) < 0).all()  # towards the positives


def test_training_and_search_read_the_same_tokens_and_search_the_stored_vectors(
    encoder: Path, tiny: Tiny, vectors: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[list[int]] = []
    plain = Inputs.feedback_ids

    def watched(inputs: Inputs, *args: Any, **options: Any) -> list[list[int]]:
        seen.extend(found := plain(inputs, *args, **options))
        return found

    pipeline = Pipeline.open(parse_description(described(tiny, vectors, model=str(encoder)), where="here"))
    with monkeypatch.context() as patch:
        patch.setattr(Inputs, "feedback_ids", watched)
        trace = pipeline.trace(QUERIES[:3], 12)
    first, dense = trace.found["dense"].run, pipeline.steps[0].stage
    heads = {name: [hit.doc_id for hit in hits[:3]] for name, hits in first.items()}
    written, _ = revisions_of(encoder, tiny, heads).write(BATCH, rng=np.random.default_rng(0))
    assert seen[-3:] == written  # before them, opening looks whether the limit leaves room
    loaded = Retriever.load(str(encoder), contract=open_folder(str(encoder)).feedback_contract())
    texts = {document.doc_id: document for document in DOCUMENTS}
    pairs = [(query, [texts[doc_id] for doc_id in heads[query.query_id]]) for query in QUERIES[:3]]
    expected = dense.find_by_vectors(loaded.encode_with_feedback(pairs), 12)
    assert [trace.last.run[query.query_id] for query in QUERIES[:3]] == expected
    assert expected != [first[query.query_id] for query in QUERIES[:3]]


def test_the_step_says_once_what_it_cut(encoder: Path, tiny: Tiny, vectors: Path, capsys: pytest.CaptureFixture[str]):
    described_step = described(tiny, vectors, model=str(encoder), docs=2)
    pipeline = Pipeline.open(parse_description(described_step, where="here"))
    for _ in range(2):
        pipeline.trace([QUERIES[0]._replace(text="which colour " * 40)], 12)
    said = capsys.readouterr().err
    assert said.count("some queries were cut (said once)") == 1
    assert "have 64 tokens" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"docs": 4}, "trained with at most 3"),
        ({"docs": 0}, "docs 0; expected 1"),
        ({"model": "retriever"}, "reads queries alone"),
        ({"model": "other"}, "beside the vectors of another model"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(
    encoder: Path, tiny: Tiny, vectors: Path, tmp_path: Path, change: dict[str, Any], message: str
):
    chosen = {"model": str(encoder), **change}
    if chosen["model"] == "retriever":
        chosen["model"] = str(tiny.retriever)
    if chosen["model"] == "other":
        manifest = json.loads((encoder / "manifest.json").read_text())
        manifest["made_from"]["backbone"] = "sha256:0"
        shutil.copytree(encoder, tmp_path / "other")
        (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest))
        chosen["model"] = str(tmp_path / "other")
    with pytest.raises(UserError, match=message):
        Pipeline.open(parse_description(described(tiny, vectors, **chosen), where="here"))


def test_a_feedback_encoder_embeds_no_documents(encoder: Path):
    with pytest.raises(UserError, match=r"is a feedback encoder.*a retriever is wanted.*trained from"):
        Retriever.load(str(encoder))


def test_documents_are_the_first_in_order_or_drawn_from_more_of_them(encoder: Path, tiny: Tiny):
    rng = np.random.default_rng(0)
    [drawn] = revisions_of(encoder, tiny).draw(QUERIES, rng=rng)
    assert drawn == [HEADS[query.query_id][:3] for query in QUERIES]
    [drawn] = revisions_of(encoder, tiny, depth=6).draw(QUERIES, rng=rng)
    assert all(set(ids) < set(HEADS[query.query_id]) for ids, query in zip(drawn, QUERIES, strict=True))
    assert any(ids != HEADS[query.query_id][:3] for ids, query in zip(drawn, QUERIES, strict=True))
    [drawn] = revisions_of(encoder, tiny, {}).draw(QUERIES, rng=rng)
    assert drawn == [[]] * 12


def test_versions_of_a_query_have_different_numbers_of_documents_and_begin_alike(encoder: Path, tiny: Tiny):
    revisions, counts = revisions_of(encoder, tiny, docs=5, depth=6, versions=3, lol=1.0), set[int]()
    for step in range(4):
        drawn = revisions.draw(QUERIES, rng=np.random.default_rng([0, step]))
        assert drawn == revisions.draw(QUERIES, rng=np.random.default_rng([0, step]))
        for versions in zip(*drawn, strict=True):
            shorter, *_, longer = sorted(versions, key=len)
            assert longer[: len(shorter)] == shorter
            assert len(set(map(len, versions))) == 3
            counts |= set(map(len, versions))
    assert counts == set(range(6))


def test_the_loss_of_versions_is_infonce_and_lol_written_out(encoder: Path, tiny: Tiny):
    revisions = revisions_of(encoder, tiny, docs=5, depth=6, versions=2, lol=0.5)
    frozen, rng = inputs_of(encoder), np.random.default_rng(0)
    example = revisions.example(BATCH, INFONCE, frozen, rng=rng)
    _, depths = revisions.write(BATCH, rng=np.random.default_rng(0))
    queries, documents = random_rows(6, seed=2), random_rows(6, seed=1)
    outcome = example.objective(Rows(queries), guide_rows=Rows(documents))
    losses = F.cross_entropy(queries @ documents.T / 0.5, torch.tensor([0, 2, 4] * 2), reduction="none").view(2, 3)
    worse = [
        max(0.0, float(losses[a, q] - losses[b, q]))
        for q in range(3)
        for a, b in ((0, 1), (1, 0))
        if depths[a, q] > depths[b, q]
    ]
    assert len(worse) == 3
    assert sum(worse) > 0
    assert float(outcome.loss) == pytest.approx(float(losses.mean()) + 0.5 * sum(worse) / 3, rel=1e-5)
    assert outcome.measured == {"lol": pytest.approx(sum(worse) / 3, abs=1e-6)}


def test_losses_of_single_queries_have_the_mean_that_the_batch_has():
    draw = torch.Generator().manual_seed(0)
    relevance = torch.eye(4, 6)
    ranking = Ranking(torch.randn(4, 6, generator=draw), relevance, relevance + 0.1, relevance == relevance)
    for words in (["infonce", "kl=0.5"], ["listnet"], ["ranknet", "hinge=2"]):
        terms = parse_losses(words, temperature=1.0)
        torch.testing.assert_close(losses_of_queries(terms, ranking).mean(), total_loss(terms, ranking))
    depths = torch.tensor([[0, 1], [0, 1]])
    assert float(compared(terms, ranking, depths=depths, weight=9.0).loss) == pytest.approx(
        float(total_loss(terms, ranking))  # no version has more documents than another
    )


def test_an_interrupted_training_with_lol_is_resumed_to_the_bit(
    tiny: Tiny, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
):
    change: dict[str, Any] = {"lol": 1.0, "feedback_depth": 6}
    own = Path(shutil.copy(run, tmp_path / "own.trec"))
    whole, broken = (settings(tiny, tmp_path / name, own, **change) for name in ("whole", "broken"))
    train.run(whole)
    torch.manual_seed(99)
    interrupted(monkeypatch, broken, 3)
    train.run(broken)
    assert weights(broken.out) == weights(whole.out)
    assert steps(broken.out) == steps(whole.out)
    assert all("lol" in record for record in read_log(whole.out))
    form = open_folder(str(whole.out)).feedback_contract().form
    assert (form.feedback_docs, form.query_length) == (5, 64)
    write_run(own, {"q0": [Hit("d0", 1.0)]})  # another run in the same place
    with pytest.raises(UserError, match="another"):
        train.run(whole)


def test_a_dry_run_counts_the_tokens_of_queries_with_their_documents(
    tiny: Tiny, tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
):
    train.run(settings(tiny, tmp_path / "model", run, dry_run=True, query_length=20, lol=1.0))
    said = capsys.readouterr().out
    assert "8 queries" in said  # two versions of each
    assert "queries cut" in said
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "reranker"}, "is for a retriever"),
        ({"guide": "some"}, "leave out --guide"),
        ({"dims": (32, 16)}, "vectors stay as they are; leave out --dims"),
        ({"feedback_docs": 0}, "--feedback-docs is 0; expected at least 1"),
        ({"feedback_docs": 4, "feedback_depth": 3}, "--feedback-depth is 3.*with 4 documents"),
        ({"lol": -1.0}, "--lol is -1.0"),
        ({"lol_compare": 2}, "add it, or leave this out"),
        ({"lol": 1.0, "lol_compare": 6}, "expected at most 5"),
        ({"lol": 1.0, "loss": ("sinkhorn",)}, "--loss sinkhorn has none"),
        ({"feedback": None, "lol": 1.0}, "--lol: says how a run's documents are read; add --feedback RUN"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    tiny: Tiny, tmp_path: Path, run: Path, change: dict[str, Any], message: str
):
    with pytest.raises(UserError, match=message):
        check_settings(settings(tiny, tmp_path, run, **change))


@pytest.mark.parametrize(
    ("run_of", "change", "message"),
    [
        ({"x1": ["d0"]}, {}, "has documents for none of 8 queries"),
        ({"q1": ["d0", "gone"]}, {}, "1 documents that the collection lacks, such as 'gone'"),
        ({"q1": ["d0"]}, {"backbone": "llama"}, "has no contract.json"),
        ({"q1": ["d0"]}, {"query_length": 8}, "no room for a query and 3 documents; expected at least"),
    ],
)
def test_what_cannot_be_trained_with_a_run_is_refused(
    tiny: Tiny, tmp_path: Path, run_of: dict[str, list[str]], change: dict[str, Any], message: str
):
    path = tmp_path / "run.trec"
    write_run(path, {name: [Hit(doc_id, -place) for place, doc_id in enumerate(ids)] for name, ids in run_of.items()})
    change = change | ({"backbone": str(tiny.llama)} if "backbone" in change else {})
    with pytest.raises(UserError, match=message):
        train.run(settings(tiny, tmp_path / "model", path, **change))
    assert not (tmp_path / "model").exists()


def test_what_the_run_lacks_is_said_and_read_alone(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_run(tmp_path / "run.trec", {"q1": [Hit("gone", 2.0), Hit("d0", 1.0)]})
    change: dict[str, Any] = {"skip_missing": True, "dry_run": True}
    train.run(settings(tiny, tmp_path / "model", tmp_path / "run.trec", **change))
    assert "no documents for 7 of 8 queries" in capsys.readouterr().err


def test_an_encoder_is_described_and_no_other_tool_gets_it(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    inspect.run(inspect.Config(model=str(encoder)))
    assert 'feedback   <sep> "{title} {text}", behind the query, for each of at most 3' in capsys.readouterr().out
    folder = open_folder(str(encoder))
    assert "| each of 3 documents behind the query | `<sep>`" in card(folder, folder.feedback_contract())
    with pytest.raises(UserError, match="has no place for a query's documents"):
        export.run(export.Config(model=str(encoder), to="sentence-transformers", out=tmp_path / "out"))
