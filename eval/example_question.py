"""A picture and a question to try things with."""

from __future__ import annotations

from PIL.Image import Image

from vtc.bundled_files import bundled_data
from vtc.eval.tasks.reading.load import load_tasks


def example(number: int = 0) -> tuple[Image, str]:
    """A picture of the bundled evaluation set and a question about it, to try things with.

    Parameters
    ----------
    number : int
        Which question of the set, from 0.

    Returns
    -------
    tuple of PIL.Image.Image and str
        What goes into a processor's chat template.

    Raises
    ------
    IndexError
        If there is no such question.

    Examples
    --------
    >>> image, question = vtc.example()  # doctest: +SKIP
    """
    tasks = load_tasks(bundled_data())
    if not 0 <= number < len(tasks.questions):
        raise IndexError(f"number={number} is out of range: the bundled set has {len(tasks.questions)} questions")
    asked = tasks.questions[number]
    return tasks.image(asked.image_id), asked.question
