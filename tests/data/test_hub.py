"""What a download that does not come says: one line, soon, with what to do by hand."""

import socket
import time
from pathlib import Path

import pytest

from shortlist.data import hub as hub_module
from shortlist.data.collections import open_collection
from shortlist.errors import UserError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    hub_module._fault.cache_clear()
    yield
    hub_module._fault.cache_clear()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    pytest.importorskip("ir_datasets")
    return tmp_path / "home"


def failure(name: str) -> str:
    """The one line that opening and reading a collection ends with."""
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        next(iter(open_collection(name).corpus()))
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)
    return str(caught.value)


def downloaded(files: dict[str, list], dataset_id: str, monkeypatch) -> str:
    """The failure of a corpus whose file comes from these sources."""
    import ir_datasets
    from ir_datasets.formats import TsvDocs
    from ir_datasets.util import Download

    docs = TsvDocs(Download(files["mirrors"]))
    monkeypatch.setitem(ir_datasets.registry._registered, dataset_id, ir_datasets.Dataset(docs))
    return failure(f"irds:{dataset_id}")


@pytest.mark.parametrize("mirrors", [1, 3])
def test_a_failed_download_of_ir_datasets_says_why_and_how_to_bring_it(home, monkeypatch, mirrors):
    from ir_datasets.util import RequestsDownload

    sources = [RequestsDownload(f"https://mirror-{number}.invalid/docs.tsv") for number in range(mirrors)]
    said = downloaded({"mirrors": sources}, "tiny/away", monkeypatch)
    assert said.startswith("irds:tiny/away: cannot be read (")
    assert f"Failed to resolve 'mirror-{mirrors - 1}.invalid'" in said
    assert "run `ir_datasets export tiny/away docs` where there is network" in said
    assert f"copy ~/.ir_datasets from there to {home};" in said
    assert "folder in BEIR's layout" in said


def test_a_file_that_its_owners_give_out_is_named_with_its_place(home, monkeypatch):
    from ir_datasets.util import LocalDownload

    said = downloaded({"mirrors": [LocalDownload(home / "corpus.tgz", "Ask the owners.")]}, "tiny/bound", monkeypatch)
    assert f"({home / 'corpus.tgz'} is missing); put it there, got as ir_datasets' documentation of it says" in said
    assert "export" not in said


@pytest.fixture
def online(hub, monkeypatch):
    """The settings of `datasets`, which would ask the hub."""
    import huggingface_hub
    from datasets import config

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    return config


def test_a_hub_that_does_not_answer_is_not_asked_for_half_a_minute(online):
    said = failure("hf:nobody/nothing")
    assert said.startswith("hf:nobody/nothing: cannot be read (the hub does not answer: [Errno -2] Name or service not")
    assert "run `hf download --repo-type dataset nobody/nothing --local-dir FOLDER` where there is network" in said
    assert "nobody/nothing-qrels too, if there is one, into FOLDER-qrels" in said
    assert online.HF_HUB_OFFLINE is False


def test_a_folder_that_cannot_be_read_is_no_matter_of_downloads(online, hub):
    hub.mkdir()
    (hub / "corpus.jsonl").write_text('{"docid": "7", "text":\n')
    said = failure(f"hf:{hub}")
    assert "check its files" in said
    assert "hf download" not in said


def test_a_field_that_comes_up_late_is_named_with_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    lines = [f'{{"docid": "{i}", "text": "{"x" * 100_000}"}}\n' for i in range(120)]  # more than is read at a time
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/late.jsonl").write_text("".join(lines) + '{"docid": "z", "text": "x", "lang": "en"}\n')
    with pytest.raises(UserError, match="have other fields than the first ones: new lang; give all") as caught:
        list(open_collection(f"hf:{tmp_path / 'hub'}").corpus())
    assert "\n" not in str(caught.value)
