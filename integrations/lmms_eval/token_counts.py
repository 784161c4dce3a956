"""What each request cost in tokens: read behind every ``model.generate``, and assigned to the request it answered."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vtc.eval.cost.prefill_cost import Measured
from vtc.eval.vlm.prompts import visual_token_ids

Place = tuple[str, int]  # task and row of its data


@dataclass(frozen=True)
class Spent:
    """Tokens of one request.

    ``prompt_tokens`` is the prompt before pruning, the rest are its visual tokens: before it, behind the last step, and
    averaged over the decoder layers.
    """

    task: str | None
    doc_id: int | None
    prompt_tokens: int
    visual_tokens: int
    visual_tokens_kept: int
    visual_tokens_mean_per_layer: float


class TokenLog:
    """Counts of all requests of a run.

    Backends order and batch requests as they like; which ones a call of ``generate`` answers is told by the rows of the
    task's data that they read just before it.
    """

    def __init__(self) -> None:
        self.rows: list[Spent] = []
        self._read: list[Place] = []
        self._answers: dict[Place, deque[Spent]] = defaultdict(deque)

    def read(self, task: str, doc_id: int) -> None:
        """A backend read a row of a task's data."""
        self._read.append((task, doc_id))

    def forget(self) -> None:
        """What was read was not answered."""
        self._read.clear()

    def generated(self, model: Any, ids: torch.Tensor, mask: torch.Tensor | None) -> None:
        """A backend called ``generate`` with these token ids ``[B, L]`` and this mask."""
        count = len(ids)
        counts = measure(model, ids)
        for row, place in enumerate(self._places(count)):
            measured = counts[row]
            prompt = int(mask[row].sum()) if mask is not None else ids.shape[1]
            mean = round(measured.mean, 3)
            task, doc_id = place or (None, None)
            spent = Spent(task, doc_id, prompt, measured.total, measured.kept, mean)
            self.rows.append(spent)
            if place is not None:
                self._answers[place].append(spent)

    def _places(self, count: int) -> Sequence[Place | None]:
        """The requests of a batch: what was read since the last one; unknown where that is another number."""
        read, self._read = self._read, []
        for found in (read, list(dict.fromkeys(read))):  # some backends read a row twice
            if len(found) == count:
                return found
        return [None] * count

    def take(self, task: str, doc_id: int, again: bool = False) -> Spent | None:
        """The tokens of the next answer to a row of a task; `again`: of one that only keeps the processes in step."""
        waiting = self._answers.get((task, doc_id))
        found = waiting.popleft() if waiting else None
        if again and found is not None:
            self.rows = [row for row in self.rows if row is not found]
        return found

    def summary(self) -> dict[str, Any]:
        """Sums over the requests, and every one."""
        names = ("prompt_tokens", "visual_tokens", "visual_tokens_kept", "visual_tokens_mean_per_layer")
        sums = {name: sum(getattr(row, name) for row in self.rows) for name in names}
        share = sums["visual_tokens_kept"] / sums["visual_tokens"] if sums["visual_tokens"] else None
        return {"requests": len(self.rows), **sums, "kept_share": share, "per_request": [asdict(r) for r in self.rows]}


def measure(model: Any, ids: torch.Tensor) -> list[Measured]:
    """Visual tokens of each row of a batch that `model` has just answered."""
    report = getattr(getattr(model, "vtc", None), "report", None)
    if report is None:
        known = torch.tensor(visual_token_ids(model.config), dtype=ids.dtype, device=ids.device)
        visual = torch.isin(ids, known).sum(1)
        return [Measured.unpruned(n, 1) for n in visual.tolist()]  # the same in every layer
    rows = 1 + max((span.sample for span in report.spans), default=0)
    beams = max(1, rows // len(ids))  # beams and several sequences repeat each prompt
    return [Measured.from_report(report, row * beams, report.depth) for row in range(len(ids))]
