"""Rerankers that ask a language model, before it is loaded: what they share."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypedDict

from shortlist.errors import UserError, check_installed
from shortlist.late import late
from shortlist.math.permutation import Plan, in_both_orders
from shortlist.models.files import Precision
from shortlist.models.folder import ModelFolder, open_folder
from shortlist.rerankers.prepared import Prepared
from shortlist.text.prompts import Answers, Asks, Prompt, named_prompt

Orders = Literal[1, 2]
"""In how many orders documents are shown together: in one, or turned round too."""


class LanguageModelSettings(TypedDict, total=False):
    """Settings that all methods with a language model have."""

    model: str | ModelFolder | None
    """Folder or hub name of a causal language model, or the address of an OpenAI-compatible server: `http...`."""
    model_name: str | None
    """The server's name of the model."""
    prompt: str | None
    """Name of the prompt (None: the method's own)."""
    answers: Answers | None
    """How answers are had (None: as the prompt says)."""
    max_length: int | None
    """Most tokens of a prompt with its answer (None: the model's limit, or 4,096 if it has none)."""
    precision: Precision
    """As for `models.run.for_inference`, and so are `packed` and `device`."""
    token_budget: int | None
    """Most tokens in one forward pass, padding included (None: chosen for the device)."""
    packed: bool | None
    device: Any


def in_orders(plan: Callable[[int], Plan], orders: Orders) -> Callable[[int], Plan]:
    """Return a plan of lists that shows documents in as many orders."""
    return plan if orders == 1 else partial(in_both_orders, plan)


LONGEST_PROMPT = 4096
"""Most tokens of a prompt and its answer where neither the user nor the model says."""


def is_server(model: Any) -> bool:
    """Whether a model's name is the address of a server."""
    return isinstance(model, str) and model.startswith(("http://", "https://"))


def by_language_model(
    own: str,
    asks: tuple[Asks, ...],
    plan: Callable[[Prompt], Callable[[int], Plan]],
    *,
    settings: Mapping[str, Any],
    model: LanguageModelSettings,
    adjust: Callable[[Prompt], Prompt] | None = None,
) -> Prepared:
    """Prepare a reranker that asks a language model.

    Args:
        own: name of the method's own prompt.
        asks: what the method's prompts may ask for.
        plan: makes the plan of lists for a prompt.
        settings: the method's own settings, by name.
        model: the model and its prompt.
        adjust: changes the prompt.

    Raises:
        UserError: there is no such model or prompt, or they do not fit together.
    """
    prompt = named_prompt(model.get("prompt") or own)
    if prompt.asks not in asks:
        raise UserError(f"--prompt: {prompt.name!r} asks for {ASKED[prompt.asks]}; this method needs {ASKED[asks[0]]}.")
    prompt = prompt if adjust is None else adjust(prompt)
    if prompt.encoder and prompt.asks != "likelihood":
        raise UserError(
            f"--prompt: {prompt.name!r} is for an encoder with a decoder, which is not asked here; choose "
            "another prompt, with a causal language model."
        )
    if model.get("model") is None:
        raise UserError("--model is missing: a language model's folder or hub name, or the address of a server.")
    reads = model.get("answers") or prompt.reads
    if reads != "text" and prompt.asks in ("grades", "top"):
        raise UserError(f"--answers: what {prompt.name!r} asks for is not read from {reads}; choose text.")
    if reads == "likelihood" and is_server(model.get("model")):
        raise UserError("--answers: a server does not tell how likely given texts are; choose text or logits.")
    plan_of = plan(prompt)
    check_plan(plan_of, prompt)
    shared = {"prompt": prompt.digest(), "answers": reads, "max_length": model.get("max_length")}
    open_with = how_to_open(model)
    found = {name: value for name, value in settings.items() if value is not None}
    return Prepared(
        open=partial(late("rerankers.opening", "open_asking"), prompt=prompt, reads=reads, plan=plan_of, **open_with),
        model=open_with.get("folder"),
        identities=partial(model_identity, open_with),
        settings={**shared, **found, "precision": model.get("precision", "fp32")},
        whole_lists=True,
        asks=True,
    )


ASKED = {
    "order": "all documents in order",
    "top": "the best few",
    "best": "the best one",
    "worst": "the worst one",
    "pair": "the better of two",
    "grades": "grades of a group",
    "grade": "a grade",
    "states": "hidden states",
    "queries": "queries",
    "text": "a text",
    "attention": "nothing but attention",
    "blocks": "the relevant documents, each in a block of its own",
    "likelihood": "how likely the query is",
}


def check_plan(plan: Callable[[int], Plan], prompt: Prompt) -> None:
    """Refuse settings that a plan or its prompt cannot have.

    Raises:
        UserError: one is out of range.
    """
    flags = "--window, --stride, --top, --passes, --repeats"
    try:
        asks = next(plan(100), None)
    except ValueError as error:
        raise UserError(f"{error} ({flags}).") from None
    if not asks:
        raise UserError(f"with these settings nothing is asked; expected at least 1 ({flags}).")
    shown, most = max(map(len, asks)), prompt.most_documents()
    if most is not None and shown > most:
        raise UserError(f"--window: shows {shown} documents at once; the prompt {prompt.name!r} has {most} labels.")


def language_model(
    model: str, *, model_name: str | None, max_length: int | None, token_budget: int | None, precision: Precision
) -> LanguageModelSettings:
    """Return the settings of a model that is asked by a stage of its own."""
    settings: LanguageModelSettings = {
        "model": model,
        "model_name": model_name,
        "max_length": max_length,
        "token_budget": token_budget,
    }
    if precision != "fp32":  # a server refuses to be told one
        settings["precision"] = precision
    return settings


def how_to_open(model: LanguageModelSettings) -> dict[str, Any]:
    """Resolve a language model's name: the arguments of `open_language_model` that name it.

    Raises:
        UserError: there is no such model, or a setting says nothing about it.
    """
    return (_server if is_server(model.get("model")) else _local)(model)


def _local(model: LanguageModelSettings) -> dict[str, Any]:
    if model.get("model_name"):
        raise UserError("--model-name is a server's name of a model; without a server, leave it out.")
    name = model.get("model")
    folder = open_folder(name, wanted="language-model") if isinstance(name, str) else name
    running = {key: value for key, value in model.items() if key in ("device", "precision", "packed", "token_budget")}
    return {"folder": folder, "max_length": model.get("max_length"), "running": running}


def _server(model: LanguageModelSettings) -> dict[str, Any]:
    check_installed(f"--model {model.get('model')}", {"httpx": "'shortlist[remote]'"})
    if not model.get("model_name"):
        raise UserError("--model-name is missing: the name that the server has for the model.")
    for name in ("precision", "token_budget", "packed", "device"):
        if model.get(name):
            raise UserError(f"--{name.replace('_', '-')}: is the server's own business; leave it out.")
    return {"url": model.get("model"), "model_name": model.get("model_name"), "max_length": model.get("max_length")}


def model_identity(opened: Mapping[str, Any]) -> dict[str, str]:
    """Return what identifies a model that `how_to_open` has resolved."""
    folder = opened.get("folder")
    return {"model": folder.identity if folder else f"{opened['url']} {opened['model_name']}"}
