import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

from shortlist import export, train
from shortlist.cli import main
from shortlist.errors import UserError
from shortlist.export import push
from shortlist.export.card import card
from shortlist.models.folder import open_folder

RESULTS = {"measures": ["nDCG@10", "RR@10"], "queries": 12, "rows": [{"name": "ours", "nDCG@10": 0.5, "RR@10": 0.25}]}


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A retriever that was trained for two steps, whose base says its licence."""
    folder = tmp_path_factory.mktemp("trained")
    options = {"collection": str(tiny.collection), "steps": 2, "batch_size": 2, "learning_rate": 0.001}
    train.run(train.Config(kind="retriever", backbone=str(tiny.llama), out=folder / "model", **options))
    return folder / "model"


def card_of(path: Path, **options: Any) -> str:
    folder = open_folder(str(path))
    return card(folder, folder.any_contract(), **options)


def front(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_a_card_says_what_the_model_was_made_from(trained: Path):
    text = card_of(trained, results=RESULTS)
    assert front(text)["pipeline_tag"] == "feature-extraction"
    assert front(text)["tags"] == ["shortlist", "retriever"]
    assert "fine-tuned from `llama`" in text
    assert "the split `train` of `collection`" in text
    assert "| learning rate | 0.001 |" in text
    assert "| loss | infonce |" in text
    assert '| query | `<bos>` `"query: {query}"` `<eos>` | 32 |' in text
    assert "Vectors have length 1." in text
    assert "| run | nDCG@10 | RR@10 |\n|---|---|---|\n| ours | 0.5000 | 0.2500 |" in text
    assert str(trained.parent) not in text  # nothing about this machine


def test_a_card_names_the_teacher_of_a_model_that_an_older_version_trained(trained: Path, tmp_path: Path):
    taught = shutil.copytree(trained, tmp_path / "taught")
    manifest = json.loads((taught / "manifest.json").read_text())
    manifest["config"] |= {"distill": 0.5, "teacher_temperature": 2.0}
    del manifest["config"]["loss"]
    (taught / "manifest.json").write_text(json.dumps(manifest))
    text = card_of(taught)
    assert "| distill | 0.5 |\n| teacher temperature | 2.0 |" in text
    assert "| loss |" not in text


def test_a_card_names_all_losses(trained: Path, tmp_path: Path):
    taught = shutil.copytree(trained, tmp_path / "taught")
    manifest = json.loads((taught / "manifest.json").read_text())
    manifest["config"] |= {"loss": ["infonce=0.5", "kl=0.5"]}
    (taught / "manifest.json").write_text(json.dumps(manifest))
    text = card_of(taught)
    assert "| loss | infonce=0.5 kl=0.5 |" in text


def test_the_licence_is_that_of_the_base(tiny, tmp_path: Path):
    from shutil import copytree

    base = Path(copytree(tiny.llama, tmp_path / "base"))
    options = {"collection": str(tiny.collection), "steps": 1, "batch_size": 2}
    train.run(train.Config(kind="retriever", backbone=str(base), out=tmp_path / "model", **options))

    def licence() -> str:
        return front(card_of(tmp_path / "model"))["license"]

    assert licence() == "other"
    for content, expected in (
        ("---\nlicense: mit\n---\n# Base", "mit"),
        ("# Base", "other"),
        ("---\n[\n---\n", "other"),
    ):
        (base / "README.md").write_text(content)
        assert licence() == expected


def test_a_rerankers_card_shows_how_to_score(tiny):
    text = card_of(tiny.reranker)
    assert front(text)["pipeline_tag"] == "text-ranking"
    assert 'reranker.score("query", ["document", "..."])' in text
    assert "## Training" not in text  # no manifest says how


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the hub was asked to do."""
    asked: dict[str, Any] = {}

    class Hub:
        def create_repo(self, name: str, **options: Any) -> None:
            asked["created"] = (name, options)

        def upload_folder(self, **options: Any) -> str:
            asked["uploaded"] = options
            return f"address of {options['repo_id']}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return asked


def test_a_folder_is_pushed_with_its_card_and_without_what_is_of_this_machine(
    trained: Path, hub: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    export.run(export.Config(model=str(trained), to="sentence-transformers", out=tmp_path / "out"))
    assert main(["push", str(tmp_path / "out"), "--to", "me/mine", "--private"]) == 0
    assert hub["created"] == ("me/mine", {"private": True, "exist_ok": True})
    pushed = set(hub["uploaded"]["allow_patterns"])
    assert {"README.md", "model.safetensors", "modules.json", "1_Pooling/config.json", "contract.json"} <= pushed
    assert pushed.isdisjoint({"manifest.json", "config.yaml"})
    assert "fine-tuned from `llama`" in (tmp_path / "out/README.md").read_text()
    assert "address of me/mine" in capsys.readouterr().err


def test_a_dry_run_prints_and_asks_nobody(trained: Path, hub: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    push.run(push.Config(model=trained, to="me/mine", results=tmp_path / "results.json", dry_run=True))
    out = capsys.readouterr().out
    assert "| ours | 0.5000 | 0.2500 |" in out
    assert "model.safetensors\n" in out
    assert "manifest.json" not in out
    assert hub == {}
    assert not (trained / "README.md").exists()


@pytest.mark.parametrize(
    ("name", "message"), [("mine", "expected USER/NAME"), ("a/b/c", "expected USER/NAME"), ("/b", "expected USER/NAME")]
)
def test_a_name_that_is_none_is_refused(name: str, message: str, trained: Path, hub: dict):
    with pytest.raises(UserError, match=message):
        push.run(push.Config(model=trained, to=name))
    assert hub == {}


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder"):
        push.run(push.Config(model=tmp_path / "absent", to="me/mine"))


def test_a_hub_that_refuses_is_told_in_one_line(trained: Path, monkeypatch: pytest.MonkeyPatch):
    class Hub:
        def create_repo(self, *_: Any, **__: Any) -> None:
            raise ConnectionError("401 unauthorised\nand more")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    with pytest.raises(UserError, match=r"the hub did not take it \(401 unauthorised\); log in"):
        push.run(push.Config(model=trained, to="me/mine"))


def test_an_adapter_of_a_base_on_this_machine_is_not_pushed(tiny, hub: dict, tmp_path: Path):
    options = {"collection": str(tiny.collection), "steps": 1, "batch_size": 2, "adapter": "r=2"}
    train.run(train.Config(kind="retriever", backbone=str(tiny.llama), out=tmp_path / "model", **options))
    with pytest.raises(UserError, match="which is on this machine alone"):
        push.run(push.Config(model=tmp_path / "model", to="me/mine"))
    assert hub == {}
