import ast
import errno
import inspect
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from tiny import Tiny, write_collection

import shortlist
from shortlist import fuse
from shortlist.cli import main
from shortlist.commands import COMMANDS, GONE, GROUPS, gone_settings
from shortlist.completion import flags
from shortlist.config import descriptions, flag_of, parse

RUN = "q0 Q0 d0 1 9.5 tag\nq0 Q0 d1 2 8.5 tag\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run.trec").write_text(RUN)
    return tmp_path / "run.trec"


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    return write_collection(tmp_path / "collection")


def refusal(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one line on stderr with which a command fails."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith(f"shortlist {argv[0]}: ")
    return line


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == main(["-h"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out and command.words in out for name, command in COMMANDS.items())


def test_help_lists_every_command_once_and_fits_80_columns(capsys: pytest.CaptureFixture[str]):
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)
    assert main(["--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_every_command_can_be_typed(name: str, capsys: pytest.CaptureFixture[str]):
    config = import_module(COMMANDS[name].light).Config
    assert parse(config, shlex.split(COMMANDS[name].example), prog=f"shortlist {name}")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_into_80_columns_and_fills_its_lines(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([name, "--help"]) == 0
    lines = [line.strip("│ ") if line.startswith("│") else line for line in capsys.readouterr().out.splitlines()]
    assert f"  shortlist {name}" in "\n".join(lines)
    assert max(map(len, lines[1:])) <= 80  # the first one is broken anywhere by the terminal
    assert not [line for line in lines if "{None}|" in line or "(default: None)" in line]
    shown = " ".join(" ".join(lines).split())
    config = import_module(COMMANDS[name].light).Config
    texts = [" ".join(text.split()) for text in descriptions(config).values()]
    assert [text for text in texts if text not in shown] == []


def test_completion_knows_commands_flags_and_choices(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert flags("export")["--to"] == ("sentence-transformers", "pylate", "cross-encoder", "peft", "merged", "onnx")
    script = tmp_path / "complete.sh"
    assert main(["--completion", "bash"]) == 0
    script.write_text(capsys.readouterr().out)
    asked = {"rera": "", "encode --mod": "", "export --to pe": "", "rerank --precision b": ""}
    for words in asked:
        typed = ["shortlist", *words.split(" ")]
        at = f"COMP_WORDS=({' '.join(typed)}) COMP_CWORD={len(typed) - 1}"
        line = f"{at}; _shortlist; echo ${{COMPREPLY[*]}}"
        done = subprocess.run(["bash", "-c", f". {script}; {line}"], capture_output=True, text=True, check=True)
        asked[words] = done.stdout.strip()
    assert asked == {
        "rera": "rerank",
        "encode --mod": "--model",
        "export --to pe": "peft",
        "rerank --precision b": "bf16",
    }
    for shell in ("zsh", "fish"):
        assert main(["--completion", shell]) == 0
        assert "rerank" in capsys.readouterr().out
    assert main(["--completion", "tcsh"]) == 2


def test_help_needs_no_heavy_import_and_a_closed_pipe_is_no_error():
    heavy = ("torch", "transformers", "numpy", "tyro", "yaml", "rich", "bm25s")
    seen = f"print([name for name in {heavy} if name in sys.modules])"
    code = f"import sys; from shortlist.cli import main; main(['--help']); {seen}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "shortlist", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"shortlist {shortlist.__version__}\n"


def test_no_command_and_an_unknown_one_are_usage_errors(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    assert "usage: shortlist COMMAND" in capsys.readouterr().out
    assert main(["rernak"]) == 2
    assert capsys.readouterr() == ("", "shortlist: unknown command 'rernak': perhaps 'rerank' or 'report'?\n")


def test_a_command_or_flag_that_has_gone_answers_with_the_new_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path
):
    monkeypatch.setitem(GONE, "merge", "shortlist fuse")
    monkeypatch.setitem(GONE, "fuse --top-k", "--k 10")
    assert main(["merge", "--runs", "a"]) == 2
    assert capsys.readouterr() == ("", "shortlist: `merge` is now `shortlist fuse`.\n")
    for flag in ("--top-k", "--top_k", "--top-k=3"):
        assert main(["fuse", "--runs", str(run), str(run), flag, "3", "--out", str(tmp_path / "out")]) == 2
        assert capsys.readouterr() == ("", f"shortlist fuse: {flag.removesuffix('=3')} is now `--k 10`.\n")
    (tmp_path / "saved.yaml").write_text("top_k: 3\n")
    line = refusal(capsys, "fuse", "--config", tmp_path / "saved.yaml")
    assert line.endswith("saved.yaml: `top_k` is now `--k 10`.")
    recipe = "steps:\n  a: {stage: fuse, runs: [a, b], top-k: 3}\n"
    for text in (recipe, recipe.replace("fuse", "merge").replace(", top-k: 3", "")):
        (tmp_path / "recipe.yaml").write_text(text)
        line = refusal(capsys, "run", tmp_path / "recipe.yaml", "--out", tmp_path / "work")
        assert re.search(r"step 'a': .*is now `(--k 10|shortlist fuse)`\.$", line)


def test_what_has_gone_is_not_there():
    assert not GONE.keys() & COMMANDS.keys()
    for command in COMMANDS:
        config = import_module(f"shortlist.{COMMANDS[command].module}").Config
        assert not gone_settings(command).keys() & config.__dataclass_fields__.keys()


def test_the_words_of_the_command_line_are_taken_where_none_are_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["shortlist", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("shortlist ")


def test_a_flag_that_does_not_exist_is_a_usage_error(capsys: pytest.CaptureFixture[str]):
    assert main(["fuse", "--runs", "a", "b", "--out", "c", "--colour", "red"]) == 2
    assert "--colour" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_commands_help_says_what_each_flag_means(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "1000")
    assert main([name, "--help"]) == 0
    shown = squeezed(capsys.readouterr().out)
    assert f"usage: shortlist {name} " in shown
    assert squeezed(COMMANDS[name].words) in shown
    config = import_module(f"shortlist.{COMMANDS[name].module}").Config
    (definition,) = ast.parse(inspect.getsource(config)).body
    assert isinstance(definition, ast.ClassDef)
    assert len(definition.body) % 2 == 0
    for field, doc in zip(definition.body[::2], definition.body[1::2], strict=True):
        assert isinstance(field, ast.AnnAssign)
        assert isinstance(field.target, ast.Name)
        assert flag_of(field.target.id) in shown or "Positional" in ast.unparse(field.annotation)
        assert isinstance(doc, ast.Expr)
        assert isinstance(doc.value, ast.Constant)
        assert squeezed(str(doc.value.value)) in shown, field.target.id


def squeezed(text: str) -> str:
    return " ".join(re.sub("[╭╮╰╯─│`]", " ", text).split())


def test_a_command_that_works_exits_with_0(run: Path, tmp_path: Path):
    assert main(["fuse", "--runs", str(run), str(run), "--out", str(tmp_path / "out.trec")]) == 0
    assert (tmp_path / "out.trec").exists()


def test_a_config_file_stands_for_flags_and_flags_win(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    saved = tmp_path / "saved.yaml"
    saved.write_text(f"runs: [{run}, {run}]\nout: {tmp_path / 'a.trec'}\nk: 1\n")
    assert main(["fuse", "--config", str(saved)]) == 0
    assert len((tmp_path / "a.trec").read_text().splitlines()) == 1
    assert main(["fuse", "--config", str(saved), "--k", "2", "--out", str(tmp_path / "b.trec")]) == 0
    assert len((tmp_path / "b.trec").read_text().splitlines()) == 2
    saved.write_text("depht: 3\n")
    assert "saved.yaml: unknown setting 'depht'" in refusal(capsys, "fuse", "--config", saved)


def test_the_settings_that_an_output_folder_keeps_make_it_again(collection: Path, tmp_path: Path, capsys):
    flags = ["--collection", str(collection), "--k1", "1.2"]
    assert main(["index", *flags, "--out", str(tmp_path / "one")]) == 0
    assert main(["index", "--config", str(tmp_path / "one" / "config.yaml")]) == 0
    assert "already done" in capsys.readouterr().err


def test_ctrl_c_exits_with_130(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def interrupted(config: fuse.Config) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fuse, "run", interrupted)
    assert main(["fuse", "--runs", "a", "b", "--out", "c"]) == 130
    assert "interrupted; the same command goes on from what is finished" in capsys.readouterr().err


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch):
    for error in (ZeroDivisionError("ours"), OSError(errno.EBADF, "ours"), RuntimeError("ours: memory")):

        def broken(config: fuse.Config, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(fuse, "run", broken)
        with pytest.raises(type(error), match="ours"):
            main(["fuse", "--runs", "a", "b", "--out", "c"])


def test_a_full_disk_is_one_line_and_leaves_no_half_output(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    command = ["fuse", "--runs", run, run, "--out", tmp_path / "out.trec"]
    write = fuse.write_run

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_onto_full_disk(*args, **options) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            write(*args, **options)

    monkeypatch.setattr(fuse, "write_run", write_onto_full_disk)
    assert "No space left on device; mend that and run it again." in refusal(capsys, *command)
    assert not (tmp_path / "out.trec").exists()
    monkeypatch.setattr(fuse, "write_run", write)
    assert main([str(word) for word in command]) == 0


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG), "x/big"), "x/big: File too large; mend that and run it again."),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "writing: No space left on device; mend"),
        (RuntimeError("write error in index.faiss: File too large"), "writing: File too large; mend that"),
        (MemoryError(), "memory ran out; give it more, or smaller pieces to work on, and run it again."),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "memory ran out"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), "memory ran out"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), "memory ran out"),
        (RuntimeError("std::bad_alloc"), "memory ran out"),
    ],
)
def test_a_limit_of_the_machine_is_one_line_whichever_library_meets_it(
    error: Exception, words: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def limited(config: fuse.Config) -> None:
        raise error

    monkeypatch.setattr(fuse, "run", limited)
    assert refusal(capsys, "fuse", "--runs", run, run, "--out", "x").startswith(f"shortlist fuse: {words}")


def test_a_folder_that_may_not_be_written_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    def denied(config: fuse.Config) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/some/where")

    monkeypatch.setattr(fuse, "run", denied)
    line = refusal(capsys, "fuse", "--runs", run, run, "--out", "x")
    assert line == "shortlist fuse: /some/where: Permission denied; mend that and run it again."


def test_a_missing_collection_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    line = refusal(capsys, "index", "--collection", tmp_path / "nowhere", "--out", out)
    assert f"{tmp_path / 'nowhere'}: no such collection; expected a folder" in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"_id": "a", "text": "fine"}\n{"_id": "b", "text": \n', "corpus.jsonl:2: "),
        ('{"_id": "a", "text": "fine"}\n{"_id": "b"}\n', "corpus.jsonl:2: "),
        ('{"_id": "a", "text": "fine"}\n["b"]\n', "corpus.jsonl:2: "),
        ("", "corpus.jsonl: "),
        ('{"_id": "a", "text": "one"}\n{"_id": "b", "text": "two"}\n{"_id": "a", "text": "three"}\n', "'a'"),
    ],
)
@pytest.mark.parametrize("stage", ["index", "encode", "init"])
def test_a_broken_corpus_is_named_with_file_and_line(
    stage: str, content: str, message: str, tiny: Tiny, collection: Path, capsys: pytest.CaptureFixture[str]
):
    (collection / "corpus.jsonl").write_text(content)
    model = ["--model", tiny.retriever] if stage == "encode" else []
    assert message in refusal(capsys, stage, *model, "--collection", collection, "--out", collection / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q0 Q0 nowhere 1 9.5 tag\n", "'nowhere'"),
        ("q77 Q0 d0 1 9.5 tag\n", "'q77'"),
        ("q0 Q0 d0 1 high tag\n", "run.trec:1: "),
        ("q0 d0\n", "run.trec:1: "),
    ],
)
def test_a_run_that_does_not_fit_is_named(
    content: str, message: str, tiny: Tiny, run: Path, capsys: pytest.CaptureFixture[str]
):
    run.write_text(content)
    flags = ["--model", tiny.reranker, "--run", run, "--collection", tiny.collection, "--out", run.with_name("out")]
    assert message in refusal(capsys, "rerank", *flags)
    assert not run.with_name("out").exists()


def test_vectors_of_another_model_are_named(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    texts = ["--collection", str(tiny.collection)]
    assert main(["encode", "--model", str(tiny.retriever), *texts, "--out", str(tmp_path / "vectors")]) == 0
    flags = ["--model", tiny.llama, "--contract", "repllama", "--vectors", tmp_path / "vectors", *texts]
    assert "its vectors were not made by what --model" in refusal(
        capsys, "search", *flags, "--out", tmp_path / "run.trec"
    )


def test_the_output_of_another_job_is_named(collection: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["index", "--collection", collection, "--out", tmp_path / "out"]
    assert main([str(word) for word in command]) == 0
    line = refusal(capsys, *command, "--k1", "0.5")
    assert "holds another job (k1: 0.9 there, 0.5 now); choose another or --overwrite." in line
