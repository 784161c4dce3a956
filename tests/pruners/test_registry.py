"""The registry: names, look-ups with suggestions, and registration by decorator and entry point."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, is_dataclass
from pathlib import Path

import pytest

import vtc
from vtc.pruners import registry
from vtc.pruners.method_modules import HOME


@pytest.fixture
def scratch(monkeypatch):
    vtc.list_pruners()
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


def test_first_methods_are_listed():
    assert {"random", "uniform", "pool", "dart", "fastv"} <= set(vtc.list_pruners())
    assert vtc.list_pruners("fastv*") == ["fastv", "fastvid"]
    assert vtc.list_pruners("no-such-*") == []


@pytest.mark.parametrize("name", vtc.list_pruners())
def test_every_method_says_what_it_is(name):
    cls = vtc.pruner_class(name)
    assert is_dataclass(cls)
    assert cls.name == name
    assert cls.paper
    assert all(section in cls.__doc__ for section in ("Notes", "Parameters"))


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match=r"unknown pruner 'drat'.*Did you mean 'dart'"):
        vtc.pruner_class("drat")
    with pytest.raises(ValueError, match=r"dart has no parameter 'pivot'.*'pivots'"):
        registry.make_pruner("dart", pivot=3)


def test_decorator_registers_and_refuses_a_second_owner(scratch):
    @vtc.register_pruner("mine")
    @dataclass(kw_only=True)
    class Mine(vtc.Pruner):
        """Mine."""

    assert "mine" in vtc.list_pruners()
    assert vtc.parse("mine", keep=3)[0] == Mine(keep=3)

    @dataclass(kw_only=True)
    class Other(vtc.Pruner):
        """Other."""

    with pytest.raises(ValueError, match="already registered"):
        vtc.register_pruner("mine")(Other)
    with pytest.raises(ValueError, match="lower-case identifier"):
        vtc.register_pruner("Not-A-Name")(Other)
    with pytest.raises(TypeError, match=r"vtc\.Pruner"):
        vtc.register_pruner("thing")(int)


def test_entry_points_register_on_first_use(tmp_path: Path):
    """A plug-in package as pip would install it: a module and its dist-info."""
    (tmp_path / "plug.py").write_text(
        "from dataclasses import dataclass\nimport vtc\n@dataclass(kw_only=True)\nclass Plug(vtc.Pruner):\n    'plug'\n"
    )
    info = tmp_path / "plug-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vtc.pruners]\nplugged = plug:Plug\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import vtc; print(vtc.parse('plugged', keep=2)[0])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "plugged(keep=2)"


def test_every_method_is_known_before_it_is_imported() -> None:
    root = registry.__package__
    built_in = {name: registry.pruner_class(name).__module__ for name in registry.list_pruners()}
    ours = {name: module.removeprefix(f"{root}.") for name, module in built_in.items() if module.startswith(f"{root}.")}
    assert ours == HOME
