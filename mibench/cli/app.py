"""The command line: which commands there are, and how every one of them ends."""

import io
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from mibench import __version__
from mibench.cli import audit, bench, compare, data, do, extend, look, prior, stages, zoo
from mibench.runtime import escape
from mibench.runtime.errors import UserError

__all__ = ["app", "main"]

RENAMED = {"--informed": "--adaptive"}

app = typer.Typer(
    name="mibench",
    no_args_is_help=True,
    help="How much of a classifier's private training images can a model-inversion attack reconstruct, and how much "
    "does a defense prevent? Start with: mibench demo",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Do": (do.train, do.attack, do.sweep, do.run, do.report, do.demo, audit.audit),
    "Stages": (stages.train_target, stages.train_prior, stages.invert, stages.score),
    "Look": (
        *(look.list_plugins, look.checks, look.show, compare.diff, compare.leaderboard),
        *(look.features, look.judge, look.cite, look.doctor, look.verify, bench.bench),
    ),
    "Extend": (extend.new, extend.check_plugin),
}
"""The commands in the order of the help, by its panels; a function's name is its command's but for `NAMES`."""

NAMES = {look.list_plugins: "list"}

for panel, commands in PANELS.items():
    for command in commands:
        app.command(NAMES.get(command), rich_help_panel=panel)(command)

data_app = typer.Typer(no_args_is_help=True, help="Look at and prepare data sets.")
data_app.command("list")(data.list_sources)
data_app.command()(data.show)
data_app.command()(data.prepare)
app.add_typer(data_app, name="data", rich_help_panel="Look")

prior_app = typer.Typer(no_args_is_help=True, help="Generators that somebody else trained, as priors.")
prior_app.command("import")(prior.import_prior)
app.add_typer(prior_app, name="prior", rich_help_panel="Stages")

zoo_app = typer.Typer(no_args_is_help=True, help="Trained networks that ship with mibench: zoo:re, zoo:re@1.")
zoo_app.command("list")(zoo.list_entries)
zoo_app.command()(zoo.show)
zoo_app.command()(zoo.verify)
zoo_app.command()(zoo.add)
zoo_app.command()(zoo.make)
app.add_typer(zoo_app, name="zoo", rich_help_panel="Look")


def version(value: bool) -> bool:
    """Print the version and stop."""
    if value:
        print(__version__)
        raise typer.Exit
    return value


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of every command."""


def main() -> None:
    """The entry point: mistakes are one line on stderr and exit code 2; Ctrl-C says how to resume."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that has no letter for something gets its number
            stream.reconfigure(errors="backslashreplace")
    try:
        code = app(standalone_mode=False)
        if code == 130:  # typer turns Ctrl-C into this exit code and says nothing
            raise KeyboardInterrupt
    except UserError as error:
        code = refuse(str(error))
    except (KeyboardInterrupt, typer.Abort):
        print("mibench: interrupted; what is done is kept: run the same command again to resume", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # who reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        code = refuse(
            f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}; mend that and run "
            "the same command again"
        )
    except Exception as error:
        # typer brings its own copy of click, so its usage errors are told by what they can do.
        if not hasattr(error, "format_message"):
            raise
        word = getattr(error, "option_name", None)
        code = refuse(f"{word} is now called {RENAMED[word]}" if word in RENAMED else error.format_message())
    sys.exit(code if isinstance(code, int) else 0)


def refuse(message: str) -> int:
    """Say a mistake in one line; a bare `mibench` has none to say and has printed its help."""
    if message:
        print(f"mibench: error: {escape.terminal(' '.join(message.splitlines()))}", file=sys.stderr)
    return 2
