"""The names of devices that a plan can be made for, known before torch is imported."""

from __future__ import annotations

CPU = "cpu"  # this machine, measured
NAMES = ("h200", "h100", "a100", "l4", CPU)


def check_device(name: str) -> None:
    """Refuse a device that is not known.

    Raises
    ------
    ValueError
        Naming those that are.
    """
    if name not in NAMES:
        raise ValueError(f"--gpu {name!r} is unknown: allowed are {', '.join(NAMES)}")
