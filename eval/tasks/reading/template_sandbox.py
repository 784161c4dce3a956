"""Where templates of task definitions run: nothing but plain values can be reached, and work and size are bounded.

Jinja's own sandbox keeps a template from Python's inside, not from ``{{ 'x' * 10**10 }}``. Here every rendering has a
budget (``template_budget``): each turn of a loop, call, filter and operation takes from it what it makes, before it
makes it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

from jinja2 import StrictUndefined, nodes, pass_context
from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Cycler, Joiner
from jinja2.visitor import NodeTransformer

from .template_budget import (
    TooMuch,
    budget,
    check_format,
    check_width,
    size_of,
    spend,
    spend_indented,
    spend_json,
    spend_replaced,
)

STEP = 200  # what a turn, a call or an operation takes at least
LONGEST = 1_000_000  # characters of a field
BITS = 4096  # of a whole number

TEXT = (
    "capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier islower "
    "isnumeric isprintable isspace istitle isupper lower lstrip partition removeprefix removesuffix rfind rindex "
    "rpartition rsplit rstrip split splitlines startswith strip swapcase title upper encode decode join replace "
    "center ljust rjust zfill"
)
# methods that a template may call, by the type of what has them
METHODS: dict[type, frozenset[str]] = {
    str: frozenset(TEXT.split()),
    bytes: frozenset(TEXT.split()),
    list: frozenset(("index", "count", "copy")),
    tuple: frozenset(("index", "count")),
    dict: frozenset(("get", "items", "keys", "values", "copy")),
    int: frozenset(("bit_length", "conjugate")),
    float: frozenset(("is_integer", "hex")),
}
# what is looked at before a method or filter runs, because it may make much of little
BEFORE_METHOD: dict[str, Callable[..., None]] = {
    "replace": lambda text, old, new, *a: spend_replaced(text, old, new),
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), lambda text, *widths: check_width(*widths)),
    "join": lambda between, parts: spend(len(parts) * len(between) if isinstance(parts, Sized) else 0),
}
BEFORE_FILTER: dict[str, Callable[..., None]] = {
    "replace": lambda text, old, new, *a, **k: spend_replaced(text, old, new),
    "format": lambda text, *a, **k: check_format(text),
    "center": lambda text, *a, **k: check_width(*a, *k.values()),
    "indent": lambda text, *a, **k: spend_indented(text, *a, *k.values()),
    "tojson": spend_json,
    "batch": lambda value, *a, **k: check_width(*a, *k.values()),
    "slice": lambda value, *a, **k: check_width(*a, *k.values()),
    "round": lambda value, *a, **k: check_width(*(v * 100 for v in (*a, *k.values()) if isinstance(v, int))),
    "join": lambda value, *a, **k: spend(size_of(a or k) * (len(value) if isinstance(value, Sized) else 0)),
}
# of jinja2's filters those that make much of little and that no field needs, and one that is not the same twice
WITHOUT = ("urlize", "wordwrap", "xmlattr", "pprint", "random", "sum", "forceescape")


class _Format:
    """``str.format`` of a text; widths in it are small."""

    def __init__(self, function: Callable[..., str], text: str):
        self.function, self.text = function, text

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        check_format(self.text)
        spend(len(self.text))
        return self.function(*args, **kwargs)


CALLABLE = (Macro, LoopContext, Cycler, Joiner, Undefined, _Format)


def _counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that takes from the budget what it is given and what it makes."""
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0
    before = BEFORE_FILTER.get(name)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = args[skipped:]
        spend(STEP + size_of([*given, kwargs]))
        if before is not None:
            before(*given, **kwargs)
        made = function(*args, **kwargs)
        spend(size_of(made))
        return made

    return call


@pass_context
def _turns(context: Any, values: Any, text: int) -> Any:
    """What a loop goes through, each turn counted with the `text` characters that stand in its body."""
    if isinstance(values, Sized):
        spend(len(values) * (STEP + text))
        return values

    def each(found: Iterable[Any]) -> Iterator[Any]:
        for value in found:
            spend(STEP + text)
            yield value

    return each(values)


@pass_context
def _joined(context: Any, parts: Sequence[Any]) -> str:
    """``a ~ b``."""
    spend(STEP + size_of(parts))
    return "".join(map(str, parts))


@pass_context
def _made(context: Any, value: Any) -> Any:
    """A list, tuple or mapping that a template writes out."""
    spend(STEP + size_of(value))
    return value


class _Count(NodeTransformer):
    """Has loops, ``~`` and literals counted."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_turns", [nodes.Const(text)], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "_joined", [], [], None, None, lineno=node.lineno)

    def _literal(self, node: Any) -> Any:
        self.generic_visit(node)
        if getattr(node, "ctx", "load") != "load":
            return node
        return nodes.Filter(node, "_made", [], [], None, None, lineno=node.lineno)

    visit_List = visit_Tuple = visit_Dict = _literal


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox with plain values only and a budget."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=_shown)
        self.filters = {n: _counted(n, f) for n, f in self.filters.items() if n not in WITHOUT}
        self.filters |= {"_turns": _turns, "_joined": _joined, "_made": _made}
        del self.globals["lipsum"]
        self._functions = [self.globals[name] for name in ("range", "dict", "cycler", "joiner", "namespace")]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        found: nodes.Template = _Count().visit(super()._parse(source, name, filename))
        found.set_environment(self)
        return found

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read an attribute: also by its name in a filter's argument."""
        return super().is_safe_attribute(obj, attr, value) and not isinstance(value, type)

    def wrap_str_format(self, value: Any) -> Any:
        """``str.format`` as jinja2 makes it safe, and bounded."""
        made = super().wrap_str_format(value)
        return None if made is None else _Format(made, value.__self__)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Look at what an operation would make before it is made."""
        spend(STEP)
        numbers = isinstance(left, int) and isinstance(right, int)
        if numbers and operator in "**":
            bits = left.bit_length() * (max(right, 0) if operator == "**" else 1)
            if bits + (right.bit_length() if operator == "*" else 0) > BITS:
                raise TooMuch(f"a whole number of more than {BITS} bits is too large for a template")
        elif operator == "*" and (isinstance(left, int) or isinstance(right, int)):
            count, value = (left, right) if isinstance(left, int) else (right, left)
            spend((len(value) if isinstance(value, str | bytes) else size_of(value)) * max(0, count))
        elif operator == "%" and isinstance(left, str | bytes):
            check_format(left)
            spend(size_of([left, right]))
        elif operator == "+":
            spend(size_of([left, right]))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, called: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what plain values, macros and loops offer, and nothing else."""
        owner, name = getattr(called, "__self__", None), getattr(called, "__name__", "")
        allowed = next((names for kind, names in METHODS.items() if isinstance(owner, kind)), frozenset[str]())
        spend(STEP + size_of([*args, kwargs]) + (size_of(owner) if allowed else 0))
        if name in allowed:
            if name in BEFORE_METHOD:
                BEFORE_METHOD[name](owner, *args, **kwargs)
        elif not isinstance(called, CALLABLE) and not isinstance(owner, CALLABLE) and called not in self._functions:
            raise SecurityError(f"a template can't call {name or type(called).__name__}")
        made = super().call(context, called, *args, **kwargs)
        spend(size_of(made))
        return made


def _shown(value: Any) -> Any:
    """What goes into the text."""
    spend(size_of(value))
    return value


@functools.lru_cache(maxsize=1)
def environment() -> BoundedEnvironment:
    """The one environment of all templates."""
    return BoundedEnvironment()


def render(template: Any, values: Mapping[str, Any]) -> str:
    """A template's text.

    Raises
    ------
    TooMuch
        For a field that is longer than ``LONGEST``, or that takes too much on its way.
    """
    parts, length = [], 0
    with budget():
        for part in template.generate(values):
            length += len(part)
            if length > LONGEST:
                raise TooMuch(f"the field is longer than {LONGEST:,} characters")
            parts.append(part)
    return "".join(parts)
