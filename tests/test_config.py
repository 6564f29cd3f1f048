from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from shortlist.config import at_defaults, flag_of, from_settings, load_yaml, parse, settings_of, to_flags
from shortlist.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Config:
    kind: tyro.conf.Positional[Literal["cat", "dog"]] = "cat"
    """Which animal."""
    out: Path
    """Where to."""
    runs: tuple[Path, ...] = ()
    """What from."""
    batch_size: int = 8
    """How many at once."""
    rate: float | None = None
    """How fast (None: as it comes)."""
    json: bool = False
    """How to print."""
    query: str | None = None
    """What to ask."""


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "saved.yaml"
    path.write_text("kind: dog\nout: there\nbatch_size: 16\nrate: 0.5\njson: true\nruns: [a, b]\nquery: null\n")
    return path


def parsed(*argv: str) -> Config:
    return parse(Config, argv, prog="shortlist test")


def test_flags_make_a_config():
    flags = ["dog", "--out", "x", "--runs", "a", "b", "--batch-size", "3", "--json", "--rate", "1e-3"]
    assert parsed(*flags) == Config(
        kind="dog", out=Path("x"), runs=(Path("a"), Path("b")), batch_size=3, json=True, rate=1e-3
    )


@pytest.mark.parametrize("spelling", [["--config", "{}"], ["--config={}"]])
def test_a_file_is_saved_flags(saved: Path, spelling: list[str]):
    expected = Config(kind="dog", out=Path("there"), runs=(Path("a"), Path("b")), batch_size=16, rate=0.5, json=True)
    assert parsed(*(word.format(saved) for word in spelling)) == expected


def test_flags_win_over_the_file_wherever_they_stand_and_the_file_over_defaults(saved: Path):
    found = parsed("--batch-size", "3", "--config", str(saved), "--runs", "c", "--no-json", "--rate", "None")
    assert (found.batch_size, found.runs, found.json, found.rate) == (3, (Path("c"),), False, None)
    assert (found.out, found.kind) == (Path("there"), "dog")
    assert parsed("cat", "--config", str(saved)).kind == "cat"


def test_a_later_file_wins_over_an_earlier(saved: Path, tmp_path: Path):
    (tmp_path / "more.yaml").write_text("batch-size: 99\n")
    found = parsed("--config", str(saved), "--config", str(tmp_path / "more.yaml"))
    assert (found.batch_size, found.rate) == (99, 0.5)


def test_a_usage_error_exits_with_2_and_help_with_0(capsys: pytest.CaptureFixture[str]):
    for argv, code in ((["--out", "x", "--colour", "red"], 2), ([], 2), (["--config"], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as stop:
            parsed(*argv)
        assert stop.value.code == code
    out, err = capsys.readouterr()
    assert "How many at once." in out
    assert "--colour" in err
    assert "--config needs the name of a YAML file" in err


def test_settings_become_flags():
    settings = {"batch-size": 3, "runs": ["a", "b"], "json": False, "kind": "dog", "query": "--out of here"}
    flags = ["dog", "--batch-size=3", "--runs", "a", "b", "--no-json", "--query=--out of here"]
    assert to_flags(Config, settings, where="here") == flags


@dataclass(frozen=True, kw_only=True)
class Several:
    sources: tyro.conf.Positional[tuple[str, ...]]
    """What from."""
    out: Path
    """Where to."""


@pytest.mark.parametrize("sources", [["a", "b"], "a"])
def test_a_list_without_a_flag_of_its_own_is_saved_like_any_other(sources: list[str] | str):
    found = from_settings(Several, {"out": "x", "sources": sources}, where="here")
    assert found == Several(sources=tuple(sources), out=Path("x"))


def test_settings_make_the_config_that_their_flags_make():
    settings = {"out": "x", "runs": ["a"], "rate": "1e-4", "batch_size": -1, "json": True, "query": "-x --k"}
    expected = Config(out=Path("x"), runs=(Path("a"),), rate=1e-4, batch_size=-1, json=True, query="-x --k")
    assert from_settings(Config, settings, where="here") == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batchsize": 3}, r"^here: unknown setting 'batchsize': perhaps 'batch_size'\?$"),
        (
            {"out": "x", "batch_size": "many"},
            r"^here: .*--batch-size: invalid literal for int\(\) with base 10: 'many'",
        ),
        ({"batch_size": True}, r"^here: .*--batch-size"),
        ({"out": "x", "json": "maybe"}, r"^here: .*maybe"),
        ({"kind": "cow"}, r"^here: .*'cow'.*\('cat', 'dog'\)"),
        ({}, r"^here: .*--out"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(settings: dict, message: str, capsys):
    with pytest.raises(UserError, match=message) as refusal:
        from_settings(Config, settings, where="here")
    assert "\n" not in str(refusal.value)
    assert not {*"╭│─"} & {*str(refusal.value)}
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("a: [1\n", "not YAML"),
        ("\tx", "not YAML"),
        ("- a\n- b\n", "holds list; expected `name: value` lines"),
        ("", "is empty; expected `name: value` lines"),
        ("a: !!python/object/apply:os.getcwd []\n", "not YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str | None, message: str):
    path = tmp_path / "file.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as refusal:
        load_yaml(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match=message):
        parsed("--config", str(path))


def test_an_unknown_name_in_a_file_is_refused_with_the_file(tmp_path: Path):
    (tmp_path / "file.yaml").write_text("out: x\nbatchsize: 3\n")
    with pytest.raises(UserError, match=r"file.yaml: unknown setting 'batchsize': perhaps 'batch_size'"):
        parsed("--config", str(tmp_path / "file.yaml"))


@dataclass(frozen=True, kw_only=True)
class Keyword:
    sources: tyro.conf.Positional[tuple[str, ...]]
    """What from."""
    as_: Annotated[Literal["cat", "dog"] | None, tyro.conf.arg(name="as")] = None
    """Which animal; the flag is a keyword of Python."""
    parts: str | tuple[str, ...] = "all"
    """One, or several."""


def test_a_field_called_like_a_keyword_has_the_keyword_as_its_flag_and_setting(tmp_path: Path):
    expected = Keyword(sources=("a",), as_="dog", parts=("x", "y"))
    assert parse(Keyword, ["a", "--as", "dog", "--parts", "x", "y"], prog="test") == expected
    assert settings_of(expected) == {"sources": ("a",), "as": "dog", "parts": ("x", "y")}
    assert from_settings(Keyword, settings_of(expected), where="here") == expected
    assert (flag_of("as_"), flag_of("batch_size")) == ("--as", "--batch-size")
    assert at_defaults(expected, ["as_"]).as_ is None
    with pytest.raises(UserError, match="here: unknown setting 'as_': perhaps 'as'"):
        to_flags(Keyword, {"as_": "dog"}, where="here")


def test_a_list_at_the_end_of_a_file_takes_no_word_of_the_command(tmp_path: Path):
    (tmp_path / "saved.yaml").write_text("as: cat\nparts: [x, y]\n")
    given = parse(Keyword, ["a", "b", "--config", str(tmp_path / "saved.yaml"), "--as", "dog"], prog="test")
    assert given == Keyword(sources=("a", "b"), as_="dog", parts=("x", "y"))
