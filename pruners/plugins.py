"""Methods from elsewhere: a user's file, and packages with the entry-point group ``vtc.pruners``."""

from __future__ import annotations

import hashlib
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import SOURCE_SUFFIXES, all_suffixes
from importlib.metadata import EntryPoints, entry_points
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from .base import Pruner
from .vtc_warning import VTCWarning

ENTRY_POINTS = "vtc.pruners"
IMPORTED = "vtc_imported_"  # how modules begin that are made of files


def plugins() -> EntryPoints:
    """The installed plug-in packages, none of them loaded."""
    return entry_points(group=ENTRY_POINTS)


def load_plugins(register: Callable[[str], Callable[[Any], Any]]) -> None:
    """Load all installed plug-in packages; one that can't be loaded warns, and the others are loaded.

    Parameters
    ----------
    register : callable
        ``register_pruner``, for classes that have no name yet.
    """
    for point in plugins():
        try:
            loaded = point.load()
            if isinstance(loaded, type) and issubclass(loaded, Pruner) and loaded.name == "":
                register(point.name)(loaded)
        except (Exception, SystemExit) as error:  # whatever somebody else's module does
            package = f" of the package {point.dist.name}" if point.dist else ""
            warnings.warn(
                f"the plug-in {point.name} = {point.value}{package} can't be loaded, its methods are missing: "
                f"{type(error).__name__}: {error}",
                VTCWarning,
                stacklevel=2,
            )


def refuse_source(source: str) -> None:
    """Refuse what is neither a Python file nor the name of a module that may be there, without running anything.

    Raises
    ------
    ValueError
        Naming it, and what is allowed or the line that can't be read.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        raise ValueError(f"can't import {source}: it is a folder; give a .py file, or a module's name")
    if path.is_file():
        if path.suffix not in all_suffixes():
            raise ValueError(f"can't import {source}: it is no Python file; give a .py file, or a module's name")
        if path.suffix in SOURCE_SUFFIXES:
            try:
                compile(path.read_bytes(), path, "exec", dont_inherit=True)
            except Exception as error:  # also of what compiling can't read, as null bytes or a nest too deep
                raise _refused(source, error) from error
    elif path.suffix == ".py":
        raise ValueError(f"can't import {source}: no such file")
    elif not all(part.isidentifier() for part in source.split(".")):
        raise ValueError(f"can't import {source!r}: give a .py file, or a module's name")
    elif find_spec(source.partition(".")[0]) is None:  # what lies in a package, its own code says
        raise ValueError(f"can't import {source}: there is no module {source.partition('.')[0]!r}")


def import_source(source: str) -> str:
    """Run a Python file, or import a module by its name; once is enough. Returns the module's name.

    Raises
    ------
    ValueError
        If there is none, or it fails; the message names the line.
    """
    refuse_source(source)
    path = Path(source).expanduser()
    try:
        return _run(path.resolve()) if path.is_file() else import_module(source).__name__
    except (Exception, SystemExit) as error:
        raise _refused(source, error) from error


def _run(path: Path) -> str:
    name = f"{IMPORTED}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return name
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    if str(path.parent) not in sys.path:  # what lies beside it can be imported, as if it were run; nothing is hidden
        sys.path.append(str(path.parent))
    module = sys.modules[name] = module_from_spec(spec)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return name


def failed_at(error: BaseException) -> str:
    """Where in a file that ``import_source`` ran an error arose, `` (my.py, line 12)``; empty for errors elsewhere."""
    files = {getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith(IMPORTED)}
    seen: BaseException | None = error
    while files and seen is not None:
        for frame in reversed(traceback.extract_tb(seen.__traceback__)):
            if frame.filename in files:
                return f" ({Path(frame.filename).name}, line {frame.lineno})"
        seen = seen.__cause__
    return ""


def _refused(source: str, error: BaseException) -> ValueError:
    words = error.msg if isinstance(error, SyntaxError) else str(error)
    line = _line(error, str(Path(source).expanduser().resolve()))
    return ValueError(f"can't import {source}: {type(error).__name__}: {words}{line}")


def _line(error: BaseException, file: str) -> str:
    """Where in the file it failed, if it was there."""
    if isinstance(error, SyntaxError):
        return f" (line {error.lineno})" if error.lineno else ""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" (line {lines[-1]})" if lines else ""
