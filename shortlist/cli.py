"""Command line: `shortlist <stage> [flags]`.

It finds the stage, parses its Config and runs it. Errors become one line and an exit code.
"""

import errno
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from traceback import format_exc

from shortlist.commands import COMMANDS, GONE, GROUPS, carry_out, gone_settings
from shortlist.cores import keep_few_shapes, wait_briefly
from shortlist.data.contents import NO_VERIFY
from shortlist.errors import UserError, unknown
from shortlist.together import Failure, join_in, shared_folder, tell
from shortlist.version import __version__

MACHINE_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.EIO),
)
"""System errors that a user can fix; any other OSError is a bug and keeps its traceback."""

NO_MEMORY = re.compile("out ?of ?memory|(can.?t|cannot|unable to|failed to) allocate|bad_alloc|not enough memory", re.I)
"""Words of libraries whose errors of missing memory are no MemoryError."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    The code is 0 when done, 1 for an error that the user can fix, 2 for wrong usage, and 130 when interrupted.
    """
    wait_briefly()
    keep_few_shapes()
    if shared_folder():
        join_in()
    try:
        code = _main(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if shared_folder():  # on a busy machine a library's thread may still run, and abort an ordinary exit
        sys.stderr.flush()
        os._exit(code)
    return code


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"shortlist {__version__}")
        return 0
    name, *rest = argv
    if name == "--completion":
        return _complete(rest)
    if name in GONE:
        print(f"shortlist: `{name}` is now `{GONE[name]}`.", file=sys.stderr)
        return 2
    if name not in COMMANDS:
        print(f"shortlist: {unknown('command', name, COMMANDS)}", file=sys.stderr)
        return 2
    return _run(name, rest)


def _complete(shells: list[str]) -> int:
    from shortlist.completion import SHELLS

    if len(shells) != 1 or shells[0] not in SHELLS:
        print(f"shortlist: --completion takes one of {', '.join(SHELLS)}.", file=sys.stderr)
        return 2
    print(SHELLS[shells[0]](), end="")
    return 0


def _run(name: str, argv: list[str]) -> int:
    from shortlist.config import parse

    argv, unverified = [word for word in argv if word != "--no-verify"], "--no-verify" in argv
    try:
        command, gone = COMMANDS[name], gone_settings(name)
        settings = import_module(command.light)  # late, so that --help loads little
        words = f"{command.words}\n\nExample:\n\n{_example(name)}"
        config = parse(settings.Config, argv, prog=f"shortlist {name}", description=words, gone=gone)
        with _comparing(not unverified):
            carry_out(name, config)
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0" and not shared_folder():
            time.sleep(10)  # if all processes fail alike, the first prints the error and torchrun ends the others
        return _complain(name, str(error))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        print(f"\nshortlist {name}: interrupted; the same command goes on from what is finished.", file=sys.stderr)
        return 130
    except Exception as error:
        if (words := _of_the_machine(error)) is not None:
            return _complain(name, words)
        if not tell(Failure(format_exc(), for_user=False)):
            raise
        return 1
    return 0


def _complain(name: str, why: str) -> int:
    """Print why a command failed, and return its exit code.

    A process that was started to work with others leaves that to the one which has started it.
    """
    if not tell(Failure(why)):
        print(f"shortlist {name}: {why}", file=sys.stderr)
    return 1


def _example(name: str) -> str:
    """Return a command line to try, in lines that fit into 80 columns."""
    words = f"shortlist {name} {COMMANDS[name].example}".rstrip()
    lines = textwrap.wrap(words, 74, break_long_words=False, break_on_hyphens=False)
    return "  " + " \\\n    ".join(lines)


def _of_the_machine(error: BaseException) -> str | None:
    """Describe an error that comes from a limit of the machine; None for other errors."""
    from shortlist.data.files import FULL

    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or NO_MEMORY.search(text):
        return "memory ran out; give it more, or smaller pieces to work on, and run it again."
    if isinstance(error, OSError):
        known = error.errno in MACHINE_ERRORS
        return f"{error.filename or 'writing'}: {error.strerror}; mend that and run it again." if known else None
    for number in FULL:  # libraries that are not in Python put the system's words into errors of their own
        if os.strerror(number) in text or f"(os error {number})" in text:
            return f"writing: {os.strerror(number)}; mend that and run it again."
    return None


@contextmanager
def _comparing(wanted: bool) -> Iterator[None]:
    """Compare what is read with its digests, or do not, in workers too."""
    if wanted:
        yield
        return
    before = os.environ.get(NO_VERIFY)
    os.environ[NO_VERIFY] = "1"
    try:
        yield
    finally:
        os.environ.pop(NO_VERIFY) if before is None else os.environ.update({NO_VERIFY: before})


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = []
    for group, names in GROUPS.items():
        lines += [f"{group}:", *(f"  {name:{width}}  {COMMANDS[name].words}" for name in names), ""]
    return "\n".join(
        [
            "usage: shortlist COMMAND [flags]",
            "",
            "Fine-tune language models to search: a retriever finds a long list, a reranker",
            "turns it into a short one.",
            "",
            *lines,
            "shortlist COMMAND --help             a command's flags, and an example",
            "shortlist COMMAND --config FILE      flags saved in YAML",
            "shortlist COMMAND --no-verify        read outputs without comparing their bytes",
            "shortlist --completion SHELL         completion for bash, zsh or fish, such as",
            '                                     eval "$(shortlist --completion bash)"',
            "shortlist --version",
        ]
    )
