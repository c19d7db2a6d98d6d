"""The command line: one file a verb.

A verb is imported when it is called, and imports what it needs when it runs, so that help is instant.
"""

from __future__ import annotations

import errno
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import hpcdeq
from hpcdeq.cli.examples import examples
from hpcdeq.console import complain
from hpcdeq.errors import ConfigError, HpcdeqError

# In the order in which they are listed, and the module of hpcdeq.cli that each is in.
VERBS = {
    "ingest": "ingest",
    "info": "info",
    "validate": "validate",
    "split": "split",
    "dictionary": "dictionary",
    "train": "train",
    "export": "export",
    "degrade": "degrade",
    "denoise": "denoise",
    "status": "status",
    "verify": "verify",
    "repair": "repair",
    "cancel": "cancel",
    "evaluate": "evaluate",
    "tables": "tables",
    "figures": "tables",
    "ablate": "ablate",
    "scale": "scale",
    "submit": "submit",
    "doctor": "doctor",
    "demo": "demo",
}


class _Verbs(TyperGroup):
    """Imports the verb that is called only; all of them to list them, or to say which one a wrong name was meant to be."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        for name in [cmd_name] if cmd_name in VERBS else VERBS:
            if name not in self.commands:
                self.commands[name] = _command(name)
        return self.commands.get(cmd_name)


def _command(name: str) -> Any:
    verb = getattr(import_module(f"hpcdeq.cli.{VERBS[name]}"), name)
    if not isinstance(verb, typer.Typer):
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        alone.command(name, epilog=examples(name))(verb)
        verb = alone
    return typer.main.get_command(verb)


app = typer.Typer(
    name="hpcdeq",
    cls=_Verbs,
    # Plain help starts in half the time, and its examples can be copied.
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(""),
)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"hpcdeq {hpcdeq.__version__}")
        raise typer.Exit


@app.callback()
def _hpcdeq(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Denoise hyperspectral archives with sparse-coding Deep Unrolling and Deep Equilibrium models."""


_ADVICE = {
    errno.ENOSPC: "make room, then run the same command again",
    errno.EDQUOT: "make room, then run the same command again",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "choose a place that you may use, or change its permissions",
    errno.EPERM: "choose a place that you may use, or change its permissions",
    errno.ENOTDIR: "there is a file where a folder belongs: choose another name",
    errno.EEXIST: "there is a file where a folder belongs: choose another name",
    errno.EISDIR: "there is a folder where a file belongs: choose another name",
    errno.ENOENT: "look for a wrong path",
}


def _explain(error: OSError) -> str:
    """Say where it happened, what, and what to do, for the user."""
    if error.errno is None or error.strerror is None:
        return str(error)
    where = "" if error.filename is None else f"{error.filename}: "
    advice = f"; {_ADVICE[error.errno]}" if error.errno in _ADVICE else ""
    return f"{where}{error.strerror}{advice}"


def main() -> None:
    """Run a verb; an error meant for the user is one line on stderr and its exit code."""
    # What is said of going on is true of the command without it.
    anew = "; leave out --overwrite to go on: with it, all begins anew" if "--overwrite" in sys.argv else ""
    try:
        app(standalone_mode=True)
    except HpcdeqError as error:
        complain(str(error) + (anew if error.exit_code != ConfigError.exit_code else ""))
        sys.exit(error.exit_code)
    except OSError as error:
        complain(_explain(error) + anew)
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:  # typer makes 130 of Ctrl-C, and says nothing
            raise
        print(f"interrupted; run the same command again to go on{anew}", file=sys.stderr)
        sys.exit(130)
