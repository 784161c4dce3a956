"""Files that methods name, such as trained networks: they go with a saved set-up, and are looked for beside it alone.

A ``vtc_config.json`` may come from anywhere, so that it names bare file names, which mean files of its own folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from vtc.pruners.base import Pruner
from vtc.pruners.model_facts import ModelFacts
from vtc.pruners.registry import pruner_class
from vtc.pruners.untrusted_json import parse_json

from .pipeline_text import Pipeline, split_pipeline

Fetch = Callable[[str], Path | None]
FIRST, INSIDE = "first", "first_params"  # of a method around another one
Names = dict[str, "str | Names"]  # parameter -> file, and ``first_params`` -> those of the method inside


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_bytes(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def pack(pipeline: Pipeline, folder: Path, model: ModelFacts | None = None) -> Pipeline:
    """Write what the methods read from files into `folder`, and give the methods with bare names in their place.

    Parameters
    ----------
    model : ModelFacts, optional
        What is saved beside them; a trained network's file then says that it belongs to it.
    """
    found: dict[str, bytes] = {}
    packed = [(pruner, _packed(pruner, found, model)) for pruner in pipeline]
    for name, content in found.items():
        write_whole(folder / name, content)
    return tuple(_named(pruner, folder, names) for pruner, names in packed)


def _packed(pruner: Pruner, found: dict[str, bytes], model: ModelFacts | None) -> Names:
    """The names that a method's files get, and what is in them `found`."""
    names: Names = {}
    for parameter, usual in pruner.files.items():
        content = pruner.file_content(parameter, model)
        if content is not None:
            name = names[parameter] = _free(usual, content, found)
            found[name] = content
    if pruner.inner is not None and (inside := _packed(pruner.inner, found, model)):
        names[INSIDE] = inside
    return names


def _free(usual: str, content: bytes, taken: Mapping[str, bytes]) -> str:
    """`usual`, with a number where a method before has a file of that name and another content."""
    name, number = usual, 2
    while taken.get(name, content) != content:
        name, number = f"{Path(usual).stem}-{number}{Path(usual).suffix}", number + 1
    return name


def _named(pruner: Pruner, folder: Path, names: Names) -> Pruner:
    """A copy that says bare `names`; it is built with whole paths, as a method may read its file at once."""
    if not names:
        return pruner
    copy = replace(pruner, **_parameters(pruner, names, folder))
    for parameter, value in _parameters(pruner, names, Path()).items():
        setattr(copy, parameter, value)
    return copy


def _parameters(pruner: Pruner, names: Names, folder: Path) -> dict[str, Any]:
    """Parameters of `pruner` that say `names` in a folder."""
    found: dict[str, Any] = {}
    for parameter, name in names.items():
        if isinstance(name, str):
            found[parameter] = str(folder / name)
        elif pruner.inner is not None:
            found[parameter] = {**(getattr(pruner, parameter) or {}), **_parameters(pruner.inner, name, folder)}
    return found


def locate(data: Mapping[str, Any], fetch: Fetch) -> dict[str, Any]:
    """A set-up's plain values with the files that it names as paths.

    Parameters
    ----------
    data : mapping
        What ``vtc_config.json`` says.
    fetch : callable
        Gives the path of a file that lies beside it, by its name; None where there is none.

    Raises
    ------
    ValueError
        If a name is more than a name: a set-up reads no file outside its folder.
    FileNotFoundError
        If there is no such file.
    """

    def located(cls: type[Pruner], given: Mapping[str, Any], first: Any = None) -> dict[str, Any]:
        found = dict(given)
        for parameter in cls.files:
            name = found.get(parameter)
            if isinstance(name, str) and name not in cls.no_files:
                found[parameter] = _beside(f"{cls.name}.{parameter}", name, fetch)
        inside, first = found.get(INSIDE), found.get(FIRST, first or getattr(cls, FIRST, None))
        if isinstance(inside, Mapping) and isinstance(first, str):
            found[INSIDE] = located(pruner_class(first), inside)
        return found

    calls = _calls(data)
    new = [(cls, located(cls, inner)) for cls, inner in calls]
    found = dict(data)
    if new != calls:
        given = (f"{cls.name}({', '.join(f'{k}={v!r}' for k, v in inner.items())})" for cls, inner in new)
        found["pruner"] = " + ".join(given)
    params = data.get("params")
    if len(calls) == 1 and isinstance(params, Mapping):
        found["params"] = located(calls[0][0], params, calls[0][1].get(FIRST))
    return found


def _beside(what: str, name: str, fetch: Fetch) -> str:
    if not name or name in (".", "..") or any(c in name for c in "/\\:\0"):
        raise ValueError(
            f"{what}={name!r} in a saved set-up must be the name of a file beside it; in Python "
            "vtc.compress(model, ..., a path) takes any file"
        )
    path = fetch(name)
    if path is None or not path.is_file():
        raise FileNotFoundError(f"{what}={name!r}: there is no such file beside the set-up that names it")
    return str(path)


def _calls(data: Mapping[str, Any]) -> list[tuple[type[Pruner], dict[str, Any]]]:
    """The methods that a set-up names; none where it is wrong, which is told when it is built."""
    text = data.get("pruner")
    try:
        return [(pruner_class(name), inner) for name, inner in split_pipeline(text)] if isinstance(text, str) else []
    except ValueError:
        return []


def forget(config: Path, but: Pipeline = ()) -> None:
    """Remove a ``vtc_config.json`` and the files beside it that it names, save those of the methods `but`."""
    stay = {name for pruner in but for name in _names_of(pruner, vars(pruner))}

    def drop(name: str) -> Path:
        if name not in stay:
            (config.parent / name).unlink(missing_ok=True)
        return config

    with suppress(ValueError, TypeError, AttributeError, OSError):  # somebody else's: its files are not ours to remove
        locate(parse_json(config.read_text(encoding="utf-8")), drop)
    config.unlink(missing_ok=True)


def _names_of(pruner: Pruner, says: Mapping[str, Any]) -> Iterator[Any]:
    """What a method, and those inside it, say for files."""
    yield from (says.get(parameter) for parameter in pruner.files)
    if pruner.inner is not None:
        yield from _names_of(pruner.inner, says.get(INSIDE) or {})


def as_json(data: Mapping[str, Any]) -> bytes:
    """Plain values as the content of a file."""
    return (json.dumps(data, indent=2) + "\n").encode()
