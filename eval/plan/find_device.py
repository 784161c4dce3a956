"""From the name of a device to what it attains."""

from __future__ import annotations

from .devices import CPU, NAMES, SHEETS, Device
from .measured_cpu import this_machine


def check_device(name: str) -> None:
    """Refuse a device that is not known.

    Raises
    ------
    ValueError
        Naming those that are.
    """
    if name not in NAMES:
        raise ValueError(f"--gpu {name!r} is unknown: allowed are {', '.join(NAMES)}")


def device_named(name: str, dtype: str) -> Device:
    """The device that ``--gpu`` names; ``cpu`` is this machine, measured now in `dtype`."""
    check_device(name)
    return this_machine(dtype) if name == CPU else SHEETS[name].device(name)
