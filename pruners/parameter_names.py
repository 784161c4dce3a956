"""The parameters of vtc's own methods, read off their source: known before a method, and with it torch, is imported."""

from __future__ import annotations

import ast
from dataclasses import fields
from functools import cache
from pathlib import Path

from .base import Pruner
from .method_modules import HOME

HERE = Path(__file__).parent
PACKAGE = __package__.split(".")


@cache
def parameter_names(name: str) -> tuple[str, ...]:
    """The parameters of one of vtc's own methods, in the order of its dataclass; empty where there is no source."""
    file = HERE / f"{HOME[name]}.py"
    classes, _ = _read(file)
    registered = next((node for node in classes.values() if name in map(_registered_as, node.decorator_list)), None)
    if registered is None:
        return ()
    common = [field.name for field in fields(Pruner) if field.init]
    return tuple(dict.fromkeys([*common, *_declared(registered, file)]))


@cache
def _read(file: Path) -> tuple[dict[str, ast.ClassDef], dict[str, Path]]:
    """The classes of a file, and the files that it imports names of this package from."""
    if not file.is_file():
        return {}, {}
    classes: dict[str, ast.ClassDef] = {}
    imported: dict[str, Path] = {}
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.ClassDef):
            classes[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            names = (node.module or "").split(".")
            if not node.level and names[: len(PACKAGE)] != PACKAGE:
                continue
            start = HERE if not node.level else file.parents[node.level - 1]
            place = start.joinpath(*names[0 if node.level else len(PACKAGE) :]).with_suffix(".py")
            imported |= {alias.asname or alias.name: place for alias in node.names}
    return classes, imported


def _registered_as(decorator: ast.expr) -> str | None:
    """The name in ``@register_pruner("name")``."""
    if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "register_pruner":
        return str(ast.literal_eval(decorator.args[0]))
    return None


def _declared(node: ast.ClassDef, file: Path) -> list[str]:
    """Fields of a class in `file`, behind those of its bases, wherever in this package these are."""
    classes, imported = _read(file)
    found = []
    for base in (base.id for base in node.bases if isinstance(base, ast.Name) and base.id != Pruner.__name__):
        place = file if base in classes else imported.get(base, file)
        if base in _read(place)[0]:
            found += _declared(_read(place)[0][base], place)
    lines = [line for line in node.body if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)]
    return found + [ast.unparse(n.target) for n in lines if not ast.unparse(n.annotation).startswith("ClassVar")]
