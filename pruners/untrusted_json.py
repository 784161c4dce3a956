"""JSON of unknown origin, and files of it that a command of vtc should have written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def parse_json(text: str | bytes) -> Any:
    """What `text` says.

    Raises
    ------
    ValueError
        If it is no JSON, or nested so deep that Python gives up.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


class CommandFile(Generic[T]):
    """A file that a command of vtc writes for a parameter of a method; one that has changed is read again.

    Parameters
    ----------
    parameter, command : str
        Such as ``"hawk.weights"`` and ``"vtc hawk"``.
    form : str
        What stands under ``"format"``.
    take : callable
        Makes a value of what the file holds, and of its path.
    must : str
        What the file must hold, for the message.
    fits : callable
        Whether a value is such.
    """

    def __init__(
        self,
        parameter: str,
        command: str,
        form: str,
        take: Callable[[dict[str, Any], str], T],
        must: str = "",
        fits: Callable[[T], bool] = lambda value: True,
    ):
        self.parameter, self.command, self.form = parameter, command, form
        self.take, self.must, self.fits = take, must, fits
        self._known = lru_cache(maxsize=8)(self._read)

    def read(self, path: str) -> T:
        """The value of the file `path`.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such file, or it is not of this format.
        """
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"{self.parameter}={path!r} is no file here; make one with '{self.command} --output'"
            )
        return self._known(path, os.stat(path).st_mtime_ns)

    def _read(self, path: str, changed: int) -> T:
        try:
            found = parse_json(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.parameter}: {path!r} is no JSON file ({error})") from error
        if not isinstance(found, dict) or found.get("format") != self.form:
            raise ValueError(f"{self.parameter}: {path!r} was not written by '{self.command}' ({self.form})")
        try:
            value = self.take(found, path)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{self.parameter}: {path!r} is damaged ({type(error).__name__}: {error})") from error
        if not self.fits(value):
            raise ValueError(f"{self.parameter}: {path!r} must hold {self.must}")
        return value
