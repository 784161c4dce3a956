"""The parameters of vtc's own methods, read off their source: known before a method, and with it torch, is imported."""

from __future__ import annotations

import ast
from dataclasses import fields
from functools import cache
from pathlib import Path

from .base import Pruner
from .method_modules import HOME


@cache
def parameter_names(name: str) -> tuple[str, ...]:
    """The parameters of one of vtc's own methods, in the order of its dataclass; empty where there is no source."""
    file = Path(__file__).with_name(f"{HOME[name]}.py")
    if not file.is_file():
        return ()
    classes = {node.name: node for node in ast.parse(file.read_bytes()).body if isinstance(node, ast.ClassDef)}
    registered = next((node for node in classes.values() if name in map(_registered_as, node.decorator_list)), None)
    if registered is None:
        return ()
    common = [field.name for field in fields(Pruner) if field.init]
    return tuple(dict.fromkeys([*common, *_declared(registered, classes)]))


def _registered_as(decorator: ast.expr) -> str | None:
    """The name in ``@register_pruner("name")``."""
    if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "register_pruner":
        return str(ast.literal_eval(decorator.args[0]))
    return None


def _declared(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> list[str]:
    """Fields of a class, behind those of its bases in the same file."""
    bases = [classes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
    found = [name for base in bases for name in _declared(base, classes)]
    lines = [line for line in node.body if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)]
    return found + [ast.unparse(n.target) for n in lines if not ast.unparse(n.annotation).startswith("ClassVar")]
