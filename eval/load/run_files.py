"""The files of a run: a line per request as it ends, a line per finished block; a kill loses the open block alone."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vtc.eval.files.atomic import write_atomic

from .closed_loop import Sent
from .one_request import Outcome
from .schedule import Block

ABOUT, REQUESTS, BLOCKS = "run.json", "requests.jsonl", "blocks.jsonl"
DIGITS = 6  # of seconds


class RunFiles:
    """The results in one folder.

    Parameters
    ----------
    folder : Path
        It is there.
    identity : mapping
        What results depend on; a folder with another one is refused.

    Raises
    ------
    ValueError
        If the folder holds another run.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder = folder
        about = folder / ABOUT
        wanted = json.loads(json.dumps(identity))
        if about.exists():
            try:
                found = json.loads(about.read_text(encoding="utf-8"))
                before, self.run = found["identity"], str(found["run"])
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{about} is not of a load test: name another folder by --output") from None
            if before != wanted:
                odd = next(key for key in {**before, **wanted} if before.get(key) != wanted.get(key))
                raise ValueError(
                    f"{folder} holds a load test with another {odd.replace('_', ' ')}: name another folder by --output"
                )
        else:
            self.run = secrets.token_hex(4)
            write_atomic(about, json.dumps({"run": self.run, "identity": wanted}, indent=1))

    def begin(self, block: Block) -> str:
        """The name of a try of a block: what a killed one has written does not count."""
        return f"{block.target}/{block.concurrency}/{block.round}/{secrets.token_hex(4)}"

    def request(self, block: Block, attempt: str, index: int, outcome: Outcome) -> None:
        """Write one request's line."""
        found = asdict(outcome)
        found = {k: round(v, DIGITS) if isinstance(v, float) else v for k, v in found.items()}
        found["gaps"] = [round(gap, DIGITS) for gap in outcome.gaps]
        self._append(REQUESTS, {**asdict(block), "index": index, "attempt": attempt, **found})

    def finish(self, block: Block, attempt: str, sent: Sent) -> None:
        """Write a block's line, which makes its requests count."""
        ok = sum(outcome.ok for outcome in sent.outcomes)
        about = {"seconds": round(sent.seconds, DIGITS), "ok": ok, "sent": len(sent.outcomes), "cut": sent.cut}
        self._append(BLOCKS, {**asdict(block), "attempt": attempt, **about})

    def blocks(self) -> list[dict[str, Any]]:
        """The finished blocks, each once."""
        found: dict[tuple[str, int, int], dict[str, Any]] = {}
        for row in self._rows(BLOCKS):
            found.setdefault((row["target"], row["concurrency"], row["round"]), row)
        return list(found.values())

    def requests(self) -> Iterator[dict[str, Any]]:
        """The requests of finished blocks."""
        counted = {row["attempt"] for row in self.blocks()}
        return (row for row in self._rows(REQUESTS) if row["attempt"] in counted)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        path = self.folder / name
        with open(path, "ab+") as file:
            torn = False
            if file.tell():
                file.seek(-1, 2)
                torn = file.read(1) != b"\n"  # a kill in the middle of a line
            file.write((b"\n" if torn else b"") + json.dumps(row).encode() + b"\n")

    def _rows(self, name: str) -> Iterator[dict[str, Any]]:
        path = self.folder / name
        if not path.exists():
            return
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:  # torn by a kill
                    continue
                if isinstance(row, dict) and "attempt" in row:
                    yield row
