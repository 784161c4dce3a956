"""The command line: ``vtc bench``, ``tune``, ``ask``, ``show``, ``horizon``, ``train-explainer`` and the lists.

Heavy imports happen inside the commands, so that ``vtc --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from .commands.bench import bench
from .commands.check import check
from .commands.compare import compare_selections
from .commands.embedlens import embedlens
from .commands.horizon import horizon
from .commands.lists import pruners, recipes
from .commands.look import ask, show
from .commands.train_explainer import train_explainer
from .commands.tune import tune

BAD_INPUT, INTERRUPTED = 2, 130

app = typer.Typer(
    help="Visual-token compression for vision-language models: measure it, try it, look at it.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help keeps its words whole on 80 columns
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from vtc import __version__

        typer.echo(f"vtc {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Visual-token compression for vision-language models: measure it, try it, look at it."""


for command in (
    bench, tune, ask, show, check, compare_selections, horizon, embedlens, train_explainer, pruners, recipes,
):  # fmt: skip
    app.command()(command)


def _fail(message: object, code: int = BAD_INPUT) -> NoReturn:
    """One line on stderr and out."""
    print(f"vtc: {' '.join(str(message).split())}", file=sys.stderr)
    raise SystemExit(code)


def main(args: list[str] | None = None) -> None:
    """Entry point of the ``vtc`` command: bad input is one line on stderr and exit code 2, Ctrl-C is 130.

    With ``VTC_TRACEBACK=1`` in the environment the whole traceback is shown instead.
    """
    # threads that wait should sleep: spinning costs several times the work itself where cores are shared
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    code: Any = None
    try:
        code = app(args, standalone_mode=False, obj=list(sys.argv[1:] if args is None else args))
    except KeyboardInterrupt:
        code = INTERRUPTED
    except (ValueError, TypeError, NotImplementedError, OSError) as error:
        if os.environ.get("VTC_TRACEBACK"):
            raise
        _fail(error)
    except Exception as error:
        # the parser's own errors (typer brings its own copy of click's classes)
        if type(error).__name__ == "Abort":
            code = INTERRUPTED
        elif hasattr(error, "format_message"):
            _fail(f"{error.format_message()} (--help lists the options)")
        else:
            raise
    if code == INTERRUPTED:
        _fail("interrupted; what vtc has finished is kept, and the same command goes on from there", INTERRUPTED)
    raise SystemExit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
