"""How a sweep was made: versions, hardware, data and statistics."""

from __future__ import annotations

from typing import Any


def facts(about: dict[str, Any]) -> list[tuple[str, str]]:
    """Versions, hardware, data and statistics, by name; what `about` lacks is left out."""
    data, versions, machine = (about.get(k) or {} for k in ("data", "versions", "hardware"))
    found = [
        ("Model", about.get("model")),
        ("Model identity", (about.get("configuration") or {}).get("model")),
        ("Number format", (about.get("configuration") or {}).get("dtype")),
        ("Data", f"{data['name']} {data.get('version', '')}".strip() if data.get("name") else None),
        ("Data fingerprint", data.get("fingerprint")),
        ("Questions", ", ".join(f"{k} {v}" for k, v in (data.get("questions") or {}).items())),
        ("Images", data.get("images")),
        ("Versions", ", ".join(f"{k} {v}" for k, v in versions.items())),
        ("Hardware", _machine(machine)),
        ("Configuration", about.get("config_hash")),
        ("Intervals", _interval(about.get("interval") or {})),
        ("Seed", about.get("seed")),
        ("Duration", f"{about['seconds']:,.0f} s" if isinstance(about.get("seconds"), int | float) else None),
        ("Date", about.get("date")),
    ]
    return [(name, str(value)) for name, value in found if value not in (None, "", [])]


def _interval(interval: dict[str, Any]) -> str | None:
    if not interval.get("method"):
        return None
    return f"{100 * interval.get('level', 0.95):g}%, {interval['method']}, {interval.get('reps')} resamples"


def _machine(machine: dict[str, Any]) -> str:
    parts = [machine.get("gpu"), machine.get("cpu"), f"device {machine['device']}" if machine.get("device") else None]
    parts += [f"{machine[k]} {k}" for k in ("cpus", "threads") if machine.get(k)]
    if machine.get("load"):
        parts.append("load at the end " + " ".join(map(str, machine["load"])))
    return ", ".join(str(p) for p in parts if p)
