"""Fields of a task definition: a column's name, or a Jinja template over a row's columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

GIVEN = ("row", "vars", "file", "number", "lettered")  # what a template may name beside the row's columns


def is_template(text: str) -> bool:
    """Whether a field's text is a template rather than a column's name."""
    return "{{" in text or "{%" in text


@dataclass(frozen=True)
class Field:
    """One field of a definition.

    Attributes
    ----------
    key : str
        Its name in the definition, for messages.
    text : str
        ``answer``, ``answers.answer`` (that part of every item of a list) or ``{{ answer | lower }}``.
    """

    key: str
    text: str

    def check(self) -> None:
        """Raise ValueError for a template that doesn't parse."""
        if is_template(self.text):
            self._compiled()

    @property
    def columns(self) -> set[str]:
        """The columns it needs; of a template, those that it names outright."""
        if is_template(self.text):
            from jinja2 import meta

            from .template_sandbox import environment

            return set(meta.find_undeclared_variables(environment().parse(self.text))) - set(GIVEN)
        return {self.text}

    def value(self, row: Mapping[str, Any], **given: Any) -> Any:
        """Its value in a row: the column's own, or the template's text.

        Raises
        ------
        ValueError
            For a missing column and for whatever goes wrong in a template.
        """
        if not is_template(self.text):
            return _column(row, self.text, self.key)
        from jinja2 import TemplateError, UndefinedError

        from .template_sandbox import render

        try:
            return render(self._compiled(), {**row, "row": row, **given})
        except UndefinedError as e:
            raise ValueError(f"{self.key}: {e.message}; columns: {', '.join(row)}") from None
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as e:
            raise ValueError(f"{self.key}: {e}") from None
        except RecursionError:
            raise ValueError(f"{self.key}: the template is nested too deep, or calls itself without an end") from None

    def string(self, row: Mapping[str, Any], **given: Any) -> str:
        """Its value as text; an empty cell is an empty text."""
        value = self.value(row, **given)
        return "" if empty(value) else str(value).strip()

    def _compiled(self) -> Any:
        return _compile(self.key, self.text)


@lru_cache(maxsize=1024)
def _compile(key: str, text: str) -> Any:
    from jinja2 import TemplateSyntaxError

    from .template_sandbox import environment

    try:
        return environment().from_string(text)
    except TemplateSyntaxError as e:
        raise ValueError(f"{key}: {e.message} (line {e.lineno})") from None
    except (RecursionError, MemoryError):
        raise ValueError(f"{key}: the template is nested too deep") from None


def _column(row: Mapping[str, Any], name: str, key: str) -> Any:
    if name in row:
        return row[name]
    root, _, rest = name.partition(".")
    if rest and root in row:
        return _inner(row[root], rest, key)
    raise ValueError(f"has no column {name!r} (the definition's {key!r}); it has {', '.join(row)}")


def _inner(value: Any, name: str, key: str) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_inner(item, name, key) for item in value]
    if isinstance(value, Mapping) and name in value:
        return value[name]
    raise ValueError(f"{key}: {value!r} has no {name!r}")


def empty(value: Any) -> bool:
    """Whether a cell says nothing; tables that went through pandas hold "nan" for that."""
    return value is None or value != value or (isinstance(value, str) and value.strip() in ("", "nan"))


def lettered(options: Sequence[str]) -> str:
    """The options, one a line, as ``A. text``."""
    return "\n".join(f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(options))
