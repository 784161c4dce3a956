"""Around a backend's requests: its model's ``generate`` is watched, to count tokens and to see failures."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .token_counts import TokenLog

METHODS = ("generate_until", "generate_until_multi_round", "generate_visual_cot")


class Failed(BaseException):
    """The model failed on a request. No ``Exception``: backends take those for an empty answer, a wrong one."""


class Rows:
    """A split of a task's data that says which of its rows are read."""

    def __init__(self, docs: Any, note: Callable[[int], None]):
        self._docs, self._note = docs, note

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, int):
            self._note(row)
        return self._docs[row]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._docs)

    def __len__(self) -> int:
        return len(self._docs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._docs, name)


def watched_data(task_dict: Mapping[str, Any], log: TokenLog) -> dict[str, Any]:
    """A backend's data of all tasks, which tells `log` what is read."""

    def watched(task: str, splits: Any) -> Any:
        return {split: Rows(docs, functools.partial(log.read, task)) for split, docs in splits.items()}

    return {task: watched(task, splits) if hasattr(splits, "items") else splits for task, splits in task_dict.items()}


def watch_generate(model: Any, log: TokenLog, on_error: str, failed: list[str]) -> None:
    """Note tokens and failures of every call of ``model.generate``."""
    generate = model.generate

    @functools.wraps(generate)
    def watched(*args: Any, **kwargs: Any) -> Any:
        try:
            output = generate(*args, **kwargs)
        except Exception as error:
            failed.append(f"{type(error).__name__}: {error}")
            log.forget()
            if on_error == "skip":
                raise
            raise Failed from error
        ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        if ids is not None and ids.ndim == 2:
            log.generated(model, ids, kwargs.get("attention_mask"))
        return output

    model.generate = watched


def own_options(request: Any) -> Any:
    """A copy of a request with generation options of its own: backends change them.

    lmms-eval's cache keys a response by the options as they are behind it: changed, it is never found again.
    """
    twin = copy.copy(request)
    twin.arguments = tuple(dict(a) if isinstance(a, dict) else a for a in request.args)
    return twin


def stop(failure: Failed) -> BaseException:
    """What ends the run: an error, and among several processes the end of this one, for which the others don't wait."""
    cause = failure.__cause__
    message = (
        f"the model failed on a request ({type(cause).__name__}: {cause}); that is no wrong answer, so the run stops "
        "(on_error=skip in model_args takes such requests for empty answers)"
    )
    return SystemExit(f"vtc: {message}") if int(os.environ.get("WORLD_SIZE", "1")) > 1 else RuntimeError(message)


def watch_requests(lm: Any, log: TokenLog, done: Callable[[Sequence[Any], list[Any]], list[Any]]) -> None:
    """Hand the requests and answers of each call of a backend's methods to `done`, which gives answers back."""

    def around(method: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @functools.wraps(method)
        def answer(requests: Sequence[Any]) -> Any:
            data, lm.task_dict = lm.task_dict, watched_data(lm.task_dict, log)
            try:
                answers = method([own_options(request) for request in requests])
            except Failed as failure:
                raise stop(failure) from failure.__cause__
            finally:
                lm.task_dict = data
            return done(requests, answers)

        return answer

    for name in METHODS:
        if hasattr(lm, name):
            setattr(lm, name, around(getattr(lm, name)))
