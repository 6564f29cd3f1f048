"""Stage `init`: make a new backbone with random weights, and a tokenizer for a collection."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shortlist.config import NotInJob, flag_of
from shortlist.data.collections import open_collection
from shortlist.data.jobs import JobSpec, start_job
from shortlist.errors import UserError
from shortlist.text.tokenizer import train_bpe

if TYPE_CHECKING:
    from transformers import LlamaModel


VERSION = 2
"""2: the tokenizer has a chat template."""

CHAT = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
"""The chat template of new tokenizers: a line for each turn, in few tokens."""


@dataclass(frozen=True, kw_only=True)
class Config:
    collection: str
    """Collection whose documents and queries the tokenizer is trained on."""
    out: NotInJob[Path]
    """Folder for the backbone."""
    split: str = "train"
    """Split whose queries the tokenizer is trained on."""
    layers: int = 3
    """Number of transformer layers."""
    hidden: int = 256
    """Length of a hidden state, and so of a vector; a multiple of 2 x --heads."""
    heads: int = 4
    """Number of attention heads."""
    vocab_size: int = 8192
    """Number of pieces of the tokenizer."""
    words_only: bool = False
    """Use a tokenizer that keeps only lower-cased words and parts of identifiers, without white space and
    punctuation."""
    max_positions: int = 2048
    """Most tokens of an input that the backbone is meant for."""
    seed: int = 0
    """Seed for the weights."""
    overwrite: NotInJob[bool] = False
    """Replace an output of another job instead of refusing."""


def check_shape(config: Config) -> None:
    """Refuse a shape that no model can have.

    Raises:
        UserError: a size is below 1, or the hidden state cannot be shared out among the heads.
    """
    for name in ("layers", "hidden", "heads", "vocab_size", "max_positions"):
        if getattr(config, name) < 1:
            raise UserError(f"{flag_of(name)} is {getattr(config, name)}; expected at least 1.")
    if config.hidden % (2 * config.heads):
        raise UserError(f"--hidden {config.hidden}: expected a multiple of 2 x --heads {config.heads}.")


def new_llama(config: Config, tokenizer) -> "LlamaModel":
    """Make a LLaMA with random weights (https://arxiv.org/abs/2302.13971).

    Its feed-forward layers are 8/3 as wide as its hidden state.

    Raises:
        UserError: the shape is impossible.
    """
    import torch
    from transformers import LlamaConfig, LlamaModel

    check_shape(config)
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
    check_shape(config)
    collection = open_collection(config.collection)
    read = {"collection": collection.identity("corpus", "queries")}
    job = start_job(config, JobSpec("init", read, folder=True, version=VERSION))
    if job.done:
        return

    def texts() -> Iterator[str]:
        for document in collection.corpus():
            yield f"{document.title} {document.text}"
        for query in collection.queries(config.split):
            yield query.text

    tokenizer = train_bpe(texts(), vocab_size=config.vocab_size, words_only=config.words_only)
    tokenizer.chat_template = CHAT
    model = new_llama(config, tokenizer)
    from transformers.utils import logging

    logging.disable_progress_bar()
    with job.result() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    job.finish(parameters=sum(p.numel() for p in model.parameters()), vocab_size=len(tokenizer))
