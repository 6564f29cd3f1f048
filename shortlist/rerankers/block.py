"""Reranking in blocks: candidates that do not see one another."""

from functools import partial
from typing import Any, Literal

from shortlist.late import late
from shortlist.models.files import Precision
from shortlist.models.folder import ModelFolder
from shortlist.rerankers.attention import open_readable, readable_prompt
from shortlist.rerankers.prepared import Prepared

Offset = Literal["paper", "code", "near"]
"""A name in `math.blocks.OFFSETS`."""


def in_own_blocks(
    *,
    model: str | ModelFolder | None = None,
    prompt: str | None = None,
    layer: int | None = None,
    offset: Offset = "code",
    answers: Literal["text"] | None = None,
    max_length: int | None = None,
    seed: int = 0,
    precision: Precision = "fp32",
    token_budget: int | None = None,
    packed: bool | None = None,
    device: Any = None,
) -> Prepared:
    """Prepare a reranker in blocks, BlockRank (https://arxiv.org/abs/2510.05396).

    A candidate sees itself and the instruction with the query, so that the cost grows with the number of candidates and
    not with its square. Their order changes nothing.

    Args:
        model: folder or hub name of a causal language model that was trained so.
        prompt: name of a prompt that asks for blocks (None: blockrank).
        layer: layer whose attention scores candidates, from 0 (None: five eighths of all layers).
        offset: position of what follows the candidates.
        answers: text has the relevant candidates' labels generated, and the others keep their order behind them (None:
            scores are read from attention, and layers behind `layer` are not run).
        max_length: most tokens of a candidate (None: 384).
        seed: seed of the labels that candidates get.
        precision: as for `models.run.for_inference`, and so are `packed` and `device`.
        token_budget: most tokens in one forward pass (None: chosen for the device).

    Raises:
        UserError: there is no such model or prompt, or they do not fit together.
    """
    folder, asked = open_readable(model, "block"), readable_prompt(prompt or "blockrank", "blocks")
    how = {"layer": layer, "offset": offset, "answers": answers, "max_length": max_length, "seed": seed}
    running = {"device": device, "precision": precision, "packed": packed, "token_budget": token_budget}
    return Prepared(
        open=partial(
            late("rerankers.block_reranker", "open_block"), folder=folder, prompt=asked, running=running, **how
        ),
        model=folder,
        identities=lambda: {"model": folder.identity},
        settings={"prompt": asked.digest(), **how, "precision": precision},
        whole_lists=True,
        costs=partial(getattr, folder, "costs"),
    )
