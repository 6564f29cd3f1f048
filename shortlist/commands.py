"""The commands, with their modules and descriptions; a module has `Config` and `run`."""

from typing import NamedTuple


class Command(NamedTuple):
    """A command of `shortlist`, which may also be a stage of a recipe."""

    module: str
    """Name of its module within the package, imported when the command runs."""
    words: str
    """Description for the list of commands."""


COMMANDS = {
    "index": Command("index", "build an index over words or vectors"),
    "functions": Command("demo.functions", "make a collection of Python functions and what their docstrings say"),
    "init": Command("init", "make a new backbone: random weights, and a tokenizer fitted to a collection"),
    "convert": Command(
        "convert", "turn training data and vectors of other tools into ours, and training data into theirs"
    ),
    "train": Command("train", "fine-tune a retriever or a reranker"),
    "inspect": Command("inspect", "show what a model is, and what it makes of a query and a document"),
    "export": Command("export", "write a model as other tools load it"),
    "push": Command("export.push", "put a model on the hub, with a card"),
    "encode": Command("encode", "embed a corpus"),
    "verify": Command("verify", "check that an output is as it was written, and repair vectors"),
    "search": Command("search", "find each query's long list, by BM25, vectors or both"),
    "ask": Command("ask", "answer one question with a pipeline: first stages, fusion, rerankers"),
    "mine": Command("mine", "draw hard negatives from runs"),
    "rerank": Command("rerank", "reorder a run with a reranker"),
    "fuse": Command("fuse", "make one run of several"),
    "evaluate": Command("evaluation.evaluate", "measure runs against judgements, beside what they cost"),
    "diagnose": Command("evaluation.diagnose", "where relevant documents are lost, and which queries"),
    "lengths": Command("evaluation.lengths", "how many tokens a collection's texts have"),
    "table": Command(
        "evaluation.table", "put results beside published ones, in the rows and columns of a published table"
    ),
    "report": Command("evaluation.report", "write one page about everything that some folders hold"),
    "run": Command("recipe", "run the stages of a recipe, skipping what is done"),
    "serve": Command("serve", "search, embed and rerank over HTTP, with a page to search on"),
    "demo": Command("demo.system", "train and measure a whole system on this machine's own Python sources"),
}

GONE: dict[str, str] = {
    "compare": "shortlist evaluate --costs",
    "search --query": "shortlist ask TEXT",
    "search --demo": "shortlist ask --demo TEXT",
    "search --demo-folder": "shortlist ask --demo TEXT --demo-folder FOLDER",
    "search --reranker": "shortlist ask TEXT --reranker MODEL",
    "search --depth": "shortlist ask TEXT --depth",
    "search --reranker-share": "shortlist ask TEXT --reranker-share",
    "train --distill": "--loss infonce=0.5 kl=0.5",
    "train --teacher-temperature": "--loss infonce=0.5 kl=0.5 kl.teacher_temperature=2",
}
"""Commands, and flags as `COMMAND --FLAG`, that no longer exist, with their replacements."""


def gone_settings(command: str) -> dict[str, str]:
    """Find a command's settings that no longer exist, with their replacements."""
    flags = {name.removeprefix(f"{command} --"): new for name, new in GONE.items() if name.startswith(f"{command} --")}
    return {flag.replace("-", "_"): new for flag, new in flags.items()}
