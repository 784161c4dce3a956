"""What is known before torch is imported is what the methods, the devices and torch itself say."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
import torch

from vtc.eval.plan.device_names import CPU, NAMES
from vtc.eval.plan.devices import SHEETS
from vtc.eval.terminal.option_checks import DEVICES
from vtc.pruners.method_modules import HOME
from vtc.pruners.registry import make_pruner, pruner_class

# every method is built by each of these lines, in a process that can't import torch
RUN = """
import json, sys

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers"):
            raise BaseException(name)

sys.meta_path.insert(0, Stop())
from vtc.pruners.registry import refuse_call

said = []
for name, params in eval(sys.stdin.read()):
    try:
        said.append(None if (found := refuse_call(name, params)) is None else repr([found.params(), found.stops(32)]))
    except (ValueError, TypeError, OSError) as error:
        said.append(f"{type(error).__name__}: {error}")
print(json.dumps(said))
"""
ODD = (
    None,
    True,
    -1,
    0,
    1,
    3,
    10**6,
    -0.5,
    0.5,
    1.5,
    math.nan,
    "nope",
    "input",
    (),
    (2,),
    (5, 2),
    (0.5, 0.2),
    {"a": 1},
)


def calls() -> list[tuple[str, dict[str, Any]]]:
    """Every method by itself, with every parameter of every odd value, and with one that it has not."""
    found: list[tuple[str, dict[str, Any]]] = []
    for name in HOME:
        names = [field.name for field in fields(pruner_class(name)) if field.init]
        found += [(name, {}), (name, {"nope": 1}), *((name, {key: value}) for key in names for value in ODD)]
    return found


def with_torch(name: str, params: dict[str, Any]) -> str:
    """What the real class says."""
    try:
        found = make_pruner(name, **params)
        return repr([found.params(), found.stops(32)])
    except (ValueError, TypeError, OSError) as error:
        return f"{type(error).__name__}: {error}"


def test_methods_say_without_torch_what_they_say_with_it():
    made = calls()
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=repr(made).replace("nan", "float('nan')"), capture_output=True, text=True,
        check=True, timeout=600,
    )  # fmt: skip
    early = json.loads(done.stdout)
    later = [with_torch(name, params) for name, params in made]
    odd = [found for found in zip(made, early, later, strict=True) if found[1] not in (None, found[2])]
    assert not odd
    # a network that comes with vtc is read when the method is built
    assert {name for (name, _), before in zip(made, early, strict=True) if before is None} == {"explainer"}
    refused = [said for said in early if said is not None and not said.startswith("[")]
    assert len(made) / 2 < len(refused) < len(made)


def test_devices_of_a_plan():
    assert set(NAMES) == {*SHEETS, CPU}


def test_devices_of_torch():
    with pytest.raises(RuntimeError, match="Expected one of") as error:
        torch.device("nope")
    named = re.search(r"Expected one of (.*) device type", str(error.value))
    assert named is not None
    assert set(named[1].split(", ")) <= {*DEVICES}
