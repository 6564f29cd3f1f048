"""`shortlist <stage> [flags]`: finds the stage, parses its Config, runs it; turns errors into one line and a code."""

import errno
import os
import sys
import time
from importlib import import_module

import shortlist
from shortlist.errors import UserError, unknown

STAGES = {
    "index": "build a BM25 index",
    "functions": "make a collection of Python functions and what their docstrings say",
    "init": "make a new backbone: random weights, and a tokenizer fitted to a collection",
    "convert": "turn training data and vectors of other tools into ours, and training data into theirs",
    "train": "fine-tune a retriever or a reranker",
    "inspect": "show what a model is, and what it makes of a query and a document",
    "export": "write a model as other tools load it",
    "push": "put a model on the hub, with a card",
    "encode": "embed a corpus",
    "verify": "check that vectors are as they were encoded, and repair them",
    "search": "find each query's long list, by BM25, vectors or both",
    "mine": "draw hard negatives from runs",
    "rerank": "reorder a run with a reranker",
    "fuse": "make one run of several",
    "evaluate": "measure runs against judgements",
    "diagnose": "where relevant documents are lost, and which queries",
    "lengths": "how many tokens a collection's texts have",
    "table": "put results beside published ones, in the rows and columns of a published table",
    "compare": "what runs are worth beside what they cost",
    "report": "write one page about everything that some folders hold",
    "run": "run the stages of a recipe, skipping what is done",
    "serve": "search, embed and rerank over HTTP, with a page to search on",
    "demo": "train and measure a whole system on this machine's own Python sources",
}
MODULES = {"run": "recipe", "push": "export.push"}

EXPECTED = (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR)
"""Failures of the machine that a user can mend; any other OSError is our bug and keeps its traceback."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 1 the user's error, 2 usage, 130 interrupted."""
    try:
        code = _main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"shortlist {shortlist.__version__}")
        return 0
    name, *rest = argv
    if name not in STAGES:
        print(f"shortlist: {unknown('command', name, STAGES)}", file=sys.stderr)
        return 2
    return _run(name, rest)


def _run(name: str, argv: list[str]) -> int:
    from shortlist.config import parse

    try:
        stage = import_module(f"shortlist.{MODULES.get(name, name)}")  # late, so that --help never loads torch
        stage.run(parse(stage.Config, argv, prog=f"shortlist {name}", description=STAGES[name]))
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(10)  # of processes that all fail alike the first one speaks, and torchrun ends the others
        print(f"shortlist {name}: {error}", file=sys.stderr)
        return 1
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        print(f"\nshortlist {name}: interrupted; the same command goes on from what is finished.", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in EXPECTED:
            raise
        print(
            f"shortlist {name}: {error.filename or 'writing'}: {error.strerror}; mend that and run it again.",
            file=sys.stderr,
        )
        return 1
    return 0


def _help() -> str:
    width = max(map(len, STAGES))
    lines = [f"  {name:{width}}  {words}" for name, words in STAGES.items()]
    return "\n".join(
        [
            "usage: shortlist COMMAND [flags]",
            "",
            "Fine-tune language models to search: a retriever finds a long list, a reranker turns it into a short one.",
            "",
            *lines,
            "",
            "shortlist COMMAND --help   says a command's flags; --config FILE.yaml reads saved ones",
            "shortlist --version",
        ]
    )
