"""From the name of a device to what it attains."""

from __future__ import annotations

from .device_names import CPU, check_device
from .devices import SHEETS, Device
from .measured_cpu import this_machine


def device_named(name: str, dtype: str) -> Device:
    """The device that ``--gpu`` names; ``cpu`` is this machine, measured now in `dtype`."""
    check_device(name)
    return this_machine(dtype) if name == CPU else SHEETS[name].device(name)
