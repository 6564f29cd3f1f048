from dataclasses import replace
from pathlib import Path

import pytest
import torch
from named import late_to_train, load_reranker, load_retriever, reranker_to_train, retriever_to_train
from tiny import DOCUMENTS, QUERIES, Tiny, shaken

from shortlist import LateRetriever, average
from shortlist.data.manifest import read_manifest
from shortlist.errors import UserError
from shortlist.models.adapter_settings import make_adapter
from shortlist.models.adapters import add_adapter
from shortlist.models.save import save_model


@pytest.fixture(scope="module")
def models(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A retriever that was trained on, its adapter, one of another length, and a reranker that was trained on."""
    folder = tmp_path_factory.mktemp("average")
    save_model(shaken(retriever_to_train(str(tiny.retriever))), folder / "shaken")
    model = retriever_to_train(str(tiny.retriever))
    lora = add_adapter(model.backbone, make_adapter("lora", r=2, alpha=4))
    save_model(shaken(model), folder / "adapter", adapter=lora, base=str(tiny.retriever))
    longer = retriever_to_train(str(tiny.retriever), adjust=lambda contract: contract.with_lengths(query=7))
    save_model(longer, folder / "longer")
    save_model(shaken(reranker_to_train(str(tiny.reranker), seed=0)), folder / "reranker")
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_retriever(str(folder)).state_dict()


def settings(*models: Path, **change) -> average.Config:
    return average.Config(models=tuple(map(str, models)), **change)


def test_weights_are_averaged_and_the_inputs_are_recorded(models: Path, tiny: Tiny, tmp_path: Path):
    config = settings(tiny.retriever, models / "shaken", weights=(1.0, 3.0), out=tmp_path / "out")
    average.run(config)
    first, second = weights(tiny.retriever), weights(models / "shaken")
    expected = {name: 0.25 * first[name] + 0.75 * second[name] for name in first}
    torch.testing.assert_close(weights(tmp_path / "out"), expected)
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert manifest["results"]["shares"] == [0.25, 0.75]
    assert len(set(manifest["made_from"]["models"])) == 2


def test_adapters_are_averaged_as_whole_models(
    models: Path, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    average.run(settings(tiny.retriever, models / "adapter", out=tmp_path / "out"))
    assert "adapters are merged into their bases first" in capsys.readouterr().err
    first, second = weights(tiny.retriever), weights(models / "adapter")
    torch.testing.assert_close(weights(tmp_path / "out"), {n: (first[n] + second[n]) / 2 for n in first})


def test_greedy_choice_is_at_least_as_good_as_the_best_model(models: Path, tiny: Tiny, tmp_path: Path):
    chosen = {"greedy": True, "collection": str(tiny.collection), "split": "test", "measure": "RR@10"}
    average.run(settings(tiny.retriever, models / "shaken", models / "adapter", out=tmp_path / "out", **chosen))
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    results = manifest["results"]
    assert results["RR@10"] >= max(results["scores"])
    assert len(results["averaged"]) == len(results["shares"]) >= 1


def test_late_models_are_averaged_and_compared_by_their_best_matches(tiny: Tiny, tmp_path: Path):
    for name, change in (("one", lambda model: model), ("other", shaken)):
        save_model(change(late_to_train(str(tiny.bert), dim=8)), tmp_path / name)
    chosen = {"greedy": True, "collection": str(tiny.collection), "split": "test", "measure": "RR@10"}
    average.run(settings(tmp_path / "one", tmp_path / "other", out=tmp_path / "out", **chosen))
    results = (read_manifest(tmp_path / "out") or {})["results"]
    retriever = LateRetriever.load(str(tmp_path / "one"))
    scores = [retriever.score(query, DOCUMENTS) for query in QUERIES]
    ranks = [1 + int((row > row[place]).sum()) for place, row in enumerate(scores)]
    expected = sum(1 / rank for rank in ranks if rank <= 10) / len(ranks)
    assert results["scores"][0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_rerankers_are_averaged_with_their_heads(models: Path, tiny: Tiny, tmp_path: Path):
    chosen = {"greedy": True, "collection": str(tiny.collection), "split": "test"}
    average.run(settings(tiny.reranker, models / "reranker", out=tmp_path / "out"))
    heads = [load_reranker(str(folder)).head.data for folder in (tiny.reranker, models / "reranker", tmp_path / "out")]
    torch.testing.assert_close(heads[2], (heads[0] + heads[1]) / 2)
    average.run(settings(tiny.reranker, models / "reranker", out=tmp_path / "greedy", **chosen))


def test_models_that_differ_are_refused_by_their_first_difference(models: Path, tiny: Tiny, tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="longer: `query_length` of the contract is 7 here, and 32 in"):
        average.run(settings(tiny.retriever, models / "longer", out=out))
    with pytest.raises(UserError, match="is a reranker; a retriever is wanted"):
        average.run(settings(tiny.retriever, tiny.reranker, out=out))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ("a",)}, "1 model is named"),
        ({"weights": (1.0,)}, "--weights has 1 numbers for 2 models"),
        ({"weights": (1.0, -1.0)}, "expected numbers of at least 0"),
        ({"weights": (0.0, 0.0)}, "expected numbers of at least 0"),
        ({"greedy": True}, "name both, or neither"),
        ({"greedy": True, "collection": "c", "weights": (1.0, 1.0)}, "leave out one of the two"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(change: dict, message: str, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        average.check(replace(average.Config(models=("a", "b"), out=tmp_path), **change))
