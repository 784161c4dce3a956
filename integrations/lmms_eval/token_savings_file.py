"""What a run saved in tokens, written beside lmms-eval's own results: these have no input tokens of such backends."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from lmms_eval.api.instance import GenerationResult, TokenCounts
from loguru import logger

from vtc.eval.files.atomic import write_atomic
from vtc.version import __version__

from .compression import Setup
from .token_counts import Spent, TokenLog


@dataclass
class VisualTokenCounts(TokenCounts):
    """lmms-eval's counts of a request, with its visual tokens in the samples that it logs."""

    spent: Spent | None = None

    def to_dict(self) -> dict[str, Any]:
        """Names and numbers, for JSON."""
        visual = {k: v for k, v in vars(self.spent).items() if k.startswith("visual")} if self.spent else {}
        return {**super().to_dict(), **visual}


def with_tokens(answer: Any, spent: Spent | None) -> Any:
    """An answer with its counts of tokens; other forms than text stay as they are."""
    if isinstance(answer, str):
        answer = GenerationResult(answer)
    if spent is None or not isinstance(answer, GenerationResult):
        return answer
    output = answer.token_counts.output_tokens if answer.token_counts is not None else None
    return replace(answer, token_counts=VisualTokenCounts(spent.prompt_tokens, output, spent=spent))


def task_of(request: Any) -> Any:
    """The task that a request belongs to, which its functions are bound to; None if unknown."""
    owners = (getattr(argument, "__self__", None) for argument in request.args)
    return next((owner for owner in owners if hasattr(owner, "config")), None)


def path_of(requests: Sequence[Any], model_args: str, started: float, suffix: str) -> Path | None:
    """A file beside lmms-eval's results, named like them by the time of its start; None if it writes none."""
    from lmms_eval.loggers.evaluation_tracker import GeneralConfigTracker
    from lmms_eval.utils import sanitize_model_name

    options = next((task.args for request in requests if hasattr(task := task_of(request), "args")), None)
    output = getattr(options, "output_path", None)
    if not output:
        return None
    zone: tzinfo = timezone.utc
    with suppress(KeyError, OSError, ValueError):
        zone = ZoneInfo(str(getattr(options, "timezone", None)))
    stamp = datetime.fromtimestamp(started, zone).strftime("%Y%m%d_%H%M%S")
    folder = Path(output) / sanitize_model_name(GeneralConfigTracker._get_model_name(model_args))
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{stamp}_{suffix}"


class Results:
    """Counts of a run and the file that holds them.

    Attributes
    ----------
    path : Path or None
        The file; None before the first answers and where lmms-eval writes no results either.
    """

    def __init__(self, setup: Setup, model_args: str, log: TokenLog, failed: list[str]):
        self.setup, self.model_args, self.log, self.failed = setup, model_args, log, failed
        self.path: Path | None = None
        self._started = time.time()
        self._warned: set[str] = set()

    def summary(self) -> dict[str, Any]:
        """What the file says."""
        about = {
            "vtc": __version__,
            "model_args": self.model_args,
            "base": self.setup.base,
            "method": self.setup.spec,
            "positions": self.setup.positions,
            "rank": int(os.environ.get("RANK", "0")),
            "world_size": int(os.environ.get("WORLD_SIZE", "1")),
            "failed": len(self.failed),
        }
        return {**about, **self.log.summary()}

    def take(self, requests: Sequence[Any], answers: list[Any]) -> list[Any]:
        """Take a batch of answers: write the counts, and give the answers back with their own."""
        self._warn(requests)
        found = []
        for request, answer in zip(requests, answers, strict=True):
            again = "__padding_only__" in request.metadata
            found.append(with_tokens(answer, self.log.take(request.task_name, request.doc_id, again)))
        told = self.summary()
        rank = f"_rank{told['rank']}" if told["world_size"] > 1 else ""
        self.path = path_of(requests, self.model_args, self._started, f"vtc_tokens{rank}.json")
        if self.path is not None:
            write_atomic(self.path, json.dumps(told, indent=1) + "\n")
        kept, total, count = told["visual_tokens_kept"], told["visual_tokens"], told["requests"]
        where = f": {self.path}" if self.path is not None else ""
        logger.info(f"vtc: {kept} of {total} visual tokens kept in {count} requests{where}")
        return found

    def _warn(self, requests: Sequence[Any]) -> None:
        for task in filter(None, map(task_of, requests)):
            kinds = ("lmms_eval_specific_kwargs", "model_specific_generation_kwargs")
            names = {name for kind in kinds for name in getattr(task.config, kind, None) or ()}
            if self.setup.base in names and task.config.task not in self._warned:
                self._warned.add(task.config.task)
                logger.warning(
                    f"{task.config.task} has prompts or options of its own for {self.setup.base}, none for vtc: "
                    f"compare with --model vtc and method=none, not with --model {self.setup.base}"
                )
