"""What is known before torch is imported is what the methods, the devices and torch itself say."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
import torch

from vtc.eval.plan.device_names import CPU, NAMES
from vtc.eval.plan.devices import SHEETS
from vtc.eval.terminal.option_checks import DEVICES
from vtc.pruners.method_modules import HOME
from vtc.pruners.parameter_names import parameter_names
from vtc.pruners.registry import pruner_class


@pytest.mark.parametrize("name", HOME)
def test_parameters_of_a_method(name: str):
    assert parameter_names(name) == tuple(field.name for field in fields(pruner_class(name)) if field.init)


def test_devices_of_a_plan():
    assert set(NAMES) == {*SHEETS, CPU}


def test_devices_of_torch():
    with pytest.raises(RuntimeError, match="Expected one of") as error:
        torch.device("nope")
    named = re.search(r"Expected one of (.*) device type", str(error.value))
    assert named is not None
    assert set(named[1].split(", ")) <= {*DEVICES}
