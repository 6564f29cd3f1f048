from pathlib import Path

import pytest
import torch
from named import load_reranker, load_retriever
from processes import Started, free_port
from safetensors.torch import load_file
from tiny import Tiny

from shortlist.models.outputs import Rows
from shortlist.train.gather import ALONE, OutOfMemory, gather_rows, in_turn, meet, on_any, within_memory

from . import together

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_processes(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the result of every case in `together.py`, run by two processes."""
    out = tmp_path_factory.mktemp("two")
    port, err = free_port(), out / "err"
    both = [Started(together.one_of_two, rank, port, tiny.llama.parent, out, err=err) for rank in range(2)]
    assert [process.wait() for process in both] == [0, 0], err.read_text()
    return out


@pytest.mark.parametrize("case", together.CASES, ids=lambda case: case.name)
def test_two_processes_have_the_loss_and_the_gradients_of_one(two_processes: Path, tiny: Tiny, case: together.Case):
    expected = together.step(case._replace(sharded=False), tiny.llama.parent, ALONE)
    actual = load_file(two_processes / case.name)
    assert actual.keys() == expected.keys()
    assert actual["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    assert actual["accuracy"] == expected["accuracy"]
    names = expected.keys() - {"loss", "accuracy"}
    whole = torch.cat([expected[name].flatten() for name in names]).norm()
    differences = torch.cat([(actual[name] - expected[name]).flatten() for name in names])
    assert differences.norm() <= 1e-5 * whole
    assert sum(expected[name].norm() > 1e-3 * whole for name in names) > 5  # it is not all in one place


WITHOUT_EFFECT = ("key.bias", "layer.0.output.LayerNorm.bias")
"""BERT's parameters that shift all attention scores or all of a ranking's scores alike: their gradient is rounding, of
which AdamW makes steps of full length in any direction."""


def weights(folder: Path) -> torch.Tensor:
    """All weights of a model folder that have an effect, in a row."""
    (path,) = [path for path in folder.glob("*.safetensors") if path.name != "optimizer.safetensors"]
    return torch.cat(
        [value.flatten() for name, value in sorted(load_file(path).items()) if not name.endswith(WITHOUT_EFFECT)]
    )


@pytest.mark.parametrize("name", together.RUNS)
def test_two_processes_end_where_one_does_and_their_model_loads(
    two_processes: Path, tiny: Tiny, tmp_path: Path, name: str
):
    alone = together.settings(name, tiny.llama.parent, tmp_path)
    together.train_run(alone, ALONE)
    expected = weights(tmp_path)
    assert (weights(two_processes / f"whole-{name}") - expected).norm() <= 1e-5 * expected.norm()
    load = load_reranker if alone.kind == "reranker" else load_retriever
    load(str(two_processes / f"whole-{name}"))
    logs = [folder / "log.jsonl" for folder in (tmp_path, two_processes / f"whole-{name}")]
    assert [len(log.read_text().splitlines()) for log in logs] == [8, 8]  # six steps, two held-out scores


@pytest.mark.parametrize("name", together.RUNS)
def test_one_process_goes_on_from_the_checkpoint_of_two(two_processes: Path, tiny: Tiny, name: str):
    broken = together.settings(name, tiny.llama.parent, two_processes / f"broken-{name}")
    assert not list(broken.out.glob("*.safetensors"))
    together.train_run(broken, ALONE)
    expected = weights(two_processes / f"whole-{name}")
    assert (weights(broken.out) - expected).norm() <= 1e-5 * expected.norm()


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with meet() as world:
        assert world == ALONE
        assert world.leads


def test_alone_nothing_is_exchanged():
    rows = Rows(torch.randn(3, 2))
    assert gather_rows(rows, [3]) is rows
    assert on_any(True)
    assert not on_any(False)
    assert in_turn(lambda: 7, ALONE) == 7


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: x")],
)
def test_running_out_of_memory_has_one_name_on_every_device(error: Exception):
    def work() -> None:
        raise error

    with pytest.raises(OutOfMemory):
        within_memory(work)


def test_other_errors_keep_theirs():
    with pytest.raises(RuntimeError, match="shapes"):
        within_memory(lambda: (_ for _ in ()).throw(RuntimeError("shapes")))
    assert within_memory(lambda: 3) == 3
