"""A sweep as a list of commands for a cluster's scheduler: one per cell, each can be run again at no harm."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from vtc.eval.files.atomic import write_atomic
from vtc.eval.vlm.pruning_settings import Cell

HEAD = "# each command answers one cell's questions"


def emit_cells(path: Path, cells: Sequence[Cell], arguments: Sequence[str], output: Path) -> None:
    """Write the commands.

    Parameters
    ----------
    path : Path
        The YAML file to write.
    cells : sequence of Cell
        The sweep.
    arguments : sequence of str
        Of ``vtc``, as they were given, with ``--emit``.
    output : Path
        The results' folder, which all commands share.

    Raises
    ------
    ValueError
        If the file is there and is another one than this writes.
    """
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(HEAD.encode())):
        raise ValueError(f"--emit: {path} is there already, and no list of cells; name another file")
    import yaml

    base = [*without(arguments, "--emit", "--output"), "--output", str(output)]
    listed = [{"cell": c.spec, "command": shlex.join(["vtc", *base, "--cell", c.spec])} for c in cells]
    text = (
        f"{HEAD}, or what is left of them; several may run at once, and\n"
        "# --shard i/n behind one splits it further. `merge` does what is missing, measures times and reports.\n"
    )
    about = {"output": str(output), "merge": shlex.join(["vtc", *base]), "cells": listed}
    write_atomic(path, text + yaml.safe_dump(about, sort_keys=False, width=10**6))


def without(arguments: Sequence[str], *names: str) -> list[str]:
    """Arguments without some options and their values."""
    left, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in names:
            skip = True
        elif not argument.startswith(tuple(f"{name}=" for name in names)):
            left.append(argument)
    return left


def parse_shard(text: str) -> tuple[int, int]:
    """Read ``"2/4"``: the second of four parts.

    Raises
    ------
    ValueError
        For anything else.
    """
    first, _, second = text.partition("/")
    if not (first.strip().isdecimal() and second.strip().isdecimal() and 1 <= int(first) <= int(second)):
        raise ValueError(f"--shard must be i/n with 1 <= i <= n, such as 2/4, got {text!r}")
    return int(first), int(second)
