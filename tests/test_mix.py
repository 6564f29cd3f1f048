import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import Tiny

from shortlist import mix
from shortlist.errors import UserError
from shortlist.math.projection import GroupGradients, concatenated
from shortlist.settings.sources import parse_sources

NAMES = ["a", "b", "c", "d", "e"]


def gradients(seed: int, num_groups: int = 400, dim: int = 16, *, noise: float = 1.0) -> GroupGradients:
    """Groups of a source, all of which pull from one direction of queries towards one of documents, with noise."""
    random = np.random.default_rng(seed)
    query, pull = random.standard_normal((2, dim))
    return GroupGradients(
        query + noise * random.standard_normal((num_groups, dim)),
        pull + noise * random.standard_normal((num_groups, dim)),
        np.zeros(num_groups),
    )


def part(whole: GroupGradients, count: int) -> GroupGradients:
    return GroupGradients(*(values[:count] for values in whole))


def test_a_target_that_is_a_blend_of_two_of_five_sources_has_these_two():
    sources = [gradients(seed) for seed in range(5)]
    fresh = [gradients(1), gradients(3)]  # the same pulls
    target = concatenated([part(fresh[0], 240), part(fresh[1], 160)])
    order = np.random.default_rng(0).permutation(400)
    mixed = mix.mix(sources, GroupGradients(*(values[order] for values in target)))
    assert set(np.argsort(-mixed.shares)[:2].tolist()) == {1, 3}
    assert mixed.shares[[1, 3]] == pytest.approx([0.6, 0.4], abs=0.08)
    assert mixed.shares[[0, 2, 4]].sum() < 0.05
    assert [step["penalty"] for step in mixed.path] == list(mix.PENALTIES)
    assert sum(mixed.path[0]["weights"]) == pytest.approx(0, abs=1e-9)


def test_a_source_of_few_noisy_groups_gets_the_weight_that_many_would_have():
    noisy = [gradients(seed, 60, noise=4.0) for seed in range(5)]
    target = concatenated([gradients(1, 4000), gradients(3, 4000)])
    order = np.random.default_rng(0).permutation(8000)
    mixed = mix.mix([*noisy[:3], gradients(3, 4000), noisy[4]], GroupGradients(*(part[order] for part in target)))
    assert 0.2 < mixed.shares[1] < mixed.shares[3] < 0.6  # with the lengths of means as they are: .07 and .91


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (0.99, "the sources say 1.0% of what the target does"),
        (0.0, "the target's gradient is mostly noise"),
        (0.5, None),
    ],
)
def test_a_mixture_that_is_noise_says_so(
    config: mix.Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: float,
    words: str | None,
):
    found = mix.Mixed(np.array([0.5, 0.5]), [{"penalty": 0.0, "weights": [1.0, 1.0], "error": error}])
    monkeypatch.setattr(mix, "mix", lambda *_: found)
    mix.run(config)
    told = capsys.readouterr().err
    assert words in told if words else "Bring more groups" not in told


def test_sources_that_point_away_from_the_target_have_no_share():
    source = gradients(0)
    away = GroupGradients(-source.queries, source.pulls, source.losses)
    assert mix.mix([source], away).shares.tolist() == [0]


@pytest.fixture
def config(tiny: Tiny, tmp_path: Path) -> mix.Config:
    train = {"collection": str(tiny.collection), "queries_prompt": "query: "}
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump({"some": train, "all": train | {"split": "test"}}))
    return mix.Config(
        sources=tmp_path / "sources.yaml",
        model=str(tiny.retriever),
        collection=str(tiny.collection),
        split="test",
        out=tmp_path / "mixed.yaml",
        temperature=0.1,
    )


def test_the_mixture_is_a_file_of_sources_that_train_reads(config: mix.Config, capsys: pytest.CaptureFixture[str]):
    mix.run(replace(config, json=True))
    results = json.loads(capsys.readouterr().out)
    assert sum(results["shares"].values()) == pytest.approx(1)
    assert results["groups"] == {"some": 8, "all": 12}
    mixed = parse_sources(str(config.out))
    assert {source.queries_prompt for source in mixed.values()} == {"query: "}
    groups = {name: results["groups"][name] * source.weight for name, source in mixed.items()}
    shares = {name: share / sum(groups.values()) for name, share in groups.items()}
    assert shares == pytest.approx({name: share for name, share in results["shares"].items() if share}, abs=1e-4)
    mix.run(config)
    assert capsys.readouterr().out.splitlines()[-1].startswith("mix: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"most": 1}, "--most is 1"), ({"temperature": 0.0}, "--temperature 0"), ({"most": 3}, "3 groups; expected 4")],
)
def test_what_cannot_be_mixed_is_refused(config: mix.Config, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        mix.run(replace(config, **change))


def test_a_source_that_is_a_run_is_refused(config: mix.Config, tmp_path: Path):
    (tmp_path / "run.trec").write_text("q1 Q0 d1 1 1.0 x\n")
    config.sources.write_text(yaml.safe_dump({"r": {"collection": "x", "run": str(tmp_path / "run.trec")}}))
    with pytest.raises(UserError, match="source 'r' is a run without positives"):
        mix.run(config)
