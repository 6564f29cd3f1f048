"""Training in blocks: what is written, what is learned, and that a trained model ranks as it was trained to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import DOCUMENTS, QUERIES, Tiny, write_speaker

from shortlist.cli import main
from shortlist.errors import UserError
from shortlist.models.outputs import Rows
from shortlist.rerankers.kinds import load_reranker
from shortlist.text.prompts import named_prompt
from shortlist.train.asking import learn_answers
from shortlist.train.block_asking import BlockAsking
from shortlist.train.examples import Batch
from shortlist.train.losses import parse_losses

BATCH = Batch(QUERIES[:2], [DOCUMENTS[:4], DOCUMENTS[1:4]], [frozenset({"d0", "d2"}), frozenset({"d1"})])
LOSSES = ["lm", "infonce=0.1", "infonce.positives=all", "infonce.temperature=0.05"]


@pytest.fixture(scope="module")
def tokenizer(tiny: Tiny) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny.speaker)


def asking_of(tokenizer: Any, losses: list[str] = LOSSES, **changes: Any) -> BlockAsking:
    how = {"num_docs": 4, "block_length": None, "layer": 0, "offset": "near", "positions": 2048} | changes
    return BlockAsking(named_prompt("blockrank"), tokenizer, parse_losses(losses, temperature=None), **how)


def test_the_answer_names_the_relevant_documents_where_they_are_shown(tokenizer: Any):
    for one, relevant in zip(
        asking_of(tokenizer).write(BATCH, rng=np.random.default_rng(0)), ({0, 2}, {0}), strict=True
    ):
        said = tokenizer.decode(one.token_ids[one.asked.start : one.asked.end])
        labels = [str(place) for place, number in enumerate(one.shown) if number in relevant]
        assert said == f"[{', '.join(labels)}]</s>"
        layout = one.asked.layout
        assert layout is not None
        assert sum(layout.lengths) == len(one.token_ids)
        assert len(layout.lengths) == len(one.shown) + 2
        assert tokenizer.decode(one.token_ids[layout.asking]).endswith("[")
        assert layout.asking.stop - layout.asking.start == 2
        assert layout.start == layout.lengths[0] + max(layout.lengths[1:-1])


def test_without_a_loss_of_answers_none_is_written(tokenizer: Any):
    [one, _] = asking_of(tokenizer, ["infonce"]).write(BATCH, rng=np.random.default_rng(0))
    assert one.asked.start == one.asked.end == len(one.token_ids)
    assert tokenizer.decode(one.token_ids).endswith("Final Answer: [")


def test_the_loss_is_that_of_the_answers_and_a_tenth_of_that_of_attention(tokenizer: Any):
    written = asking_of(tokenizer).write(BATCH, rng=np.random.default_rng(1))
    attention = [[0.4, 0.1, 0.2, 0.3], [0.5, 0.2, 0.3]]  # in the order of the groups
    rows = [[3.0, 1.0, *(own[i] for i in one.shown)] for own, one in zip(attention, written, strict=True)]
    given = Rows(torch.tensor([number for row in rows for number in row]), torch.tensor(list(map(len, rows))))
    loss = learn_answers(BATCH, written, parse_losses(LOSSES, temperature=None))(given).loss
    num_tokens = sum(one.asked.end - one.asked.start for one in written)
    counted = [[0.4, 0.1, 0.3], attention[1]]  # a group's other relevant documents do not count
    shares = [torch.softmax(torch.tensor(row) / 0.05, 0) for row in counted]
    contrast = -(shares[0][0].log() + shares[1][0].log()) / 2
    assert loss.item() == pytest.approx(6 / num_tokens + 0.1 * float(contrast), abs=1e-5)


def test_positions_that_the_model_lacks_are_refused(tokenizer: Any):
    with pytest.raises(
        UserError, match=r"positions 16,384 to 16,\d+, behind \d+, and the model has 2,048; use --offset"
    ):
        asking_of(tokenizer, offset="code")


def test_the_largest_input_has_as_many_tokens_as_asked_for(tokenizer: Any):
    for wanted in asking_of(tokenizer).largest(2, 100):
        assert wanted.layout is not None
        assert (sum(wanted.layout.lengths), len(wanted.layout.lengths)) == (100, 6)


@pytest.mark.slow
def test_training_lowers_the_loss_and_its_model_ranks_in_blocks(tiny: Tiny, tmp_path: Path):
    flags = [
        "--prompt",
        "blockrank",
        "--offset",
        "near",
        "--layer",
        "0",
        "--negatives",
        "3",
        "--negatives-from",
        "random",
    ]
    flags += ["--loss", *LOSSES, "--steps", "30", "--batch-size", "8", "--learning-rate", "0.01", "--warmup-steps", "2"]
    start = write_speaker(tmp_path / "start", num_hidden_layers=2)
    paths = ["--backbone", str(start), "--collection", str(tiny.collection), "--out", str(tmp_path / "model")]
    assert main(["train", "language-model", *paths, *flags, "--epochs", "30"]) == 0
    log = [json.loads(line) for line in (tmp_path / "model" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"] / 2
    reranker: Any = load_reranker("block", model=str(tmp_path / "model"), offset="near", layer=1)
    scores = reranker.score(QUERIES[0], DOCUMENTS[:4])
    assert scores.sum() == pytest.approx(1, abs=1e-4)
    assert "sdpa_that_is_read" not in (tmp_path / "model" / "config.json").read_text()


@pytest.mark.slow
def test_settings_of_blocks_are_for_prompts_in_blocks(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    start = ["train", "language-model", "--backbone", str(tiny.speaker), "--collection", str(tiny.collection)]
    start += ["--out", str(tmp_path / "model"), "--layer", "0"]
    for more in ([], ["--prompt", "first"]):
        assert main([*start, *more]) == 1
        assert "--layer: is for a prompt in blocks, such as blockrank; leave it out." in capsys.readouterr().err
    assert main([*start[:-1], "9", "--prompt", "blockrank", "--offset", "near"]) == 1
    assert "--layer is 9; the model has layers 0 to 0" in capsys.readouterr().err
