"""Opening of rerankers that ask a language model."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from shortlist.math.permutation import Plan
from shortlist.models.folder import ModelFolder
from shortlist.models.generator import Generator
from shortlist.models.load import load_generator
from shortlist.models.remote import Remote
from shortlist.models.run import pick_device, prepare_backbone
from shortlist.rerankers.asked import AskingReranker
from shortlist.rerankers.asking import Questions
from shortlist.rerankers.language import LONGEST
from shortlist.rerankers.limits import Limits
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
    limits: Limits | None = None,
) -> AskingReranker:
    """Load a language model or reach its server, ready to rerank."""
    if folder is None:
        remote = RemoteModel(
            Remote(url, model_name), Renderer(prompt, None, reads=reads), most=most_tokens(prompt, max_length)
        )
        remote.check()
        shared = {"model": [url, model_name], "reads": reads, "prompt": prompt.digest()}
        return AskingReranker(Questions(remote, prompt, shared, limits=limits), plan)
    options = dict(running or {})
    generator = open_generator(folder, **options)
    tokenizer = folder.tokenizer
    longest = max_length or longest_input(generator)
    renderer = Renderer(prompt, tokenizer, most_tokens=longest, reads=reads)
    ends = as_list(getattr(generator.backbone.config, "eos_token_id", None))
    stop = {tokenizer.eos_token_id, end_of_answer(prompt, tokenizer), *ends} - {None}
    local = LocalModel(generator, renderer, stop=sorted(stop))
    shared = {"model": folder.identity, "reads": reads, "precision": options.get("precision", "fp32")}
    return AskingReranker(Questions(local, prompt, shared, limits=limits), plan)


def open_generator(
    folder: ModelFolder,
    *,
    device: torch.device | str | None = None,
    precision: Any = "fp32",
    packed: bool | None = None,
    token_budget: int | None = None,
) -> Generator:
    """Load a language model ready to answer; settings as for `models.run.for_inference`."""
    place = torch.device(device) if device else pick_device()
    backbone, head = load_generator(folder)
    backbone.eval().requires_grad_(False).to(place)
    prepare_backbone(backbone, place, precision=precision, packed=packed)
    if precision == "bf16":
        head.to(torch.bfloat16)
    return Generator(backbone, head.to(place), token_budget=token_budget)


def longest_input(generator: Generator) -> int:
    """Return the most tokens of a prompt and its answer: the model's positions, and no more than `LONGEST`."""
    return min(getattr(generator.backbone.config, "max_position_embeddings", None) or LONGEST, LONGEST)


def most_tokens(prompt: Prompt, max_length: int | None) -> int:
    """Return the most tokens of a server's answer, for a prompt whose own limit needs a tokenizer."""
    if isinstance(prompt.most_tokens, int):
        return prompt.most_tokens
    return min(max_length or LONGEST, 8 * prompt.window + 32)


def as_list(value: Any) -> list[Any]:
    """Return a value in a list, unless it is one."""
    return value if isinstance(value, list) else [value]
