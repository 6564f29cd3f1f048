import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from named import load_reranker, load_retriever
from processes import kill_when
from safetensors.torch import load_file
from tiny import DOCUMENTS, QUERIES, Tiny, write_llama

from shortlist import train
from shortlist.cli import main
from shortlist.data.groups import write_groups
from shortlist.data.manifest import read_manifest
from shortlist.errors import UserError
from shortlist.math.losses import LOSSES, NEEDS
from shortlist.math.ranking import Ranking
from shortlist.models.run import embed_documents, embed_queries, score_pairs
from shortlist.records import Group
from shortlist.settings.train import parse_margin
from shortlist.train import loop
from shortlist.train.examples import Batch
from shortlist.train.gather import ALONE
from shortlist.train.resume import checkpoints
from shortlist.train.steps import Outcome

LORA = "r=8,dropout=0,targets=q_proj+v_proj+o_proj+up_proj+down_proj"


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    """Eight groups with four negatives each."""
    path = tmp_path / "groups.jsonl"
    write_groups(path, [Group(f"q{i}", (f"d{i}",), tuple(f"d{(i + j) % 12}" for j in range(1, 5))) for i in range(8)])
    return path


def settings(tiny: Tiny, out: Path, **change) -> train.Config:
    values = {"kind": "retriever", "backbone": str(tiny.llama), "collection": str(tiny.collection), "out": out}
    values |= {"batch_size": 4, "steps": 2, "learning_rate": 0.01, "warmup_steps": 2}
    return train.Config(**(values | change))


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("kind", ["retriever", "reranker"])
def test_training_learns_and_the_saved_model_knows_it(
    tiny: Tiny, tmp_path: Path, groups: Path, kind: str, lora: str | None
):
    change = {"temperature": 0.1} if kind == "retriever" else {}
    out = tmp_path / "model"
    train.run(settings(tiny, out, kind=kind, groups=str(groups), batch_size=8, steps=40, adapter=lora, **change))
    curve = losses(out)
    assert sum(curve[-4:]) < 0.3 * sum(curve[:4])
    scores = retriever_scores(out) if kind == "retriever" else reranker_scores(out)
    own = scores[torch.arange(8), torch.arange(8)]
    others = torch.stack([scores[i, [(i + j) % 12 for j in range(1, 5)]] for i in range(8)])
    assert (own > others.max(1).values).sum() >= 7


def retriever_scores(model: Path) -> torch.Tensor:
    """Of the 8 queries for training and all documents."""
    loaded = load_retriever(str(model))
    return torch.from_numpy(embed_queries(loaded, QUERIES[:8]) @ embed_documents(loaded, DOCUMENTS).T)


def reranker_scores(model: Path) -> torch.Tensor:
    """Of the 8 queries for training and all documents."""
    pairs = [(query, document) for query in QUERIES[:8] for document in DOCUMENTS]
    return torch.from_numpy(score_pairs(load_reranker(str(model)), pairs)).reshape(8, 12)


@pytest.mark.slow
def test_a_language_model_learns_and_both_kinds_start_from_it(tiny: Tiny, tmp_path: Path):
    start = tmp_path / "language"
    train.run(settings(tiny, start, kind="language-model", batch_size=8, steps=40, max_length=24))
    curve = losses(start)
    assert sum(curve[-4:]) < 0.3 * sum(curve[:4])
    still = {"backbone": str(start), "learning_rate": 1e-12, "steps": 1}
    loaded = {"retriever": load_retriever, "reranker": load_reranker}
    for kind, load in loaded.items():
        train.run(settings(tiny, tmp_path / kind, kind=kind, **still))
        values = load(str(tmp_path / kind)).backbone.state_dict()
        expected = load_file(start / "model.safetensors")
        torch.testing.assert_close(values, expected, atol=1e-6, rtol=0)
    assert load_reranker(str(tmp_path / "reranker")).inputs.form.pair_length == 24


@pytest.mark.slow
def test_a_language_model_reads_nothing_of_a_groups_negatives(tiny: Tiny, tmp_path: Path, groups: Path):
    train.run(settings(tiny, tmp_path / "a", kind="language-model", groups=str(groups)))
    train.run(settings(tiny, tmp_path / "b", kind="language-model"))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


@pytest.fixture
def taught(tmp_path: Path) -> Path:
    """Eight groups of four, whose teacher likes the first negative best and the positive second."""
    path, scores = tmp_path / "taught.jsonl", (2.0, 6.0, 0.0, 0.0)
    groups = [Group(f"q{i}", (f"d{i}",), tuple(f"d{(i + j) % 12}" for j in range(1, 4)), scores) for i in range(8)]
    write_groups(path, groups)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "first"), [("infonce", 0), ("kl", 1)])
@pytest.mark.parametrize("kind", ["retriever", "reranker"])
def test_a_model_that_follows_a_teacher_learns_its_order_instead_of_the_judgements(
    tiny: Tiny, tmp_path: Path, taught: Path, kind: str, loss: str, first: int
):
    change = {"temperature": 0.1} if kind == "retriever" else {}
    change |= {"groups": str(taught), "batch_size": 8, "steps": 60, "loss": (loss,)}
    train.run(settings(tiny, tmp_path / "m", kind=kind, **change))
    scores = retriever_scores(tmp_path / "m") if kind == "retriever" else reranker_scores(tmp_path / "m")
    own = torch.stack([scores[i, [(i + j) % 12 for j in range(4)]] for i in range(8)])
    assert (own.argmax(1) == first).sum() >= 7


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("kind", ["retriever", "reranker"])
def test_a_training_with_all_losses_at_once_that_stopped_goes_on_to_the_same_bytes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, lora: str | None
):
    """What any of them draws, and the start that one compares with, are the same after a stop."""
    groups = [Group(f"q{i}", (f"d{i}",), (f"d{(i + 1) % 12}", "d11"), (2.0, 6.0, 0.0), (3, 1, 0)) for i in range(8)]
    write_groups(tmp_path / "groups.jsonl", groups)
    names = [name for name in LOSSES if kind == "retriever" or "shared documents" not in NEEDS.get(name, ())]
    change = {"groups": str(tmp_path / "groups.jsonl"), "kind": kind, "loss": tuple(names), "adapter": lora}
    change |= {"negatives": 2, "temperature": 1.0, "steps": 4, "checkpoint_steps": 2, "guide": str(tiny.retriever)}
    train.run(settings(tiny, tmp_path / "whole", **change))
    stop_in_step(4, monkeypatch, lambda: train.run(settings(tiny, tmp_path / "broken", **change)))
    assert [path.name for path in checkpoints(tmp_path / "broken")] == ["step-000002"]
    train.run(settings(tiny, tmp_path / "broken", **change))
    assert measured(tmp_path / "broken") == measured(tmp_path / "whole")
    file = "adapter_model.safetensors" if lora else "model.safetensors"
    one, other = (tmp_path / name / file for name in ("broken", "whole"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_a_language_model_that_stopped_goes_on_to_the_same_bytes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    change = {"kind": "language-model", "steps": 7, "checkpoint_steps": 2}
    train.run(settings(tiny, tmp_path / "whole", **change))
    stop_in_step(5, monkeypatch, lambda: train.run(settings(tiny, tmp_path / "broken", **change)))
    train.run(settings(tiny, tmp_path / "broken", **change))
    assert measured(tmp_path / "broken") == measured(tmp_path / "whole")
    one, other = (tmp_path / name / "model.safetensors" for name in ("broken", "whole"))
    assert one.read_bytes() == other.read_bytes()


def stop_in_step(step: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> None:
    """Do the work until Ctrl-C is pressed in that step."""
    backward, count = loop.backward, iter(range(1, 100))

    def interrupted(*args, **options) -> Outcome:
        if next(count) == step:
            raise KeyboardInterrupt
        return backward(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "backward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            work()


@pytest.mark.slow
def test_a_guide_is_part_of_the_job_and_its_margin_too(
    tiny: Tiny, tmp_path: Path, groups: Path, capsys: pytest.CaptureFixture[str]
):
    change = {"groups": str(groups), "steps": 1, "guide": str(tiny.retriever)}
    train.run(settings(tiny, tmp_path / "m", **change))
    manifest = read_manifest(tmp_path / "m")
    assert manifest is not None
    assert manifest["made_from"]["guide"] != str(tiny.retriever)  # the identity of its weights
    train.run(settings(tiny, tmp_path / "m", **change))
    assert "already done" in capsys.readouterr().err
    for other in ({"guide": None}, {"guide_margin": "-3"}, {"guide": str(tiny.llama)}):
        with pytest.raises(UserError, match="holds another job"):
            train.run(settings(tiny, tmp_path / "m", **(change | other)))
    train.run(settings(tiny, tmp_path / "far", **change, guide_margin="-3"))  # the bar is above every similarity
    train.run(settings(tiny, tmp_path / "plain", **(change | {"guide": None})))
    assert losses(tmp_path / "far") == losses(tmp_path / "plain") != losses(tmp_path / "m")


@pytest.mark.parametrize(
    ("text", "margin", "relative"), [("0", 0.0, False), ("0.05", 0.05, False), ("5%", 0.05, True), ("-1", -1.0, False)]
)
def test_a_guides_margin_is_a_similarity_or_a_share(text: str, margin: float, relative: bool):
    assert parse_margin(text) == (margin, relative)


@pytest.mark.slow
def test_a_dry_run_counts_the_weights_that_are_kept_beside_the_model(
    tiny: Tiny, tmp_path: Path, groups: Path, capsys: pytest.CaptureFixture[str]
):
    def weights(**change) -> float:
        train.run(settings(tiny, tmp_path / "m", groups=str(groups), dry_run=True, **change))
        [line] = [line for line in capsys.readouterr().out.splitlines() if line.lstrip().startswith("weights")]
        return float(line.split()[1])

    once = weights()
    assert weights(loss=("anchor",)) == pytest.approx(2 * once, abs=0.0011)
    assert weights(guide=str(tiny.retriever)) == pytest.approx(2 * once, abs=0.0011)


def test_groups_without_a_teachers_scores_cannot_teach(tiny: Tiny, tmp_path: Path, groups: Path):
    losses = {"loss": ("infonce=0.5", "kl=0.5")}
    with pytest.raises(UserError, match=r"--loss kl: 8 of 8 groups .* no teacher's scores; mine them with --teacher"):
        train.run(settings(tiny, tmp_path / "m", groups=str(groups), **losses))
    with pytest.raises(UserError, match=r"--loss kl: 8 of 8 groups of .*collection train have no teacher's"):
        train.run(settings(tiny, tmp_path / "m", **losses))
    assert not (tmp_path / "m").exists()


def margins(ranking: Ranking, *, margin: float = 0.5) -> torch.Tensor:
    """A loss of somebody who uses the package: the positive lies a margin above all others."""
    best = ranking.scores.masked_fill(ranking.relevance < 1, torch.inf).amin(1, keepdim=True)
    short = (margin - best + ranking.scores).clamp(min=0) * (ranking.keep & (ranking.relevance < 1))
    return short.sum(1).mean()


@pytest.mark.slow
def test_a_loss_from_outside_trains_and_resumes_by_its_name(
    tiny: Tiny, tmp_path: Path, groups: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(LOSSES, "toy", margins)
    command = ["train", "reranker", "--backbone", str(tiny.llama), "--collection", str(tiny.collection)]
    command += ["--groups", str(groups), "--batch-size", "8", "--steps", "25", "--learning-rate", "0.01"]
    out = tmp_path / "toy"
    assert main([*command, "--warmup-steps", "2", "--out", str(out), "--loss", "toy=2", "toy.margin=1.5"]) == 0
    curve = losses(out)
    assert curve[0] == pytest.approx(2 * 4 * 1.5, rel=0.05)  # a new head scores all four negatives alike
    assert curve[-1] < 0.3 * curve[0]
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest["results"]["losses"] == {"toy": {"weight": 2.0, "margin": 1.5}}
    assert manifest["made_from"]["loss"] == ["toy=2", "toy.margin=1.5"]
    assert main([*command, "--out", str(tmp_path / "no"), "--loss", "toy", "toy.magin=1"]) == 1
    assert "unknown parameter of toy 'magin': perhaps 'margin'?" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "no"), "--loss", "toy", "--temperature", "1"]) == 1
    assert "--temperature: no loss of --loss has a temperature" in capsys.readouterr().err


def test_a_loss_that_needs_grades_needs_some_that_say_more_than_yes_and_no(
    tiny: Tiny, tmp_path: Path, groups: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(LOSSES, "toy", margins)
    monkeypatch.setitem(NEEDS, "toy", ("grades",))
    with pytest.raises(UserError, match=r"--loss toy: none of the 8 groups of .* has grades"):
        train.run(settings(tiny, tmp_path / "m", groups=str(groups), loss=("toy",)))
    assert not (tmp_path / "m").exists()
    write_groups(groups, [Group(f"q{i}", (f"d{i}",), ("d11",), (), (2, 0)) for i in range(8)])
    train.run(settings(tiny, tmp_path / "m", groups=str(groups), loss=("toy",)))


def test_without_groups_the_judged_pairs_are_trained_on(tiny: Tiny, tmp_path: Path):
    train.run(settings(tiny, tmp_path / "m"))
    manifest = read_manifest(tmp_path / "m")
    assert manifest is not None
    assert manifest["complete"]
    assert "loss" not in manifest["made_from"]  # the default: the job that it always was
    assert manifest["results"]["losses"] == {
        "infonce": {"weight": 1.0, "temperature": 0.01, "focal": 0.0, "positives": "best"}
    }
    assert manifest["results"]["num_groups"] == 8
    assert manifest["results"]["step"] == 2


def test_epochs_give_the_number_of_steps_where_no_number_is_given(tiny: Tiny, tmp_path: Path):
    train.run(settings(tiny, tmp_path / "m", steps=None, epochs=2, batch_size=3))
    assert len(losses(tmp_path / "m")) == 6


@pytest.mark.slow
@pytest.mark.parametrize(("change", "temperature"), [({}, 0.01), ({"temperature": 0.5}, 0.5)])
@pytest.mark.parametrize("grad_cache", [False, True])
def test_the_temperature_divides_the_scores(
    tiny: Tiny, tmp_path: Path, change: dict, temperature: float, grad_cache: bool
):
    train.run(settings(tiny, tmp_path / "m", batch_size=8, steps=1, grad_cache=grad_cache, **change))
    scores = retriever_scores(tiny.retriever)[:, :8]
    expected = torch.nn.functional.cross_entropy(scores / temperature, torch.arange(8)).item()
    assert losses(tmp_path / "m")[0] == pytest.approx(expected, rel=1e-4)


def test_lengths_and_contract_travel_with_the_model(tiny: Tiny, tmp_path: Path):
    train.run(settings(tiny, tmp_path / "m", contract="bert", query_length=5, max_length=7))
    contract = load_retriever(str(tmp_path / "m")).contract
    assert (contract.form.query_length, contract.form.document_length, contract.reading.pooling) == (5, 7, "mean")


def test_the_number_of_negatives_is_per_query_and_step(
    tiny: Tiny, tmp_path: Path, groups: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[Batch] = []
    example = train.make_example

    def watched(kind, inputs, batch, terms, **options):
        seen.append(batch)
        return example(kind, inputs, batch, terms, **options)

    monkeypatch.setattr(train, "make_example", watched)
    train.run(settings(tiny, tmp_path / "m", groups=str(groups), negatives=2))
    assert [[len(group) for group in batch.documents] for batch in seen] == [[3] * 4] * 2


def test_groups_with_fewer_negatives_than_asked_are_counted_and_not_filled_up(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_groups(tmp_path / "g.jsonl", [Group("q0", ("d0",), ("d5",)), Group("q1", ("d1",), ("d5", "d6", "d7"))])
    train.run(settings(tiny, tmp_path / "m", groups=str(tmp_path / "g.jsonl"), negatives=3))
    assert "1 of 2 groups have fewer than 3 negatives" in capsys.readouterr().err
    manifest = read_manifest(tmp_path / "m")
    assert manifest is not None
    assert manifest["results"]["short_groups"] == 1


def test_tevatrons_groups_bring_their_own_queries(tiny: Tiny, tmp_path: Path):
    record = {"query_id": "new", "query": "which price", "positive_passages": [{"docid": "d0"}]}
    record |= {"negative_passages": [{"docid": "d1"}]}
    (tmp_path / "g.jsonl").write_text(json.dumps(record) + "\n")
    train.run(settings(tiny, tmp_path / "m", groups=str(tmp_path / "g.jsonl"), split="no such split"))
    assert len(losses(tmp_path / "m")) == 2


@pytest.mark.slow
def test_precision_memory_and_token_budget_reach_the_step(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[dict] = []
    backward = loop.backward

    def watched(*args, seed: int, **options) -> Outcome:
        seen.append(options)
        return backward(*args, seed=seed, **options)

    monkeypatch.setattr(loop, "backward", watched)
    change = {"precision": "bf16", "grad_cache": True, "token_budget": 77}
    train.run(settings(tiny, tmp_path / "a", steps=1, **change))
    train.run(settings(tiny, tmp_path / "b", steps=1, token_budget=88))
    assert seen[0] == {"token_budget": 77, "bf16": True, "cached": True, "world": ALONE}
    assert seen[1] == {"token_budget": 88, "bf16": False, "cached": False, "world": ALONE}


@pytest.mark.slow
def test_the_seed_alone_decides_the_model(tiny: Tiny, tmp_path: Path):
    def weights(name: str, seed: int) -> bytes:
        train.run(settings(tiny, tmp_path / name, kind="reranker", adapter=LORA, seed=seed))
        return (tmp_path / name / "adapter_model.safetensors").read_bytes()

    first = weights("a", 3)
    torch.randn(5)
    assert weights("b", 3) == first
    assert weights("c", 4) != first


@pytest.mark.slow
def test_a_retriever_becomes_a_reranker_and_a_reranker_keeps_its_head(tiny: Tiny, tmp_path: Path, groups: Path):
    still = {"kind": "reranker", "groups": str(groups), "learning_rate": 1e-12, "steps": 1}
    train.run(settings(tiny, tmp_path / "one", backbone=str(tiny.retriever), **still))
    train.run(settings(tiny, tmp_path / "two", backbone=str(tmp_path / "one"), **(still | {"seed": 5})))
    one, two = load_reranker(str(tmp_path / "one")), load_reranker(str(tmp_path / "two"))
    torch.testing.assert_close(one.head, two.head)
    torch.testing.assert_close(
        one.backbone.state_dict(), load_retriever(str(tiny.retriever)).backbone.state_dict(), atol=1e-6, rtol=0
    )


def test_a_loss_that_is_no_number_is_the_users_to_mend_and_keeps_the_checkpoint(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    backward, count = loop.backward, iter(range(100))

    def diverging(*args, **options) -> Outcome:
        outcome = backward(*args, **options)
        return outcome._replace(loss=torch.tensor(math.nan)) if next(count) == 3 else outcome

    monkeypatch.setattr(loop, "backward", diverging)
    with pytest.raises(UserError, match=r"step 4: the loss is nan .* Lower --learning-rate"):
        train.run(settings(tiny, tmp_path / "m", steps=6, checkpoint_steps=2))
    assert [path.name for path in checkpoints(tmp_path / "m")] == ["step-000002"]
    assert not (tmp_path / "m" / "model.safetensors").exists()


def test_checkpoints_whose_removal_was_killed_are_removed_by_the_next_command(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = settings(tiny, tmp_path / "m", steps=2, checkpoint_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(train, "drop_checkpoints", lambda folder: None)
        train.run(config)
    assert checkpoints(tmp_path / "m")
    train.run(config)
    assert not (tmp_path / "m" / "checkpoints").exists()


@pytest.mark.slow
def test_a_finished_model_is_left_alone_and_another_job_is_refused(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train.run(settings(tiny, tmp_path / "m"))
    before = (tmp_path / "m" / "model.safetensors").stat().st_mtime_ns
    train.run(settings(tiny, tmp_path / "m", token_budget=64, checkpoint_steps=7))
    assert "already done" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"holds another job \(learning_rate: 0.01 there, 0.02 now\)"):
        train.run(settings(tiny, tmp_path / "m", learning_rate=0.02))
    assert (tmp_path / "m" / "model.safetensors").stat().st_mtime_ns == before
    train.run(settings(tiny, tmp_path / "m", learning_rate=0.02, overwrite=True))
    assert (tmp_path / "m" / "model.safetensors").stat().st_mtime_ns > before


def test_other_weights_under_the_same_name_are_another_job(tiny: Tiny, tmp_path: Path):
    backbone = write_llama(tmp_path / "llama")
    train.run(settings(tiny, tmp_path / "m", backbone=str(backbone)))
    write_llama(backbone, seed=1)
    with pytest.raises(UserError, match=r"backbone: the contents of .*llama changed"):
        train.run(settings(tiny, tmp_path / "m", backbone=str(backbone)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "--batch-size is 0; expected at least 1"),
        ({"steps": 0}, "--steps is 0"),
        ({"epochs": 0}, "--epochs is 0"),
        ({"checkpoint_steps": 0}, "--checkpoint-steps is 0"),
        ({"token_budget": -1}, "--token-budget is -1"),
        ({"negatives": -1}, "--negatives is -1; expected at least 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"temperature": 0.0}, "--temperature is 0.0; expected more than 0"),
        ({"learning_rate": 0.0}, "--learning-rate is 0.0; expected more than 0"),
        ({"keep": 0}, "--keep is 0"),
        ({"heldout_split": "tset"}, "perhaps 'test'"),
        ({"four_bit": True}, "--four-bit: .* add --adapter"),
        ({"four_bit": True, "adapter": "paper", "sharded": True}, "--four-bit: .* leave out one"),
        ({"max_length": 4}, "--max-length"),
        ({"kind": "language-model", "heldout_split": "test"}, "--heldout-split: says nothing about a language model"),
        ({"kind": "language-model", "temperature": 1.0}, "--temperature: says nothing"),
        ({"kind": "language-model", "negatives": 0}, "--negatives: says nothing"),
        ({"kind": "language-model", "query_length": 8}, "--query-length: says nothing"),
        ({"kind": "language-model", "loss": ("kl",)}, "--loss: says nothing"),
        ({"loss": ("infonc",)}, "--loss infonc: unknown loss 'infonc': perhaps 'infonce'"),
        ({"loss": ("infonce=half",)}, "--loss infonce=half: the weight is 'half'; expected a number above 0"),
        ({"kind": "language-model", "bidirectional": True}, "--bidirectional: says nothing"),
        ({"attention": "flahs_attention_2"}, "perhaps 'flash_attention_2'"),
        ({"contract": "replama"}, "perhaps 'repllama'"),
        ({"guide": "./nowhere"}, "./nowhere: cannot load a model"),
        ({"guide_margin": "5%"}, "--guide-margin: says how near .* add --guide MODEL"),
        ({"guide": "g", "guide_margin": "near"}, "--guide-margin is 'near'; expected a similarity such as 0.05, or a"),
        ({"guide": "g", "guide_margin": "inf"}, "--guide-margin is 'inf'"),
        ({"kind": "language-model", "guide": "g"}, "--guide: says nothing about a language model"),
        ({"kind": "reranker", "loss": ("sinkhorn",)}, "--loss sinkhorn: compares queries by the documents"),
        ({"loss": ("infonce", "listmle.order=teacher")}, "--loss listmle: .* no teacher's scores"),
        ({"loss": ("policy.reward=ngcd",)}, "unknown value of policy.reward 'ngcd': known: mrr, ndcg"),
        ({"adapter": "papre"}, "perhaps 'paper'"),
        ({"adapter": "prefix", "gradient_checkpointing": True}, "runs layers again, which --adapter prefix cannot"),
        ({"adapter": "adalora", "sharded": True}, "--sharded: --adapter adalora compares whole matrices"),
        ({"optimizer": "adamv"}, "perhaps 'adamw'"),
        ({"optimizer": "galore", "sharded": True}, "--sharded: --optimizer galore needs whole matrices"),
        ({"layers_sampled": "1", "adapter": "paper"}, "--layers-sampled: .* leave out --adapter"),
        ({"layers_sampled": "9"}, "--layers-sampled 9: the model has 1 layers"),
        ({"split": "tran"}, "perhaps 'train'"),
        ({"backbone": "./nowhere"}, "./nowhere: cannot load a model"),
        ({"collection": "nowhere"}, "nowhere"),
        ({"groups": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_written(
    tiny: Tiny, tmp_path: Path, change: dict, message: str
):
    with pytest.raises(UserError, match=message):
        train.run(settings(tiny, tmp_path / "m", **change))
    assert not (tmp_path / "m").exists()


def test_groups_of_another_collection_are_refused(tiny: Tiny, tmp_path: Path):
    write_groups(tmp_path / "groups.jsonl", [Group("q0", ("d0",)), Group("elsewhere", ("d1",))])
    with pytest.raises(UserError, match=r"groups.jsonl: 1 of 2 queries .* the first 'elsewhere'"):
        train.run(settings(tiny, tmp_path / "m", groups=str(tmp_path / "groups.jsonl")))
    write_groups(tmp_path / "groups.jsonl", [Group("q0", ("d0",), ("nowhere",))])
    with pytest.raises(UserError, match="nowhere"):
        train.run(settings(tiny, tmp_path / "n", groups=str(tmp_path / "groups.jsonl")))


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, "r=4,dropout=0.1,targets=query+value"])
def test_a_killed_training_goes_on_to_the_same_bytes_many_epochs_later(tiny: Tiny, tmp_path: Path, lora: str | None):
    def command(out: Path) -> list[str]:
        texts = ["--backbone", str(tiny.bert), "--collection", str(tiny.collection), "--out", str(out)]
        steps = ["--batch-size", "3", "--steps", "40", "--checkpoint-steps", "5", "--heldout-steps", "12"]
        return ["train", "retriever", *texts, *steps, "--heldout-split", "test", *(["--adapter", lora] if lora else [])]

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(command(whole)) == 0
    kill_when(lambda: len(lines(broken / "log.jsonl")) >= 12, command(broken))
    weights = "adapter_model.safetensors" if lora else "model.safetensors"
    assert not (broken / weights).exists()
    assert main(command(broken)) == 0
    for name in (weights, "contract.json", "tokenizer.json"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert measured(broken) == measured(whole)
    assert {path.name for path in broken.iterdir()} == {path.name for path in whole.iterdir()}


def measured(out: Path) -> list[dict]:
    """The log, but for what the clock said."""
    return [
        {k: v for k, v in json.loads(line).items() if k != "tokens_per_second"} for line in lines(out / "log.jsonl")
    ]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
def test_held_out_scores_are_logged_with_the_last_step_and_the_drawing_is_there(tiny: Tiny, tmp_path: Path):
    for kind in ("retriever", "reranker"):
        out = tmp_path / kind
        train.run(settings(tiny, out, kind=kind, steps=5, heldout_split="test", heldout_steps=2))
        scores = {r["step"]: r["mrr@10"] for r in map(json.loads, lines(out / "log.jsonl")) if "mrr@10" in r}
        assert scores.keys() == {2, 4, 5}
        assert all(0 < score <= 1 for score in scores.values())
        assert (out / "loss.svg").read_text().startswith("<?xml")
        manifest = read_manifest(out)
        assert manifest is not None
        assert manifest["results"]["mrr@10"] == max(scores.values())


@pytest.mark.slow
def test_measuring_changes_nothing_of_what_is_learnt(tiny: Tiny, tmp_path: Path):
    change = {"backbone": str(tiny.bert), "steps": 5}
    train.run(settings(tiny, tmp_path / "without", **change))
    heldout = {"heldout_split": "test", "heldout_steps": 2, "keep": 9, "checkpoint_steps": 1}
    train.run(settings(tiny, tmp_path / "with", **change, **heldout))
    assert losses_of_steps(tmp_path / "with") == losses(tmp_path / "without")


def losses_of_steps(out: Path) -> list[float]:
    return [r["loss"] for r in map(json.loads, lines(out / "log.jsonl")) if "loss" in r]


@pytest.mark.slow
def test_tensorboard_gets_the_numbers_too(tiny: Tiny, tmp_path: Path):
    train.run(settings(tiny, tmp_path / "m", tensorboard=True))
    assert list((tmp_path / "m" / "tensorboard").glob("events*"))


@pytest.mark.slow
def test_a_dry_run_says_what_it_would_take_and_writes_nothing(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def no_weights(*args: object, **options: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("shortlist.models.load.load_backbone", no_weights)
    for kind in ("retriever", "reranker", "language-model"):
        for lora in (None, LORA):
            train.run(settings(tiny, tmp_path / "m", kind=kind, adapter=lora, dry_run=True))
            said = capsys.readouterr().out
            assert "parameters" in said
            assert "memory" in said
            assert "steps          2" in said
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_a_decoder_trained_to_see_both_ways_does_so_when_loaded(tiny: Tiny, tmp_path: Path):
    for lora in (None, LORA):
        out = tmp_path / f"lora-{lora is not None}"
        train.run(settings(tiny, out, bidirectional=True, adapter=lora))
        loaded = load_retriever(str(out))
        assert loaded.reading.bidirectional
        ids = torch.tensor([[1, 5, 6, 7], [1, 5, 6, 8]])
        one, other = loaded.backbone(input_ids=ids).last_hidden_state[:, 0]
        assert (one - other).abs().max() > 1e-3


@pytest.mark.slow
def test_memory_savers_change_nothing_but_rounding(tiny: Tiny, tmp_path: Path):
    change = {"backbone": str(tiny.bert), "steps": 3, "temperature": 0.5}
    train.run(settings(tiny, tmp_path / "plain", **change))
    expected = losses(tmp_path / "plain")
    for name, saver in {"a": {"gradient_checkpointing": True}, "b": {"grad_cache": True}}.items():
        train.run(settings(tiny, tmp_path / name, **change, **saver))
        assert losses(tmp_path / name) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["retriever", "reranker"])
def test_what_was_learnt_on_a_4_bit_base_scores_the_same_when_loaded(
    tiny: Tiny, tmp_path: Path, groups: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    trained: list = []
    save = train.save_model

    def watched(model, folder: Path, **options) -> None:
        trained.append(model)
        save(model, folder, **options)

    monkeypatch.setattr(train, "save_model", watched)
    change = {"kind": kind, "groups": str(groups), "adapter": LORA, "four_bit": True, "steps": 8, "temperature": 0.5}
    train.run(settings(tiny, tmp_path / "m", **change))
    model = trained[0].eval()
    if kind == "retriever":
        vectors = embed_documents(model, DOCUMENTS)
        assert embed_documents(load_retriever(str(tmp_path / "m")), DOCUMENTS) == pytest.approx(vectors, abs=1e-5)
    else:
        pairs = [(QUERIES[0], document) for document in DOCUMENTS]
        scores = score_pairs(model, pairs)
        assert score_pairs(load_reranker(str(tmp_path / "m")), pairs) == pytest.approx(scores, abs=1e-4)
    values = load_file(tmp_path / "m" / "adapter_model.safetensors")
    assert all("lora_" in name or name.endswith("score.weight") for name in values)


def test_alone_there_is_nobody_to_share_a_model_with(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train.run(settings(tiny, tmp_path / "m", sharded=True))
    assert "--sharded has nobody to share with" in capsys.readouterr().err
