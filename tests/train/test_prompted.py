"""Retrievers that learn to rank with a query that has read documents (E2Rank)."""

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from named import retriever_to_train
from tiny import DOCUMENTS, QUERIES, Tiny, write_speaker
from torch import Tensor

from shortlist import train
from shortlist.data.groups import write_groups
from shortlist.errors import UserError
from shortlist.models.outputs import Rows
from shortlist.records import Document, Group
from shortlist.rerankers.kinds import load_reranker
from shortlist.text.prompts import named_prompt
from shortlist.train.examples import Batch
from shortlist.train.log import read_log
from shortlist.train.losses import parse_losses
from shortlist.train.objectives import make_example
from shortlist.train.prompted import Prompted, prompt_cosines
from shortlist.train.steps import Example

E2RANK = ("ranknet=2", "ranknet.temperature=0.1", "ranknet.order=teacher")
BATCH = Batch(
    queries=QUERIES[:2],
    documents=[DOCUMENTS[:4], DOCUMENTS[4:8]],
    positives=[frozenset({"d0"}), frozenset({"d4"})],
    scores=[(3.0, 4.0, 1.0, 2.0), (1.0, 0.0, 2.0, 3.0)],
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speaker(tmp_path_factory.mktemp("backbone") / "model", chat=None)


def prompted_of(backbone: Path, prompt: str = "e2rank-plain", length: int = 64) -> Prompted:
    tokenizer = retriever_to_train(str(backbone)).inputs.tokenizer
    terms = parse_losses(E2RANK, temperature=0.03)
    return Prompted(named_prompt(prompt), tokenizer, terms, document_length=length, longest=2048)


def example_of(backbone: Path, batch: Batch = BATCH) -> tuple[Example, Example]:
    """A batch's example with prompts beside it, and without."""
    model = retriever_to_train(str(backbone))
    plain = make_example("retriever", model.inputs, batch, parse_losses(["infonce"], temperature=0.03))
    return prompted_of(backbone).beside(plain, batch, rng=np.random.default_rng(0)), plain


def random_rows(count: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return F.normalize(torch.randn(count, 6, generator=draw), dim=-1)


def test_the_loss_is_infonce_and_ranknet_worked_out_by_hand(backbone: Path):
    batch = BATCH._replace(
        queries=QUERIES[:1], documents=[DOCUMENTS[:2]], positives=BATCH.positives[:1], scores=[(1.0, 2.0)]
    )
    example, _ = example_of(backbone, batch)
    # the query has the cosines 1 and 0 with its documents, the prompt 0.8 and 0.6; the teacher prefers the second one
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    outcome = example.objective(Rows(rows))
    infonce = math.log(1 + math.exp(-1 / 0.03))
    ranknet = math.log(1 + math.exp((0.8 - 0.6) / 0.1))
    assert ranknet == pytest.approx(2.126928)
    assert float(outcome.loss) == pytest.approx(infonce + 2 * ranknet, abs=1e-5)
    assert outcome.accuracy == 1
    assert outcome.measured == {"prompt_accuracy": 1.0}  # its positive is the first document


def test_the_loss_is_the_formula_written_out(backbone: Path):
    example, plain = example_of(backbone)
    rows = random_rows(12)  # 2 queries, 2 x 4 documents, 2 prompts
    losses = []
    for group, teacher in enumerate(BATCH.scores):
        scores = [float(rows[10 + group] @ rows[2 + 4 * group + place]) / 0.1 for place in range(4)]
        losses += [
            math.log(1 + math.exp(scores[worse] - scores[better]))
            for better, worse in product(range(4), repeat=2)
            if teacher[better] > teacher[worse]
        ]
    assert len(losses) == 12
    expected = float(plain.objective(Rows(rows[:10])).loss) + 2 * sum(losses) / len(losses)
    assert float(example.objective(Rows(rows)).loss) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_moves_a_prompt_towards_what_the_teacher_prefers(backbone: Path):
    example, plain = example_of(backbone)
    rows = random_rows(12).requires_grad_()
    example.objective(Rows(rows)).loss.backward()
    alone = rows.detach()[:10].clone().requires_grad_()
    plain.objective(Rows(alone)).loss.backward()
    assert rows.grad is not None
    assert alone.grad is not None
    best, worst = rows[3].detach(), rows[4].detach()  # of the first group
    assert rows.grad[10] @ (best - worst) < 0
    own = rows.grad[:10] - alone.grad
    assert torch.equal(own[:2], torch.zeros(2, 6))  # queries learn from infonce alone
    assert own[3] @ rows[10].detach() < 0 < own[4] @ rows[10].detach()


def test_cosines_are_of_each_groups_own_documents_and_no_length_changes_them():
    documents = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
    prompts = torch.tensor([[0.0, 5.0], [1.0, 0.0]])
    assert prompt_cosines(prompts, documents, [2, 1]).tolist() == [[0, 1], [pytest.approx(0.6), 0]]


def test_a_prompt_shows_the_documents_in_a_drawn_order_cut_each_and_no_more_than_when_reranking(backbone: Path):
    prompted = prompted_of(backbone, length=5)
    group = [Document(f"n{place}", f"{name} " * 40) for place, name in enumerate(["apple", "boat", "cello"])]
    batch = BATCH._replace(queries=QUERIES[:1], documents=[group], positives=[frozenset({"n0"})], scores=[])
    texts = set()
    for seed in range(4):
        [ids] = prompted.write(batch, rng=np.random.default_rng(seed))
        texts.add(prompted.tokenizer.decode(ids))
        assert ids[-1] == prompted.tokenizer.eos_token_id
    assert len(texts) > 1
    assert all(text.count(f"{name} ") <= 5 for text in texts for name in ("apple", "boat", "cello"))
    many = batch._replace(documents=[[Document(str(place), "a goat") for place in range(25)]])
    [ids] = prompted.write(many, rng=np.random.default_rng(0))
    assert prompted.tokenizer.decode(ids).count("a goat") == 20


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    listed = [Group(f"q{i}", (f"d{i}",), tuple(f"d{(i + j) % 12}" for j in range(1, 4))) for i in range(8)]
    write_groups(tmp_path / "groups.jsonl", [group._replace(scores=(3.0, 2.0, 1.0, 0.0)) for group in listed])
    return tmp_path / "groups.jsonl"


def settings(backbone: Path, tiny: Tiny, out: Path, groups: Path, **change: Any) -> train.Config:
    values: dict[str, Any] = {"kind": "retriever", "backbone": str(backbone), "prompt": "e2rank-plain", "out": out}
    values |= {"collection": str(tiny.collection), "groups": str(groups), "batch_size": 8, "warmup_steps": 2}
    values |= {"prompt_loss": E2RANK, "temperature": 0.03, "learning_rate": 0.01, "steps": 30, "processes": 1}
    return train.Config(**values | change)


def test_a_retriever_trains_and_reranks_with_what_it_learned(backbone: Path, tiny: Tiny, tmp_path: Path, groups: Path):
    train.run(settings(backbone, tiny, tmp_path / "m", groups, heldout_split="test", heldout_steps=2))
    log = [record for record in read_log(tmp_path / "m") if "prompt_accuracy" in record]
    first, last = (np.mean([record["loss"] for record in part]) for part in (log[:3], log[-3:]))
    assert last < 0.7 * first
    assert np.mean([record["prompt_accuracy"] for record in log[-3:]]) > log[0]["prompt_accuracy"]
    reranker = load_reranker("embedding", model=str(tmp_path / "m"), prompt="e2rank-plain")
    right = 0
    for number in range(8):
        scores = reranker.score(QUERIES[number], [DOCUMENTS[(number + place) % 12] for place in (3, 0, 2, 1)])
        right += int(scores.argmax() == 1)
    assert right >= 6


def test_steps_with_cached_gradients_learn_the_same(backbone: Path, tiny: Tiny, tmp_path: Path, groups: Path):
    for name, cached in {"plain": False, "cached": True}.items():
        train.run(settings(backbone, tiny, tmp_path / name, groups, steps=2, grad_cache=cached))
    plain, cached = ([record["loss"] for record in read_log(tmp_path / name)] for name in ("plain", "cached"))
    np.testing.assert_allclose(plain, cached, rtol=1e-4)


def test_the_forecast_counts_prompts(
    backbone: Path, tiny: Tiny, tmp_path: Path, groups: Path, capsys: pytest.CaptureFixture[str]
):
    train.run(settings(backbone, tiny, tmp_path / "m", groups, dry_run=True))
    said = capsys.readouterr().out
    assert "8 queries and 32 documents and 8 prompts" in said
    assert "prompts cut" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "first"}, "--prompt first: a retriever learns from a prompt whose last state is a vector"),
        ({"prompt": "jina-reranker-v3"}, "--prompt jina-reranker-v3: a retriever learns"),
        ({"prompt": None}, "--prompt-loss: there is no prompt whose vector ranks documents; add --prompt"),
        ({"negatives": 0}, "--negatives 0: a prompt's vector ranks a positive and its negatives"),
        ({"pooling": "mean"}, "--pooling mean: a prompt's vector is its last token's state"),
        ({"prompt_loss": ("ranknte",)}, "--prompt-loss ranknte: unknown loss 'ranknte'"),
        ({"prompt_loss": ("lm",)}, "--prompt-loss lm: is for answers"),
        ({"prompt_loss": ("bands",)}, "--prompt-loss bands: none of the 8 groups of .* has grades"),
        ({"kind": "late"}, "--prompt: is for a language model or a retriever, and says nothing about a late"),
        ({"kind": "language-model", "prompt": "first"}, "--prompt-loss: is for a retriever"),
        ({"prompt": "e2rank"}, "has no chat template, which the prompt 'e2rank' needs"),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_is_written(
    change: dict, message: str, backbone: Path, tiny: Tiny, tmp_path: Path, groups: Path
):
    with pytest.raises(UserError, match=message) as error:
        train.run(settings(backbone, tiny, tmp_path / "m", groups, **change))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "m").exists()


def test_a_model_that_pools_otherwise_is_refused(tiny: Tiny, tmp_path: Path, groups: Path):
    with pytest.raises(UserError, match="--prompt: the contract pools by mean, and a prompt's vector is its last"):
        train.run(settings(tiny.bert, tiny, tmp_path / "m", groups, contract="bert"))
