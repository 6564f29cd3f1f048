"""How fast lists are scored by attention: in blocks beside full attention over the same tokens, and by heads.

    python benchmarks/attention_speed.py --out benchmarks/attention_speed.md

Random LLaMA weights and random ids, float32, one list at a time. In blocks: an instruction of 60 tokens, documents of
100 and a question of 40. Full attention is the same model, with the same kernels, on the same tokens in one row. The
measured ratio stands beside that of multiplications. Reading heads is the same pass with and without what is read.
In-context re-ranking has transformers' eager attention beside it, for fewer documents, as its maps of all tokens by all
tokens take too much memory for more. Leave the machine alone meanwhile.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from measuring import conditions, publish, quiet, rounds_of, table
from peers import SIZES, Size
from transformers import LlamaConfig, LlamaForCausalLM

from shortlist.data.heads import Head
from shortlist.math.attention import filtered_sums
from shortlist.math.blocks import usual_layer
from shortlist.models.blocks import Blocks, score_blocks
from shortlist.models.generator import Generator
from shortlist.models.heads import OutputHead
from shortlist.models.reading import Probe, by_layer, make_readable
from shortlist.models.run import prepare_backbone

FIRST, LENGTH, LAST, START = 60, 100, 40, 16384
NUM_HEADS = 8
Side = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Config:
    model: tuple[Size, ...] = ("S", "M")
    """Sizes to measure: S has 4 layers of 256 dimensions, M 8 of 512."""
    docs: int = 100
    """Documents of a list."""
    most_docs: int = 500
    """Documents of the longest list in blocks."""
    eager_docs: int = 20
    """Documents of a list that transformers' eager attention scores too."""
    rounds: int = 5
    """Times every side runs, after one run to warm up."""
    out: Path | None = None
    """Markdown file to write too."""


def build(size: Size) -> tuple[Generator, LlamaForCausalLM]:
    """The same weights ready for inference here, and as transformers runs them with eager attention."""
    torch.manual_seed(0)
    known = {"vocab_size": 32_000, "pad_token_id": 0, "max_position_embeddings": 65_536}
    plain = LlamaForCausalLM(LlamaConfig(**SIZES[size], **known)).eval()
    own = LlamaForCausalLM(plain.config).eval()
    own.load_state_dict(plain.state_dict())
    plain.set_attn_implementation("eager")
    make_readable(own.model)
    prepare_backbone(own.model.requires_grad_(False), torch.device("cpu"))
    return Generator(own.model, OutputHead(own.lm_head.weight.detach())), plain


def some_ids(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 32_000, count).tolist()


def blocks_of(num_docs: int) -> Blocks:
    documents = [some_ids(LENGTH, 2 + number) for number in range(num_docs)]
    return Blocks(some_ids(FIRST, 0), documents, some_ids(LAST, 1), slice(LAST - 2, LAST))


def whole(blocks: Blocks) -> list[int]:
    """All tokens as one row."""
    return [*blocks.first, *(token for ids in blocks.documents for token in ids), *blocks.last]


def operations(size: Size, blocks: Blocks, *, sparse: bool) -> float:
    """Multiplications of a pass through all layers."""
    shape, total = SIZES[size], sum(blocks.lengths)
    dim, pairs = shape["hidden_size"], total * (total + 1) / 2
    if sparse:
        documents = sum(len(ids) * FIRST + len(ids) * (len(ids) + 1) / 2 for ids in blocks.documents)
        pairs = FIRST * (FIRST + 1) / 2 + documents + LAST * (total - LAST) + LAST * (LAST + 1) / 2
    return shape["num_hidden_layers"] * (total * (4 * dim**2 + 3 * dim * shape["intermediate_size"]) + 2 * dim * pairs)


def rows_of(seconds: dict[str, list[float]], beside: str) -> list[list[str]]:
    base = statistics.median(seconds[beside])
    return [
        [name, f"{1000 * statistics.median(own):,.0f}", f"{1000 * min(own):,.0f}-{1000 * max(own):,.0f}",
         f"{base / statistics.median(own):.2f}"]
        for name, own in seconds.items()
    ]  # fmt: skip


def full_pass(generator: Generator, ids: list[int]) -> Side:
    return partial(generator.hidden, [ids], [[len(ids) - 2, len(ids) - 1]])


def in_blocks(size: Size, generator: Generator, config: Config) -> str:
    """Blocks beside full attention, with and without an early exit, and a longer list."""
    reader, blocks, longer = generator.reader(), blocks_of(config.docs), blocks_of(config.most_docs)
    layer = usual_layer(SIZES[size]["num_hidden_layers"])
    score = partial(score_blocks, reader, layer=layer, start=START)
    longest = f"in blocks, {config.most_docs} documents"
    sides: dict[str, Side] = {
        "full attention": full_pass(generator, whole(blocks)),
        "in blocks, all layers": partial(score, blocks, early=False),
        f"in blocks, until layer {layer}": partial(score, blocks),
        longest: partial(score, longer, early=False),
    }
    seconds = rounds_of(sides, config.rounds)
    rows = rows_of(seconds, "full attention")
    wanted = operations(size, blocks, sparse=False) / operations(size, blocks, sparse=True)
    measured, growth = (
        float(rows[1][3]),
        statistics.median(seconds[longest]) / statistics.median(seconds["in blocks, all layers"]),
    )
    said = f"Full attention takes {wanted:.2f} times the operations: {measured / wanted:.0%} of it is reached. "
    said += f"From {config.docs} to {config.most_docs} documents the time grows {growth:.2f}-fold."
    heading = f"## Model {size}, {config.docs} documents of {LENGTH} tokens in blocks: ms a list"
    return f"{heading}\n\n{table(['', 'median ms', 'from-to', 'times as fast'], rows)}\n\n{said}"


def by_heads(size: Size, generator: Generator, config: Config) -> str:
    """The pass over a prompt, with and without the attention of some heads."""
    reader, ids = generator.reader(), whole(blocks_of(config.docs))
    shape = SIZES[size]
    middle = range(shape["num_hidden_layers"] // 2, shape["num_hidden_layers"])
    heads = [Head(layer, number) for number in range(shape["num_attention_heads"]) for layer in middle][:NUM_HEADS]
    asking = [slice(len(ids) - LAST, len(ids))]

    def read(count: int | None) -> Side:
        def run() -> Any:
            chosen = [Head(layer, n) for layer in range(shape["num_hidden_layers"]) for n in
                      range(shape["num_attention_heads"])] if count is None else heads[:count]  # fmt: skip
            return reader.run([ids], Probe(by_layer(chosen, reader.device), asking))

        return run

    sides: dict[str, Side] = {
        "the pass alone": partial(reader.run, [ids], Probe()),
        f"with {len(heads)} heads read": read(NUM_HEADS),
        "with all heads read": read(None),
    }
    seconds = rounds_of(sides, config.rounds)
    more = (
        statistics.median(seconds[f"with {len(heads)} heads read"]) / statistics.median(seconds["the pass alone"]) - 1
    )
    heading = f"## Model {size}, a prompt of {len(ids):,} tokens: ms a pass"
    rows = rows_of(seconds, "the pass alone")
    return f"{heading}\n\n{table(['', 'median ms', 'from-to', 'times as fast'], rows)}\n\nReading adds {more:.1%}."


def in_context(size: Size, generator: Generator, plain: LlamaForCausalLM, config: Config) -> str:
    """In-context re-ranking: two queries behind the same documents."""
    blocks = blocks_of(config.eager_docs)
    before, ends = whole(blocks)[:-LAST], [blocks.last, some_ids(LAST - 7, 99)]
    prompts = [[*before, *end] for end in ends]
    spans = [slice(FIRST + LENGTH * i, FIRST + LENGTH * (i + 1)) for i in range(config.eager_docs)]
    asking = [slice(len(before), len(prompt)) for prompt in prompts]

    def scored(found: Sequence[torch.Tensor]) -> torch.Tensor:
        return filtered_sums((found[0][:, : len(before)] - found[1][:, : len(before)]).sum(0), spans)

    plain.set_attn_implementation("eager")

    def eager() -> torch.Tensor:
        found = []
        with torch.no_grad():
            for prompt, span in zip(prompts, asking, strict=True):
                maps = plain.model(torch.tensor([prompt]), output_attentions=True, use_cache=False).attentions
                found.append(torch.cat([layer[0, :, span].mean(1) for layer in maps]))
        return scored(found)

    def ours() -> torch.Tensor:
        return scored(generator.attention(prompts, asking))

    difference = float((eager() - ours()).abs().max())
    seconds = rounds_of({"transformers, eager": eager, "shortlist": ours}, config.rounds)
    heading = f"## Model {size}, in-context re-ranking of {config.eager_docs} documents by all heads: ms a list"
    rows = rows_of(seconds, "transformers, eager")
    said = f"Scores differ by at most {difference:.0e}."
    return f"{heading}\n\n{table(['', 'median ms', 'from-to', 'times as fast'], rows)}\n\n{said}"


def main(config: Config) -> None:
    quiet()
    under, sections = conditions(None), []
    for size in config.model:
        generator, plain = build(size)
        sections.append(in_blocks(size, generator, config))
        sections.append(by_heads(size, generator, config))
        sections.append(in_context(size, generator, plain, config))
    publish("Scoring by attention, float32, token ids to scores", under, sections, config.out)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
