"""The command line: one file a verb. Verbs import what they need when they run, so that ``--help`` is instant."""

from __future__ import annotations

import sys

import typer

from hpcdeq.cli.cancel import cancel
from hpcdeq.cli.degrade import degrade
from hpcdeq.cli.demo import demo
from hpcdeq.cli.denoise import denoise
from hpcdeq.cli.dictionary import dictionary
from hpcdeq.cli.doctor import doctor
from hpcdeq.cli.evaluate import evaluate
from hpcdeq.cli.export import export
from hpcdeq.cli.info import info
from hpcdeq.cli.ingest import ingest
from hpcdeq.cli.repair import repair
from hpcdeq.cli.scale import scale
from hpcdeq.cli.split import split
from hpcdeq.cli.status import status
from hpcdeq.cli.submit import submit
from hpcdeq.cli.tables import figures, tables
from hpcdeq.cli.train import train
from hpcdeq.cli.validate import validate
from hpcdeq.cli.verify import verify
from hpcdeq.console import complain
from hpcdeq.errors import ConfigError, HpcdeqError

app = typer.Typer(
    name="hpcdeq",
    help="Denoise hyperspectral archives with sparse-coding Deep Unrolling and Deep Equilibrium models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    ingest,
    info,
    validate,
    split,
    dictionary,
    train,
    export,
    degrade,
    denoise,
    status,
    verify,
    repair,
    cancel,
    evaluate,
    tables,
    figures,
    scale,
    doctor,
    demo,
):
    app.command()(verb)
app.add_typer(submit)


def main() -> None:
    """Run a verb; an error meant for the user is one line on stderr and its exit code."""
    # What is said of going on is true of the command without it.
    anew = "; leave out --overwrite to go on: with it, all begins anew" if "--overwrite" in sys.argv else ""
    try:
        app(standalone_mode=True)
    except HpcdeqError as error:
        complain(str(error) + (anew if error.exit_code != ConfigError.exit_code else ""))
        sys.exit(error.exit_code)
    except OSError as error:  # no space, no permission: the system's words name the file
        complain(str(error) + anew)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"interrupted; run the same command again to go on{anew}", file=sys.stderr)
        sys.exit(130)
