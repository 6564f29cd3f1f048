"""Run commands in a process in which PyTorch cannot be imported, and print what went wrong.

Its arguments are JSON: commands with words of their messages, the exit code that all should have, and names in them.
"""

import contextlib
import io
import json
import sys


class NoTorch:
    """A finder that refuses PyTorch."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "torch":
            raise AssertionError("PyTorch is imported")


def main(cases: dict[str, str], code: int, names: dict[str, str]) -> None:
    sys.meta_path.insert(0, NoTorch)
    from shortlist.cli import main as run

    for case, words in cases.items():
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                found: object = run([word.format(**names) for word in case.split(" ")])
            except BaseException as error:
                found = repr(error)
        if found != code or words not in " ".join(err.getvalue().split()):
            print(f"{case}: {found}, {err.getvalue()[-500:]!r}", flush=True)
    print("done")


if __name__ == "__main__":
    main(*map(json.loads, sys.argv[1:]))
