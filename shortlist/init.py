"""Stage `init`: make a backbone, with random weights or from another's lower layers."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from shortlist.config import NotInJob, flag_of, refuse_idle
from shortlist.data.collections import open_collection
from shortlist.data.jobs import JobSpec, start_job
from shortlist.errors import UserError, not_given
from shortlist.progress import say
from shortlist.text.tokenizer import train_bpe

if TYPE_CHECKING:
    from transformers import LlamaModel, PreTrainedModel

    from shortlist.models.folder import ModelFolder


LAYERS = 3
OF_NEW = ("collection", "split", "hidden", "heads", "vocab_size", "words_only", "max_positions", "seed")
"""Settings of a backbone that is not made from another."""
VERSION = 2
"""2: the tokenizer has a chat template."""

CHAT = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
"""The chat template of new tokenizers: a line for each turn, in few tokens."""


@dataclass(frozen=True, kw_only=True)
class Config:
    collection: str | None = None
    """Collection whose documents and queries the tokenizer is trained on."""
    from_: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Model to take weights and tokenizer from, in place of a collection: folder or hub name. It keeps its first
    --layers layers and, as a retriever of one vector a text, its input contract."""
    out: NotInJob[Path]
    """Folder for the backbone."""
    split: str = "train"
    """Split whose queries the tokenizer is trained on."""
    layers: int | None = None
    """Number of transformer layers (None: 3, or all of those of --from)."""
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
        value = getattr(config, name)
        if value is not None and value < 1:
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
        num_hidden_layers=LAYERS if config.layers is None else config.layers,
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
    if config.from_ is not None:
        _shorten(config, config.from_)
        return
    if config.collection is None:
        raise not_given(
            "--collection", "a tokenizer is trained on its texts; or name a model to keep layers of by --from"
        )
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


def keep_layers(model: "PreTrainedModel", layers: int) -> None:
    """Drop all but the first layers of a backbone, in place.

    Raises:
        UserError: the backbone has fewer.
    """
    from shortlist.models.backbone import transformer_layers

    stack = transformer_layers(model)
    if not 1 <= layers <= len(stack):
        raise UserError(f"--layers is {layers}; expected 1 to {len(stack)}, as many as the model has.")
    del stack[layers:]
    model.config.num_hidden_layers = layers
    if getattr(model.config, "layer_types", None):  # the kind of attention of each layer
        model.config.layer_types = model.config.layer_types[:layers]


def _shorten(config: Config, name: str) -> None:
    """Write a backbone of the first layers of another, with its tokenizer and contract."""
    refuse_idle(config, OF_NEW, "is for a new backbone, and one made by --from has that of its model")
    from shortlist.models.folder import CONTRACT, open_folder

    folder = open_folder(name)
    if folder.base is not None:
        raise UserError(
            f"--from {name}: is an adapter; merge it first: shortlist export {name} --to merged --out MERGED."
        )
    job = start_job(config, JobSpec("init", {"from": folder.identity}, folder=True, version=VERSION))
    if job.done:
        return
    from transformers.utils import logging

    from shortlist.models.backbone import load_backbone, transformer_layers

    logging.disable_progress_bar()
    model = load_backbone(str(folder.backbone_path))
    before = sum(p.numel() for p in model.parameters())
    if config.layers is not None:
        keep_layers(model, config.layers)
    with job.result() as out:
        model.save_pretrained(out)
        folder.tokenizer.save_pretrained(out)
        if _is_backbone_alone(folder):
            shutil.copyfile(folder.path / CONTRACT, out / CONTRACT)
        elif (folder.path / CONTRACT).exists():
            say("init: what the model has above its backbone is left out, and its contract; train it anew.")
    parameters = sum(p.numel() for p in model.parameters())
    say(f"init: {len(transformer_layers(model))} layers, {parameters:,} of {before:,} parameters.")
    job.finish(parameters=parameters, vocab_size=len(folder.tokenizer))


def _is_backbone_alone(folder: "ModelFolder") -> bool:
    """Whether a model has a contract of ours and no weights above its backbone."""
    from shortlist.models.folder import CONTRACT
    from shortlist.text.contract import PER_TOKEN, SPARSE

    contract = folder.own_contract("document") if (folder.path / CONTRACT).exists() else None
    return contract is not None and contract.reading.pooling not in (PER_TOKEN, *SPARSE)
