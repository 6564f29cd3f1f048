from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from named import load_retriever
from tiny import QUERIES, Tiny

from shortlist import train
from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.data.groups import write_groups
from shortlist.data.manifest import read_manifest
from shortlist.data.runs import write_run
from shortlist.errors import UserError
from shortlist.math import losses
from shortlist.math.sampling import draw_sources, mixing_shares
from shortlist.recipe import plan
from shortlist.records import Document, Group, Hit, Query
from shortlist.settings.sources import parse_sources
from shortlist.settings.train_job import has_run
from shortlist.train import loop
from shortlist.train.build import collect_parts
from shortlist.train.mixture import Mixture, inputs_of
from shortlist.train.resume import checkpoints


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A collection whose ids mean other things than the tiny collection's."""
    folder = tmp_path / "other"
    write_corpus(folder / "corpus.jsonl", [Document(f"d{i}", f"passage of the {i}") for i in range(4)])
    write_queries(folder / "queries.jsonl", [Query(f"q{i}", f"which has {i}") for i in range(4)])
    write_qrels(folder / "qrels" / "train.tsv", {f"q{i}": {f"d{3 - i}": 1} for i in range(4)})
    return folder


def written(tmp_path: Path, sources: dict[str, Any]) -> str:
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(sources, sort_keys=False))
    return str(tmp_path / "sources.yaml")


def settings(tiny: Tiny, out: Path, sources: str | None, **change) -> train.Config:
    values = {"kind": "retriever", "backbone": str(tiny.llama), "sources": sources, "out": out, "batch_size": 2}
    return train.Config(**(values | {"steps": 3, "learning_rate": 0.01, "warmup_steps": 2} | change))


def two(tiny: Tiny, other: Path, **change) -> dict[str, Any]:
    return {"first": {"collection": str(tiny.collection)}, "second": {"collection": str(other), **change}}


def mixture(config: train.Config) -> Mixture:
    return Mixture(config, collect_parts(config))


def test_shares_are_by_size_at_1_and_all_alike_when_hot():
    assert mixing_shares([300.0, 100.0], temperature=1.0).tolist() == pytest.approx([0.75, 0.25])
    assert mixing_shares([9.0, 1.0], temperature=2.0).tolist() == pytest.approx([0.75, 0.25])
    assert mixing_shares([1e9, 1.0], temperature=1e9).tolist() == pytest.approx([0.5, 0.5])
    assert mixing_shares([1e9, 1.0], temperature=1e-3).tolist() == [1, 0]  # and no overflow


def test_sources_are_drawn_by_their_shares_and_the_first_steps_stay_the_same():
    shares = mixing_shares([300.0, 100.0], temperature=1.0)
    many = draw_sources(shares, 4000, seed=0)
    assert np.bincount(many)[0] == pytest.approx(3000, abs=110)  # four deviations
    assert (draw_sources(shares, 50, seed=0) == many[:50]).all()
    assert (draw_sources(shares, 50, seed=1) != many[:50]).any()
    assert not draw_sources(np.ones(1), 9, seed=0).any()


def test_each_batch_is_of_one_source_whose_ids_are_its_own(tiny: Tiny, other: Path, tmp_path: Path):
    mixed = mixture(settings(tiny, tmp_path / "m", written(tmp_path, two(tiny, other)), steps=12))
    texts = [{query.query_id: query.text for query in part.source.queries.values()} for part in mixed.parts]
    documents = [{d.doc_id: d.text for d in part.collection.corpus()} for part in mixed.parts]
    seen = list(mixed.batches(range(12)))
    assert {number for number, _ in seen} == {0, 1}
    for number, batch in seen:
        assert all(texts[number][query.query_id] == query.text for query in batch.queries)
        assert all(documents[number][d.doc_id] == d.text for group in batch.documents for d in group)
    assert [number for number, _ in seen] == mixed.turns.tolist()
    for number in (0, 1):  # a source goes through all of its groups before one comes again
        asked = [query.query_id for turn, batch in seen if turn == number for query in batch.queries]
        size = len(mixed.parts[number].source.groups)
        assert len(set(asked[:size])) == min(size, len(asked))
    for step in (1, 5, 11):
        assert list(mixed.batches(range(step, 12))) == seen[step:]


def test_an_epoch_has_the_batches_of_all_sources(tiny: Tiny, other: Path, tmp_path: Path):
    sources = written(tmp_path, two(tiny, other, weight=5.0))
    assert mixture(settings(tiny, tmp_path / "m", sources, steps=None, epochs=3)).steps == 3 * (4 + 2)
    assert mixture(settings(tiny, tmp_path / "m", sources)).shares.tolist() == pytest.approx([8 / 28, 20 / 28])
    hot = mixture(settings(tiny, tmp_path / "m", sources, mix_temperature=1e6))
    assert hot.shares.tolist() == pytest.approx([0.5, 0.5], abs=1e-5)


def test_what_a_source_says_stands_in_place_of_the_flags(tiny: Tiny, other: Path, tmp_path: Path):
    write_groups(tmp_path / "g.jsonl", [Group("q0", ("d3",), ("d1", "d2"), (1.0, 0.5, 0.0))])
    said = two(tiny, other, groups=str(tmp_path / "g.jsonl"), loss=["infonce=0.5", "kl=0.5"], negatives=1)
    first, second = collect_parts(settings(tiny, tmp_path / "m", written(tmp_path, said), negatives=3))
    assert (first.config.negatives, first.config.loss) == (3, ("infonce",))
    assert (second.config.negatives, second.config.loss) == (1, ("infonce=0.5", "kl=0.5"))
    assert len(second.source.groups) == 1


def test_a_source_has_prompts_of_its_own(tiny: Tiny, other: Path, tmp_path: Path):
    said = two(tiny, other, queries_prompt="which {query}: ", documents_prompt="passage ")
    first, second = collect_parts(settings(tiny, tmp_path / "m", written(tmp_path, said)))
    inputs = load_retriever(str(tiny.retriever)).inputs
    query, document = QUERIES[0], Document("d", "the apple", title="a boat")
    assert inputs_of(first, inputs) is inputs
    own = inputs_of(second, inputs)
    longer = query._replace(text="which {query}: " + query.text)
    assert own.query_ids([query]) == inputs.query_ids([longer])
    for given in (document, document._replace(title="")):
        field = "title" if given.title else "text"
        prompted = given._replace(**{field: "passage " + getattr(given, field)})
        assert own.document_ids([given]) == inputs.document_ids([prompted])


@pytest.mark.slow
def test_training_on_two_sources_stops_and_goes_on_to_the_same_bytes(
    tiny: Tiny, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = {"sources": written(tmp_path, two(tiny, other)), "steps": 4, "checkpoint_steps": 2}
    whole = settings(tiny, tmp_path / "whole", **config)
    train.run(whole)
    stop_in_step(4, monkeypatch, settings(tiny, tmp_path / "broken", **config))
    assert [path.name for path in checkpoints(tmp_path / "broken")] == ["step-000002"]
    train.run(settings(tiny, tmp_path / "broken", **config))
    one, both = (tmp_path / name / "model.safetensors" for name in ("broken", "whole"))
    assert one.read_bytes() == both.read_bytes()
    manifest = read_manifest(tmp_path / "whole")
    assert manifest
    results = manifest["results"]
    assert results["num_groups"] == 12
    assert results["sources"]["first"]["steps"] + results["sources"]["second"]["steps"] == 4
    assert results["sources"]["second"]["losses"]["infonce"]["weight"] == 1.0
    assert has_run(whole)
    write_qrels(other / "qrels" / "train.tsv", {"q0": {"d0": 1}})
    assert not has_run(whole)


def stop_in_step(step: int, monkeypatch: pytest.MonkeyPatch, config: train.Config) -> None:
    """Train until Ctrl-C is pressed in that step."""
    backward, count = loop.backward, iter(range(1, 100))

    def interrupted(*args, **options) -> Any:
        if next(count) == step:
            raise KeyboardInterrupt
        return backward(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "backward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.run(config)


def test_lists_of_a_run_teach_where_no_positive_is_needed(
    tiny: Tiny, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_run(tmp_path / "run.trec", {"q9": [Hit(f"d{i}", -float(i)) for i in range(5)]})
    given: list[Any] = []

    def anchor(ranking):
        given.append(ranking)
        return ranking.scores.square().mean()

    said = two(tiny, other)
    said["lists"] = {
        "collection": str(tiny.collection),
        "split": "train",
        "run": str(tmp_path / "run.trec"),
        "depth": 3,
    }
    said["lists"] |= {"weight": 1e6}
    with pytest.raises(UserError, match=r"--loss infonce: 1 of 1 groups of source 'lists' .* no relevant document"):
        collect_parts(settings(tiny, tmp_path / "m", written(tmp_path, said)))
    monkeypatch.setitem(losses.LOSSES, "anchor", anchor)
    said["lists"]["loss"] = "anchor"
    train.run(settings(tiny, tmp_path / "m", written(tmp_path, said), steps=1))
    [ranking] = given
    assert ranking.relevance.tolist() == [[0.0, 0.0, 0.0]]
    assert ranking.keep.all()


@pytest.mark.slow
def test_a_dry_run_speaks_of_every_source(tiny: Tiny, other: Path, tmp_path: Path, capsys):
    train.run(settings(tiny, tmp_path / "m", written(tmp_path, two(tiny, other)), steps=9, dry_run=True))
    told = capsys.readouterr().out
    assert "source first: " in told
    assert "source second: " in told
    assert "of 9 steps" in told


def test_the_measure_is_on_the_first_sources_collection_or_the_one_named(tiny: Tiny, other: Path, tmp_path: Path):
    write_qrels(other / "qrels" / "dev.tsv", {"q0": {"d3": 1}})
    sources = written(tmp_path, two(tiny, other))
    config = settings(tiny, tmp_path / "m", sources, heldout_split="dev", heldout_collection=str(other))
    parts = collect_parts(config)
    assert train.heldout_collection(config, parts).name == str(other)
    named = settings(tiny, tmp_path / "m", sources, heldout_split="test")
    assert train.heldout_collection(named, parts).name == str(tiny.collection)


def test_sources_may_stand_in_a_recipes_step(tiny: Tiny, other: Path, tmp_path: Path):
    step = {"stage": "train", "kind": "retriever", "backbone": "b", "sources": {"a": {"collection": "$data"}}}
    [stage] = plan({"settings": {"data": str(other)}, "steps": {"m": step}}, tmp_path, where="recipe")
    assert parse_sources(stage.config.sources)["a"].collection == str(other)


BAD = [
    ({}, "sources.yaml: names no source"),
    ({"a": "folder"}, "source 'a': holds 'folder'; expected settings"),
    ({"a": {"colection": "x"}}, "source 'a': unknown setting 'colection': perhaps 'collection'"),
    ({"a": {"groups": "x"}}, "source 'a': .*collection"),
    ({"a": {"collection": "x", "weight": 0}}, "source 'a': weight is 0.0; expected more than 0"),
    ({"a": {"collection": "x", "weight": "lots"}}, "source 'a': .*weight"),
    ({"a": {"collection": "x", "negatives": -1}}, "source 'a': negatives is -1; expected at least 0"),
    ({"a": {"collection": "x", "run": "nowhere"}}, "source 'a': run nowhere: no such file"),
    ({"a": {"collection": "x"}, "b": {"collection": "./x"}}, "sources 'a' and 'b' have the same groups"),
    ({"a": {"collection": "x", "groups": "g", "run": "r"}}, "source 'a': has `groups` and `run`"),
]


@pytest.mark.parametrize(("sources", "message"), BAD)
def test_sources_that_do_not_fit_are_refused_in_one_line(tmp_path: Path, monkeypatch, sources: dict, message: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match=message) as error:
        parse_sources(written(tmp_path, sources))
    assert "\n" not in str(error.value)


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path):
    (tmp_path / "s.yaml").write_text("a: {collection: x}\na: {collection: y}\n")
    with pytest.raises(UserError, match=r"has 'a' twice"):
        parse_sources(str(tmp_path / "s.yaml"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"collection": "x"}, "--collection: each of --sources names its own"),
        ({"groups": "x"}, "--groups: each of --sources names its own"),
        ({"mix_temperature": 0.0}, "--mix-temperature is 0.0; expected more than 0"),
        ({"sources": None}, "--collection: names no collection"),
        ({"sources": None, "collection": "x", "mix_temperature": 2.0}, "--mix-temperature: says how --sources"),
        ({"heldout_collection": "x"}, "--heldout-collection: .* add --heldout-split"),
        ({"refresh_docs": 9}, "--refresh-docs: .* add --refresh-steps"),
        ({"refresh_steps": 2, "kind": "reranker"}, "--refresh-steps: a reranker has no vectors"),
        ({"refresh_steps": 2, "negatives": 0}, "--refresh-steps: finds negatives, and --negatives is 0"),
    ],
)
def test_flags_that_do_not_fit_sources_are_refused(tiny: Tiny, other: Path, tmp_path: Path, change, message: str):
    config = settings(tiny, tmp_path / "m", written(tmp_path, two(tiny, other)))
    with pytest.raises(UserError, match=message):
        train.check_settings(train.Config(**(vars(config) | change)))


def test_a_source_without_its_teacher_is_named(tiny: Tiny, other: Path, tmp_path: Path):
    sources = written(tmp_path, two(tiny, other, loss="kl"))
    with pytest.raises(UserError, match=r"--loss kl: 4 of 4 groups of source 'second' \(.*\) have no teacher"):
        collect_parts(settings(tiny, tmp_path / "m", sources))
