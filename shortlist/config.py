"""Flags and YAML -> a stage's Config.

A YAML file holds saved flags. They are put before the user's flags, and all are parsed together.
"""

import ast
import contextlib
import inspect
import io
import json
import math
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, replace
from enum import Enum
from itertools import pairwise, takewhile
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from shortlist.errors import UserError, unknown

C = TypeVar("C")
T = TypeVar("T")


class Marker(Enum):
    """Reason to leave a setting out of a job's identity, given in its annotation."""

    SPEED_ONLY = "changes how fast, and on what, the work is done"
    NOT_IN_JOB = "changes nothing of what is there once the work is done: where it goes, what is printed, when to stop"


METAVARS: dict[Any, str] = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}

SpeedOnly = Annotated[T, Marker.SPEED_ONLY]
NotInJob = Annotated[T, Marker.NOT_IN_JOB]


def setting_name(field: str) -> str:
    """Return the name of a field's setting, as in YAML and in manifests.

    A field called like a keyword of Python ends in "_", as `as_` does; its setting does not.
    """
    return field.removesuffix("_")


def flag_of(field: str) -> str:
    """Return the flag of a field; for example, `min_clicks` -> `--min-clicks` and `as_` -> `--as`."""
    return f"--{setting_name(field).replace('_', '-')}"


def settings_of(config: Any) -> dict[str, Any]:
    """Return the values of a Config's settings, by their names."""
    return {setting_name(field.name): getattr(config, field.name) for field in fields(config)}


def markers(config: type) -> dict[str, Marker]:
    """Find the marked settings of a Config, with their markers."""
    hints = get_type_hints(config, include_extras=True)
    said = {setting_name(name): getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {name: marker for name, metadata in said.items() for marker in metadata if isinstance(marker, Marker)}


def defaults(config: type) -> dict[str, Any]:
    """Return the default values of a Config's settings, where they have one."""
    return {setting_name(field.name): field.default for field in fields(config) if field.default is not MISSING}


def at_defaults(config: C, names: Iterable[str]) -> C:
    """Return the Config with these fields reset to their defaults."""
    known = defaults(type(config))
    return replace(config, **{name: known[setting_name(name)] for name in names})  # type: ignore[type-var]


def refuse_idle(config: Any, names: Iterable[str], why: str) -> None:
    """Refuse settings that would change nothing beside the others.

    Args:
        why: what is said behind the setting's flag, such as `is for --check`.

    Raises:
        UserError: one of them differs from its default.
    """
    given, known = settings_of(config), defaults(type(config))
    for name in map(setting_name, names):
        if given[name] != known[name]:
            raise UserError(f"{flag_of(name)} {why}; leave it out.")


def parse(
    config: type[C],
    argv: Sequence[str],
    *,
    prog: str,
    description: str | None = None,
    gone: Mapping[str, str] = MappingProxyType({}),
) -> C:
    """Parse flags into a Config; `--config FILE` reads flags saved in a YAML file.

    Args:
        gone: settings that no longer exist, with their replacements.

    Raises:
        UserError: the file cannot be read or names a setting that does not exist.
        SystemExit: usage error (2) or --help (0), with the message printed.
    """
    import tyro

    for word in argv:
        given = word.partition("=")[0]
        name = given.removeprefix("--").replace("-", "_")
        if given.startswith("--") and name in gone:
            print(f"{prog}: {given} is now `{gone[name]}`.", file=sys.stderr)
            raise SystemExit(2)
    saved, rest = _saved_flags(config, argv, gone)
    first = list(takewhile(lambda word: argv[0][:1] != "-" and word[:1] != "-", rest))  # no saved list may take them
    words = [*first, *saved, *rest[len(first) :]]
    found = tyro.cli(_for_help(config), args=words, prog=prog, description=description)
    return config(**{field.name: getattr(found, field.name) for field in fields(config)})  # type: ignore[arg-type]


def _for_help(config: type) -> type:
    """Return the Config with flags that read well in a help of any width.

    tyro would keep the line breaks of our docstrings, and call what may be left out None.
    """
    import tyro

    said, told = descriptions(config), dict[str, Any]()
    for name, hint in get_type_hints(config, include_extras=True).items():
        shown = tyro.conf.arg(
            help=said.get(name),
            metavar=_metavar(get_args(hint)[0] if get_origin(hint) is Annotated else hint),
            help_behavior_hint=lambda default: "" if default == "None" else f"(default: {default})",
        )
        told[name] = Annotated[hint, shown]
    return type(config.__name__, (config,), {"__annotations__": told, "__module__": config.__module__})


def _metavar(hint: Any) -> str | None:
    """Return the placeholder for the value of an optional flag; None: leave it to tyro."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    items = [get_args(kind)[0] if get_origin(kind) is tuple else kind for kind in kinds]
    if type(None) not in get_args(hint) or not all(item in METAVARS for item in items):
        return None
    words = [METAVARS[item] for item in items]
    return "|".join(
        f"[{word} [{word} ...]]" if get_origin(kind) is tuple else word for word, kind in zip(words, kinds, strict=True)
    )


def descriptions(config: type) -> dict[str, str]:
    """Return the docstrings of a Config's fields, each in one line."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, text in pairwise(definition.body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(str(words))):
                found[name] = " ".join(words.split())
    return found


def from_settings(
    config: type[C], settings: Mapping[str, Any], *, where: str, gone: Mapping[str, str] = MappingProxyType({})
) -> C:
    """Make a Config from settings, checked exactly as flags are.

    Raises:
        UserError: a name or value does not fit; `where` names the file and step in the message.
    """
    import tyro

    flags = to_flags(config, settings, where=where, gone=gone)
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message), contextlib.redirect_stdout(message):
            return tyro.cli(config, args=flags, prog=where)
    except SystemExit:
        words = re.sub("[╭╮╰╯─│]|-{4,}", " ", message.getvalue()).partition("For full helptext")[0]
        raise UserError(f"{where}: {' '.join(words.split())}") from None


def to_flags(
    config: type, settings: Mapping[str, Any], *, where: str, gone: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """Convert settings to command-line flags.

    For example, {"k": 10, "runs": [a, b], "json": True} -> --k=10 --runs a b --json. A mapping becomes JSON.

    Raises:
        UserError: the Config does not have a setting.
    """
    known = {setting_name(field.name): field for field in fields(config)}
    flags: list[str] = []
    for name, value in settings.items():
        name = name.replace("-", "_")
        if name in gone:
            raise UserError(f"{where}: `{name}` is now `{gone[name]}`.")
        if name not in known:
            raise UserError(f"{where}: {unknown('setting', name, known)}")
        word = flag_of(name)
        if _is_positional(known[name]):
            flags[:0] = map(str, value) if isinstance(value, (list, tuple)) else [str(value)]
        elif isinstance(value, bool):
            flags.append(word if value else f"--no-{word.removeprefix('--')}")
        elif isinstance(value, (list, tuple)):
            flags += [word, *map(str, value)]
        elif isinstance(value, dict):
            flags.append(f"{word}={json.dumps(value, default=str)}")
        else:
            flags.append(f"{word}={value}")  # one word, as the value may begin with a dash
    return flags


def _is_positional(field: Field) -> bool:
    return "Positional" in str(field.type)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: the file does not exist, is not YAML, or does not hold a mapping.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file; expected a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds {type(content).__name__}"
        raise UserError(f"{path}: {found}; expected `name: value` lines.")
    return content


def _saved_flags(config: type, argv: Sequence[str], gone: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Split `--config FILE` off the flags and read the file's flags."""
    positional = {field.name for field in fields(config) if _is_positional(field)}
    saved: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name != "--config":
            rest.append(word)
            continue
        path = value if equals else next(words, None)
        if not path:
            print("--config needs the name of a YAML file.", file=sys.stderr)
            raise SystemExit(2)
        settings = load_yaml(Path(path))
        if argv[0][:1] != "-":  # the user gives it; unlike a flag, a second one would not replace the first
            settings = {name: v for name, v in settings.items() if name not in positional}
        saved += to_flags(config, settings, where=path, gone=gone)
    return saved, rest


def read_options(where: str, owner: str, text: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Read `name=value,name=value`, each value as what its default is.

    The parts of a tuple stand between plus signs.

    Args:
        where: what the errors name, such as a flag with its value.
        owner: what the options belong to.
        text: the options; may be empty.
        defaults: a default for every option that there is.

    Raises:
        UserError: an unknown option, one said twice, or a value that does not fit.
    """
    options: dict[str, Any] = {}
    for item in text.split(",") if text else ():
        name, _, value = item.partition("=")
        if name not in defaults:
            raise UserError(f"{where}: {unknown(f'option of {owner}', name, defaults)}")
        if name in options:
            raise UserError(f"{where}: {name} is said twice; keep one.")
        try:
            options[name] = _read_option(defaults[name], value)
        except ValueError:
            kind = _OPTION_KINDS[type(defaults[name])]
            raise UserError(f"{where}: {name} is {value!r}; expected {kind}.") from None
    return options


_OPTION_KINDS = {int: "a whole number", float: "a number", str: "a word", tuple: "names with + between them"}


def _read_option(default: Any, value: str) -> Any:
    if not value:
        raise ValueError
    if isinstance(default, tuple):
        return tuple(value.split("+"))
    parsed = type(default)(value)
    if isinstance(parsed, float) and not math.isfinite(parsed):
        raise ValueError
    return parsed


def keyword_types(function: Any) -> dict[str, tuple[Any, bool]]:
    """Return the types of a function's keyword-only parameters, and whether each is required.

    Those of a TypedDict that the function unpacks are among them; none of these is required.
    """
    hints = get_type_hints(getattr(function, "func", function))  # a partial has none
    found: dict[str, tuple[Any, bool]] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            found[name] = (hints.get(name), parameter.default is inspect.Parameter.empty)
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD and get_args(hints.get(name)):
            [shared] = get_args(hints[name])
            found |= {key: (hint, False) for key, hint in get_type_hints(shared).items()}
    return found
