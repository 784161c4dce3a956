"""Which output of a classifier stands for which class of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def place_labels(
    classes: Sequence[str], outputs: int, named: Sequence[str] | None, said: Mapping[str, Any], where: str
) -> tuple[dict[str, int], str]:
    """The output of each class.

    Parameters
    ----------
    classes : sequence of str
        Of the data, sorted.
    outputs : int
        How many the model has.
    named : sequence of str, optional
        The model's own names of its outputs.
    said : mapping
        ``classes.json`` or ``classes.txt``, which go before everything else.
    where : str
        What error messages call the data.

    Returns
    -------
    dict
        Class to output.
    str
        By what it was found, in words.

    Raises
    ------
    ValueError
        Where it can't be told, or a number is none of an output.
    """
    if said:
        lacking = [name for name in classes if name not in said]
        if lacking:
            raise ValueError(f"{where}: its classes file does not say which output the class {lacking[0]!r} is")
        return {name: _output(said[name], name, outputs, where) for name in classes}, "the classes file"
    if named is not None and set(classes) <= set(named):
        return {name: named.index(name) for name in classes}, "the model's names"
    if all(name.isdecimal() for name in classes):
        return {name: _output(int(name), name, outputs, where) for name in classes}, "their numbers"
    if len(classes) == outputs:
        return {name: i for i, name in enumerate(classes)}, "sorted order"
    raise ValueError(
        f"{where} has {len(classes)} classes ({', '.join(classes[:3])}, ...), the model has {outputs} outputs: say "
        'which is which in classes.json ({"cat": 281, ...}) or classes.txt (a class per line, in the outputs\' order)'
    )


def _output(value: Any, name: str, outputs: int, where: str) -> int:
    if not isinstance(value, int):
        raise ValueError(f"{where}: the class {name!r} is {value!r} in its classes file; a classifier needs a number")
    if not 0 <= value < outputs:
        raise ValueError(f"{where}: the class {name!r} is output {value}, but the model has 0 to {outputs - 1}")
    return value
