"""A server before the test: is it there, what does it serve, does it take a fixed length."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import httpx

from .one_request import server_words
from .targets import Target

PATIENCE = 10.0  # seconds
FIXED = {owner: {"ignore_eos": True} for owner in ("vllm", "sglang", "vtc")}  # by `owned_by` of /v1/models


@dataclass(frozen=True)
class ServedModel:
    """What requests to a target call the model, and what they add to make all answers equally long."""

    model: str
    engine: str = ""
    fixed: dict[str, Any] = field(default_factory=dict)


def look(target: Target) -> ServedModel:
    """Ask a server what it serves.

    Raises
    ------
    ValueError
        If it is not there, refuses, or lists no model while the target names none.
    """
    try:
        found = httpx.get(f"{target.url}/models", headers=target.headers, timeout=PATIENCE, trust_env=False)
    except httpx.HTTPError as error:
        raise ValueError(
            f"target {target.name!r}: no server answers at {target.url} ({type(error).__name__}: {error}); is it "
            "running, and does the URL end before /chat/completions?"
        ) from None
    if found.status_code in (401, 403):
        raise ValueError(
            f"target {target.name!r}: HTTP {found.status_code}: {server_words(found.content)}; key=VARIABLE names the "
            "environment variable that holds its API key"
        )
    listed = _listed(found)
    if target.model is not None:
        mine = next((m for m in listed if m.get("id") == target.model), listed[0] if listed else {})
        if listed and mine.get("id") != target.model:
            names = ", ".join(str(m.get("id")) for m in listed)
            raise ValueError(f"target {target.name!r}: {target.url} serves no {target.model!r}, but {names}")
    elif listed:
        mine = listed[0]
    else:
        raise ValueError(
            f"target {target.name!r}: {target.url}/models lists no model (HTTP {found.status_code}); if the URL is "
            "right (most end in /v1), say model=NAME"
        )
    engine = str(mine.get("owned_by", ""))
    return ServedModel(target.model or str(mine["id"]), engine, dict(FIXED.get(engine, {})))


def _listed(found: httpx.Response) -> list[dict[str, Any]]:
    """The models of an answer that has some."""
    try:
        data = found.json()["data"] if found.status_code == 200 else []
    except (ValueError, KeyError, TypeError):
        return []
    return [m for m in data if isinstance(m, dict) and m.get("id")] if isinstance(data, list) else []
