"""Stage `init`: a new backbone, random weights in a given shape, with a tokenizer fitted to a collection's text."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaModel
from transformers.utils import logging

from shortlist.config import NotInJob
from shortlist.data.collections import open_collection
from shortlist.data.manifest import start_job
from shortlist.errors import UserError
from shortlist.text.tokenizer import train_bpe


@dataclass(frozen=True, kw_only=True)
class Config:
    collection: str
    """Its documents and queries are what the tokenizer is fitted to."""
    out: NotInJob[Path]
    """Folder for the backbone."""
    split: str = "train"
    """Queries that the tokenizer may see."""
    layers: int = 3
    """Transformer layers."""
    hidden: int = 256
    """Length of a hidden state, and so of a vector."""
    heads: int = 4
    """Attention heads; --hidden must be a multiple."""
    vocab_size: int = 8192
    """Pieces of the tokenizer."""
    words_only: bool = False
    """A tokenizer that sees lower-cased words and parts of identifiers, no white space and no punctuation."""
    max_positions: int = 2048
    """Longest input the backbone is meant for, in tokens."""
    seed: int = 0
    """Of the weights."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def new_llama(config: Config, tokenizer) -> LlamaModel:
    """A LLaMA with random weights (https://arxiv.org/abs/2302.13971), its feed-forward 8/3 as wide as its hidden state.

    Raises:
        UserError: the shape is impossible.
    """
    if config.hidden % (2 * config.heads):
        raise UserError(f"--hidden {config.hidden}: expected a multiple of 2 x --heads {config.heads}.")
    torch.manual_seed(config.seed)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden,
        intermediate_size=-(-config.hidden * 8 // 3 // 32) * 32,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.max_positions,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaModel(shape)


def run(config: Config) -> None:
    """Write the backbone and its tokenizer."""
    collection = open_collection(config.collection)
    job = start_job(
        config,
        stage="init",
        inputs={"collection": collection.identity("corpus", "queries")},
        folder=True,
    )
    if job.done:
        return

    def texts() -> Iterator[str]:
        for document in collection.corpus():
            yield f"{document.title} {document.text}"
        for query in collection.queries(config.split):
            yield query.text

    tokenizer = train_bpe(texts(), vocab_size=config.vocab_size, words_only=config.words_only)
    model = new_llama(config, tokenizer)
    logging.disable_progress_bar()
    model.save_pretrained(job.out)
    tokenizer.save_pretrained(job.out)
    job.finish(parameters=sum(p.numel() for p in model.parameters()), vocab_size=len(tokenizer))
