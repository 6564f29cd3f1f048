"""Opening of rerankers that ask a language model."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from shortlist.data.files import optional_json
from shortlist.errors import UserError
from shortlist.math.permutation import Plan
from shortlist.models.encoder_decoder import EncoderDecoder, load_encoder_decoder
from shortlist.models.folder import ModelFolder
from shortlist.models.generator import Generator
from shortlist.models.load import load_generator
from shortlist.models.reading import make_readable
from shortlist.models.remote import Remote
from shortlist.models.run import pick_device, prepare_backbone
from shortlist.models.shipped import shipped_folder, warn_of_text
from shortlist.rerankers.asked import AskingReranker
from shortlist.rerankers.asking import Questions
from shortlist.rerankers.language import LONGEST_PROMPT
from shortlist.rerankers.limits import CallLimits
from shortlist.rerankers.models import LocalModel, RemoteModel
from shortlist.text.conversations import end_of_answer
from shortlist.text.prompts import Prompt
from shortlist.text.rendering import Renderer


def open_asking(
    *,
    prompt: Prompt,
    reads: str,
    plan: Callable[[int], Plan],
    folder: ModelFolder | None = None,
    running: Mapping[str, Any] | None = None,
    url: str = "",
    model_name: str = "",
    max_length: int | None = None,
    limits: CallLimits | None = None,
) -> AskingReranker:
    """Load a language model or reach its server, ready to rerank."""
    how = {"folder": folder, "running": running, "url": url, "model_name": model_name, "max_length": max_length}
    model, shared = open_language_model(prompt=prompt, reads=reads, **how)
    return AskingReranker(Questions(model, prompt, shared, limits=limits), plan)


def open_language_model(
    *,
    prompt: Prompt,
    reads: str,
    folder: ModelFolder | None = None,
    running: Mapping[str, Any] | None = None,
    url: str = "",
    model_name: str = "",
    max_length: int | None = None,
) -> tuple[LocalModel | RemoteModel, dict[str, Any]]:
    """Load a language model or reach its server, ready to answer questions.

    Returns:
        The model, and what all of its answers depend on, as JSON can hold it.

    Raises:
        UserError: the prompt is for another kind of model, or the server gives no log-probabilities.
    """
    if folder is None:
        most = partial(most_tokens, prompt, max_length)
        remote = RemoteModel(Remote(url, model_name), Renderer(prompt, None, reads=reads), most=most)
        remote.check()
        return remote, {"model": [url, model_name], "reads": reads, "prompt": prompt.digest()}
    options = dict(running or {})
    encoder = is_encoder_decoder(folder)
    if encoder != prompt.encoder:
        found, wanted = ("an encoder-decoder", "a decoder") if encoder else ("a decoder", "an encoder-decoder")
        raise UserError(
            f"{folder.name}: is {found}, and the prompt {prompt.name!r} is for {wanted}; choose another --prompt."
        )
    generator = (load_encoder_decoder if encoder else open_generator)(folder, **options)
    tokenizer = folder.tokenizer
    longest = max_length or longest_input(generator)
    renderer = Renderer(prompt, tokenizer, most_tokens=longest, reads=reads)
    local = LocalModel(generator, renderer, stop=stop_ids(folder, prompt))
    return local, {"model": folder.identity, "reads": reads, "precision": options.get("precision", "fp32")}


def open_generator(
    folder: ModelFolder,
    *,
    device: torch.device | str | None = None,
    precision: Any = "fp32",
    packed: bool | None = None,
    token_budget: int | None = None,
    readable: bool = False,
    headless: bool = False,
) -> Generator:
    """Load a language model ready to answer; settings as for `models.run.for_inference`.

    Args:
        readable: whether its attention is to be read.
        headless: whether its states alone are to be read, so that it needs no head.

    Raises:
        UserError: its attention is to be read and cannot.
    """
    if shipped_folder(folder.name):
        warn_of_text()
    place = torch.device(device) if device else pick_device()
    backbone, head = load_generator(folder, headless=headless)
    backbone.eval().requires_grad_(False).to(place)  # pyright: ignore[reportArgumentType]
    if readable:  # before layers are fused, which cannot be compared with plain attention
        make_readable(backbone)
    prepare_backbone(backbone, place, precision=precision, packed=packed)
    if precision == "bf16":
        head.to(torch.bfloat16)
    return Generator(backbone, head.to(place), token_budget=token_budget)


def is_encoder_decoder(folder: ModelFolder) -> bool:
    """Whether a model has an encoder and a decoder, as its config.json says."""
    return bool(optional_json(folder.whole.backbone_path / "config.json").get("is_encoder_decoder"))


def longest_input(generator: Generator | EncoderDecoder) -> int:
    """Return the most tokens of a prompt with its answer: the model's positions."""
    config = (generator.model if isinstance(generator, EncoderDecoder) else generator.backbone).config
    return getattr(config, "max_position_embeddings", None) or LONGEST_PROMPT


def most_tokens(prompt: Prompt, max_length: int | None, num_docs: int) -> int:
    """Return the most tokens of a server's answer, whose tokenizer is not known."""
    if isinstance(prompt.most_tokens, int):
        return prompt.most_tokens
    return min(max_length or LONGEST_PROMPT, 8 * num_docs + 32)


def stop_ids(folder: ModelFolder, prompt: Prompt) -> list[int]:
    """Find the tokens that end an answer.

    They are those of the chat template, the tokenizer and the model's files. A chat model ends its turn with
    another token than a text.
    """
    found = {folder.tokenizer.eos_token_id, end_of_answer(prompt, folder.tokenizer)}
    for name in ("generation_config.json", "config.json"):
        ids = optional_json(folder.whole.backbone_path / name).get("eos_token_id")
        found.update(ids if isinstance(ids, list) else [ids])
    return sorted(found - {None})
