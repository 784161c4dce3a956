"""The command line: ``vtc bench``, ``tune``, ``ask``, ``show``, ``horizon``, ``train`` and the lists.

Heavy imports happen inside the commands, so that ``vtc --help`` answers at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any, NoReturn

import typer

from vtc.version import versions

from .ask_and_show import ask, show
from .bench import bench
from .check import check
from .compare_selections import compare_selections
from .embedlens import embedlens
from .export_vllm import export_vllm
from .horizon import fitprune, hawk, horizon
from .load_test import load_test
from .plan_and_speed import plan, speed
from .pruners_and_recipes import pruners, recipes
from .serve import serve
from .stability import stability
from .train import train, train_explainer
from .tune import tune

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
        typer.echo(versions())
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the versions of vtc, torch and transformers."
        ),
    ] = False,
) -> None:
    """Visual-token compression for vision-language models: measure it, try it, look at it."""


for command in (
    bench,
    tune,
    ask,
    show,
    serve,
    load_test,
    plan,
    check,
    speed,
    stability,
    compare_selections,
    horizon,
    embedlens,
    hawk,
    fitprune,
    train_explainer,
    export_vllm,
    pruners,
    recipes,
):
    app.command()(command)
app.add_typer(train, name="train")


def _tell(message: object) -> None:
    """One line on stderr."""
    print(f"vtc: {' '.join(str(message).split())}", file=sys.stderr)


def _fail(message: object) -> NoReturn:
    """One line on stderr, with the versions that a report of the error needs, and out."""
    _tell(f"{' '.join(str(message).split())} [{versions()}]")
    raise SystemExit(BAD_INPUT)


_others_warnings = warnings.showwarning


def _warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Show a warning of vtc's as a line like its errors: the line of code that it came from says nothing here."""
    if category.__module__.startswith("vtc."):
        _tell(f"warning: {message}")
    else:
        _others_warnings(message, category, filename, lineno, file, line)


def _unforeseen(error: Exception) -> str:
    """An error that nobody wrote for the command line; one of vtc's own has words already."""
    kind = "" if type(error).__module__.startswith("vtc.") else f"{type(error).__name__}: "
    return f"{kind}{error}{_own_line(error)} (VTC_TRACEBACK=1 in the environment shows where)"


def _own_line(error: Exception) -> str:
    """Where in the user's own file of methods an error arose."""
    if "vtc.pruners.plugins" not in sys.modules:  # nobody has imported one
        return ""
    from vtc.pruners.plugins import failed_at

    return failed_at(error)


def main(args: list[str] | None = None) -> None:
    """Entry point of the ``vtc`` command: bad input is one line on stderr and exit code 2, Ctrl-C is 130.

    With ``VTC_TRACEBACK=1`` in the environment the whole traceback is shown instead.
    """
    # threads that wait should sleep: spinning costs several times the work itself where cores are shared
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    code: Any = None
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warning
            code = app(args, standalone_mode=False, obj=list(sys.argv[1:] if args is None else args))
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        # the parser's own errors (typer brings its own copy of click's classes)
        if type(error).__name__ == "Abort":
            code = INTERRUPTED
        elif hasattr(error, "format_message"):
            _fail(f"{error.format_message()} (--help lists the options)")
        elif os.environ.get("VTC_TRACEBACK"):
            raise
        elif isinstance(error, (ValueError, TypeError, NotImplementedError, OSError)):
            _fail(f"{error}{_own_line(error)}")
        elif isinstance(error, RuntimeError):
            _fail(_unforeseen(error))
        else:
            raise
    if code == INTERRUPTED:
        _tell("interrupted; what vtc has finished is kept, and the same command goes on from there")
    raise SystemExit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
