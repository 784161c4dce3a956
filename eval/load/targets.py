"""What a load test compares: servers, each with a setting, read from the command line's words or a YAML file."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtc.eval.files.yaml_file import read_yaml

from .addresses import check_url
from .speed_limit import Limit

KEYS = ("name", "url", "model", "body", "resize", "pruner", "keep", "limit", "key")
FORM = 'NAME URL [model=M] [resize=0.25] [pruner=dart keep=64] [limit=v,s,f] [key=VARIABLE] [body={"vtc": {...}}]'


@dataclass(frozen=True, kw_only=True)
class Target:
    """One server under one setting.

    Attributes
    ----------
    name : str
        What tables call it.
    url : str
        Its base, which ends before ``/chat/completions``.
    model : str, optional
        What requests call the model; the first that the server lists if left out.
    body : mapping
        Added to every request: ``{"vtc": {"keep": 64}}``, ``{"mm_processor_kwargs": {"vtc_keep": 64}}``.
    resize : float, optional
        Pictures are made smaller to this share of their pixels: the control without pruning.
    pruner, keep : str, optional; int or float, optional
        What the server runs, to measure the limit; ``body["vtc"]`` and vLLM's
        ``vtc_keep`` say it too.
    limit : Limit, optional
        What bounds the ratio to an unpruned baseline.
    key : str, optional
        The environment variable that holds the server's API key.
    """

    name: str
    url: str
    model: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    resize: float | None = None
    pruner: str | None = None
    keep: int | float | None = None
    limit: Limit | None = None
    key: str | None = None

    @property
    def setting(self) -> tuple[str | None, int | float | None]:
        """Method and keep, as far as they are said; neither where all is kept."""
        asked, plugin = self.body.get("vtc") or {}, self.body.get("mm_processor_kwargs") or {}
        said = [self.keep, asked.get("keep"), plugin.get("vtc_keep")]
        keep = next((keep for keep in said if keep is not None), None)
        if isinstance(keep, float) and keep == 1:  # all of them
            return None, None
        return self.pruner or asked.get("pruner") or plugin.get("vtc_pruner"), keep

    @property
    def headers(self) -> dict[str, str]:
        """What goes with every request.

        Raises
        ------
        ValueError
            If the variable that should hold the key is not set.
        """
        if self.key is None:
            return {}
        secret = os.environ.get(self.key)
        if not secret:
            raise ValueError(f"target {self.name!r}: key={self.key} names an environment variable that is not set")
        return {"Authorization": f"Bearer {secret}"}


def parse_target(text: str) -> Target:
    """Read one target in the form ``FORM``.

    Raises
    ------
    ValueError
        Naming what is wrong.
    """
    head, found, body = re.match(r"(?s)(.*?)(?:(?:^|\s)(body=)(.*))?$", text.strip()).groups()  # type: ignore[union-attr]
    try:
        words = shlex.split(head)
    except ValueError as error:
        raise ValueError(f"--target {text!r}: {error}") from None
    given: dict[str, Any] = dict(zip(("name", "url"), words, strict=False))
    for word in words[2:]:
        key, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"--target {text!r}: {word!r} is no key=value; the form is {FORM}")
        given[key] = value
    if found:
        try:
            given["body"] = json.loads(body)
        except ValueError as error:
            raise ValueError(f"--target {text!r}: body= is no valid JSON ({error}); it comes last") from None
    if "limit" in given:
        given["limit"] = _limit_of_words(given["limit"], text)
    return make_target(given, f"--target {text!r}")


def make_target(given: Mapping[str, Any], where: str) -> Target:
    """A target of its fields, checked; `where` begins what errors say."""
    odd = [key for key in given if key not in KEYS]
    if odd:
        raise ValueError(f"{where}: {odd[0]!r} is unknown: allowed are {', '.join(KEYS)}")
    for key in ("name", "url"):
        if not isinstance(given.get(key), str) or not given[key].strip():
            raise ValueError(f"{where}: there is no {key}; the form is {FORM}")
    for key in ("model", "pruner", "key"):
        if given.get(key) is not None and not isinstance(given[key], str):
            raise ValueError(f"{where}: {key} must be a text, got {given[key]!r}")
    body = given.get("body") or {}
    if not isinstance(body, Mapping) or not all(
        isinstance(body.get(key) or {}, Mapping) for key in ("vtc", "mm_processor_kwargs")
    ):
        raise ValueError(f"{where}: body must be an object of JSON, got {body!r}")
    fixed = sorted({"messages", "stream", "model"} & {*body})
    if fixed:
        raise ValueError(f"{where}: body may not set {fixed[0]!r}, which the load test sets itself")
    return Target(
        name=given["name"].strip(),
        url=check_url(given["url"].strip().rstrip("/"), where),
        model=given.get("model"),
        body=dict(body),
        resize=_resize(given.get("resize"), where),
        pruner=given.get("pruner"),
        keep=_keep(given.get("keep"), where),
        limit=_limit(given.get("limit"), where),
        key=given.get("key"),
    )


def read_targets(file: Path | None, texts: Sequence[str]) -> tuple[Target, ...]:
    """The targets of a YAML file and those said on the command line, in order.

    Raises
    ------
    ValueError
        If there is none, one is wrong, or two have the same name.
    """
    found = [*(_from_file(file) if file is not None else ()), *map(parse_target, texts)]
    if not found:
        raise ValueError(f"there is no target: say --target '{FORM}' or --targets FILE")
    names = [target.name for target in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"two targets are called {twice[0]!r}: give each its own name")
    return tuple(found)


def _from_file(path: Path) -> list[Target]:
    if not path.is_file():
        raise ValueError(f"--targets: no such file: {path}")
    found = read_yaml(path)
    if not isinstance(found, Mapping) or not {*found} <= {"targets", "defaults"}:
        raise ValueError(f"{path} must have `targets`, a list, and may have `defaults`; nothing else")
    listed, defaults = found.get("targets"), found.get("defaults") or {}
    if not isinstance(listed, list) or not listed or not all(isinstance(t, Mapping) for t in listed):
        raise ValueError(f"{path}: `targets` must be a list of targets, each with name and url")
    if not isinstance(defaults, Mapping):
        raise ValueError(f"{path}: `defaults` must hold keys of a target")
    return [make_target({**defaults, **t}, f"{path}, target {i}") for i, t in enumerate(listed, 1)]


def _resize(value: Any, where: str) -> float | None:
    if value is None:
        return None
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = math.nan
    if not 0 < share <= 1 or isinstance(value, bool):
        raise ValueError(f"{where}: resize must be a share of the pixels in (0, 1], got {value!r}")
    return share


def _keep(value: Any, where: str) -> int | float | None:
    from vtc.eval.vlm.pruning_settings import parse_keep

    if value is None:
        return None
    try:
        return parse_keep(str(value))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _limit_of_words(text: str, where: str) -> dict[str, Any]:
    parts = text.split(",")
    if len(parts) != 3:
        raise ValueError(f"--target {where!r}: limit must be three numbers v,s,f, got {text!r}")
    return dict(zip("vsf", parts, strict=True))


def _limit(value: Any, where: str) -> Limit | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or {*value} != set("vsf"):
        raise ValueError(f"{where}: limit must have the numbers v, s and f, got {value!r}")
    try:
        return Limit(*(float(value[key]) for key in "vsf"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
