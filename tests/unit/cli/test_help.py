"""What a user reads first: help, examples, completion, version."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import hpcdeq
from hpcdeq.cli import VERBS, app
from hpcdeq.cli.examples import EXAMPLES

TREE = Path(__file__).with_name("help_tree.txt")
# Whatever takes long to import. typer itself brings pydantic.
HEAVY = ("torch", "numpy", "zarr", "dask", "xarray", "h5py", "scipy", "omegaconf", "matplotlib", "rich")


def commands(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every verb with its full name, groups included."""
    yield name, command
    if hasattr(command, "list_commands"):
        context = typer.Context(command)
        for verb in command.list_commands(context):
            yield from commands(command.get_command(context, verb), f"{name} {verb}".strip())


ALL = dict(commands(typer.main.get_command(app)))


def test_no_verb_or_option_comes_or_goes_unnoticed() -> None:
    lines = []
    for name, command in ALL.items():
        options = [max(p.opts, key=len) for p in command.params if p.param_type_name == "option"]
        arguments = [str(p.metavar) for p in command.params if p.param_type_name == "argument"]
        lines.append(" ".join(["hpcdeq", *name.split(), *arguments, *sorted(options)]))
    tree = "\n".join(lines) + "\n"
    assert tree == TREE.read_text(), f"if it is meant, make {TREE.name} say so:\n{tree}"


@pytest.mark.parametrize("name", ALL)
def test_help_fits_a_terminal_and_shows_its_examples(name: str) -> None:
    said = CliRunner().invoke(app, [*name.split(), "--help"], env={"COLUMNS": "80"})
    assert said.exit_code == 0
    assert said.stdout.startswith("Usage: ")
    assert "╭" not in said.stdout
    assert "(default" not in said.stdout  # one style: [default: ...]
    text, _, examples = said.stdout.partition("\n  Examples:\n")
    assert not [line for line in text.splitlines() if len(line) > 80]
    assert "..." not in text.partition("Commands:")[2], "a first sentence is too long for the list of verbs"
    assert [line.strip() for line in examples.splitlines()] == [
        f"hpcdeq {line}" for line in EXAMPLES.get(name, ())
    ]


def modules_after(calls: list[list[str]]) -> set[str]:
    """What is loaded after calls of a fresh process that say something and end."""
    code = (
        "import contextlib, io, sys\n"
        "from hpcdeq.cli import app\n"
        f"for call in {calls}:\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): app(call)\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_no_help_imports_anything_heavy() -> None:
    assert not set(HEAVY) & modules_after([[*name.split(), "--help"] for name in ALL])


def test_a_verb_imports_no_other_verb() -> None:
    loaded = {name for name in modules_after([["info", "--help"]]) if name.startswith("hpcdeq.cli.")}
    assert loaded == {"hpcdeq.cli.examples", "hpcdeq.cli.info"}


def test_every_verb_has_examples_and_they_are_right() -> None:
    groups = {name for name, command in ALL.items() if hasattr(command, "list_commands")} - {""}
    assert set(EXAMPLES) == set(ALL) - groups
    for lines in EXAMPLES.values():
        for line in lines:
            words = shlex.split(line)
            name = max((name for name in ALL if words[: len(name.split())] == name.split()), key=len)
            assert name not in groups
            ALL[name].make_context(name, words[len(name.split()) :])  # raises what a user would see


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_found_where_it_is_said_to_be(verb: str) -> None:
    assert ALL[verb].name == verb


def completed(line: str) -> list[str]:
    words = {
        "_HPCDEQ_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    return CliRunner().invoke(app, [], prog_name="hpcdeq", env=words).stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("hpcdeq den", ["denoise"]),
        ("hpcdeq submit ", ["train", "denoise", "tables", "scale"]),
        ("hpcdeq denoise --unit", ["--unit-mib"]),
        ("hpcdeq denoise noisy.zarr --model du", ["du-fast", "du-full"]),
        ("hpcdeq tables --model deq-fu", ["deq-full"]),
        ("hpcdeq submit denoise noisy.zarr --cluster l", ["local"]),
        ("hpcdeq denoise noisy.zarr --model runs/", []),  # the shell completes files
    ],
)
def test_the_shell_completes(line: str, words: list[str]) -> None:
    assert completed(line) == words


def test_completion_can_be_had_for_bash() -> None:
    shown = CliRunner().invoke(app, [], prog_name="hpcdeq", env={"_HPCDEQ_COMPLETE": "source_bash"})
    assert "complete -o default -F _hpcdeq_completion hpcdeq" in shown.stdout


def test_the_version_is_said_and_is_in_one_place() -> None:
    said = CliRunner().invoke(app, ["--version"])
    assert (said.exit_code, said.stdout) == (0, f"hpcdeq {hpcdeq.__version__}\n")
    root = Path(hpcdeq.__file__).parents[1]
    assert 'dynamic = ["version"]' in (root / "pyproject.toml").read_text()
    assert f"\nversion: {hpcdeq.__version__}\n" in (root / "CITATION.cff").read_text()


@pytest.mark.parametrize("arguments", [["denose"], ["submit", "denose"]])
def test_a_typo_in_a_verb_is_answered_with_the_verb(arguments: list[str]) -> None:
    said = CliRunner().invoke(app, arguments)
    assert said.exit_code == 2
    assert "Did you mean 'denoise'" in said.stderr
