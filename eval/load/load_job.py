"""A load test from its options to its files: servers looked at, blocks in turns, the table at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from vtc.eval.files.atomic import write_atomic
from vtc.eval.files.output_folder import writing_to
from vtc.eval.sweep.locks import Claims
from vtc.eval.tasks.questions import TaskSet
from vtc.eval.terminal.console import say
from vtc.eval.terminal.progress_bars_and_eta import Estimator, make_progress, plain_progress

from .closed_loop import Sent, run_block
from .comparison import compare
from .figures import figures
from .options import LoadOptions
from .prompts import Prompts
from .remarks import remarks
from .run_files import RunFiles
from .schedule import WARM_UP, Block, schedule, still_to_do
from .served_model import ServedModel, look
from .speed_limit import Limit
from .tables import as_json, markdown, rows, screen_table

SUMMARY = "summary"
LOCK = "load test"
VLLM_FRAMES = 32  # of a clip, by default


@dataclass(frozen=True)
class _Run:
    """What blocks need."""

    options: LoadOptions
    served: Mapping[str, ServedModel]
    prompts: Prompts
    files: RunFiles

    def send(self, block: Block, advance: Any) -> Sent:
        """Run one block and write its lines."""
        options = self.options
        target = next(t for t in options.targets if t.name == block.target)
        about = self.served[target.name]
        bodies = self.prompts.bodies(target, block, about.model, about.fixed, block.count(options.requests))
        attempt = self.files.begin(block)

        def done(index: int, outcome: Any) -> None:
            self.files.request(block, attempt, index, outcome)
            advance(1)

        sent = asyncio.run(
            run_block(
                target.url, bodies, target.headers, block.concurrency, options.block_seconds, options.request_seconds,
                done, trust_env=options.remote,
            )
        )  # fmt: skip
        if block.round == WARM_UP:
            _check_warm(block, sent)
        self.files.finish(block, attempt, sent)
        advance(len(bodies) - len(sent.outcomes))
        return sent


def run_load_test(options: LoadOptions, folder: Path, tasks: TaskSet, console: Console) -> dict[str, Any]:
    """Run what is not finished in `folder`, write the summary there and show it; also after Ctrl-C.

    Raises
    ------
    ValueError
        If a server is not there or refuses what is asked, or the folder is another run's.
    """
    served = {target.name: look(target) for target in options.targets}
    with writing_to(folder), Claims(folder) as claims:
        if not claims.take(LOCK):
            raise ValueError(f"another load test writes to {folder}: wait for it, or name another folder by --output")
        files = RunFiles(folder, options.identity)
        limits = {t.name: t.limit for t in options.targets if t.limit is not None}
        if options.measure_limit is not None:
            limits |= _measured(options, tasks, files, console)
        try:
            _run_blocks(_Run(options, served, Prompts(tasks, options, files.run), files), console)
        finally:
            found = _summarise(options, files, limits, served, console)
    return found


def _run_blocks(run: _Run, console: Console) -> None:
    options = run.options
    blocks = schedule(options)
    finished = {(row["target"], row["concurrency"], row["round"]) for row in run.files.blocks()}
    left = still_to_do(blocks, finished)
    done = sum(b.round != WARM_UP for b in blocks) - sum(b.round != WARM_UP for b in left)
    if done:
        say(console, f"resuming: {done} of {options.rounds * _blocks_of_round(options)} blocks were there already")
    end = time.monotonic() + 60 * options.minutes
    sizes = {_part(b): 0 for b in left}
    for b in left:
        sizes[_part(b)] += b.count(options.requests)
    estimator = Estimator(sizes)
    with make_progress(console) as progress:
        bar = progress.add_task("requests", total=sum(sizes.values()), estimator=estimator)
        for block in left:
            if time.monotonic() > end:
                say(console, f"stopped by --minutes {options.minutes:g}: the same command goes on where it was")
                return
            name = f"{block.target}, {block.concurrency} in flight"
            progress.update(bar, description=f"{name}, {f'round {block.round}' if block.round else 'warm-up'}")
            estimator.skip()

            def advance(count: int, block: Block = block) -> None:
                if count:
                    estimator.done(_part(block), count)
                    progress.advance(bar, count)

            run.send(block, advance)


def _part(block: Block) -> str:
    return f"{block.target} {block.concurrency}"


def _blocks_of_round(options: LoadOptions) -> int:
    return len(options.targets) * len(options.concurrencies)


def _check_warm(block: Block, sent: Sent) -> None:
    """Refuse to measure what mostly fails."""
    bad = [outcome.error for outcome in sent.outcomes if not outcome.ok]
    if 2 * len(bad) > len(sent.outcomes):
        more = " (vtc serve --queue sets how many may wait)" if bad[0].startswith("HTTP 429") else ""
        raise ValueError(
            f"target {block.target!r} at concurrency {block.concurrency}: {len(bad)} of {len(sent.outcomes)} requests "
            f"of the warm-up failed: {bad[0]}{more}"
        )


def _measured(options: LoadOptions, tasks: TaskSet, files: RunFiles, console: Console) -> dict[str, Limit]:
    """Limits of an earlier try, else measured now: before the load, which would disturb the timing."""
    from .measure_limit import TURNS, measure_limits

    path = files.folder / "limits.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["model"] == options.measure_limit:
            return {name: Limit(*values) for name, values in before["limits"].items()}
    say(console, "measuring v, s and f in this process")
    with plain_progress(console) as progress:
        task = progress.add_task("limit", total=TURNS)
        found = measure_limits(options, tasks, lambda: progress.advance(task))
        progress.update(task, completed=TURNS)
    listed = {n: [v.tower_share, v.selection_share, v.decoder_flops_ratio] for n, v in found.items()}
    write_atomic(path, json.dumps({"model": options.measure_limit, "limits": listed}, indent=1))
    return found


def _summarise(
    options: LoadOptions,
    files: RunFiles,
    limits: Mapping[str, Limit],
    served: Mapping[str, ServedModel],
    console: Console,
) -> dict[str, Any]:
    found = figures(files.blocks(), files.requests(), options.seed)
    if not found:
        return {}
    compared = compare(options.targets, options.base, found, limits)
    said = remarks(options.targets, options.base, found, compared, options.output_tokens)
    made = rows(options.targets, found, compared)
    notes = [
        f"Ratios are to {options.base.name}, more than 1 is faster; intervals of 95%: of ratios and requests per "
        f"second over rounds, of times over requests. Up to {options.output_tokens} tokens an answer.",
        *(f"Limit of {name}: {limit.words}." for name, limit in limits.items()),
    ]
    if (options.video or 0) > VLLM_FRAMES and any(one.engine == "vllm" for one in served.values()):
        notes.append(
            f"vLLM reads {VLLM_FRAMES} frames of a clip at most unless it was started with "
            """--media-io-kwargs '{"video": {"num_frames": -1}}': look at the prompt tokens."""
        )
    engines = {
        name: {"model": one.model, "engine": one.engine, "fixed_length": bool(one.fixed)}
        for name, one in served.items()
    }
    result = as_json(found, compared, said, {"baseline": options.base.name, "served": engines, **options.identity})
    write_atomic(files.folder / f"{SUMMARY}.json", json.dumps(result, indent=1))
    write_atomic(files.folder / f"{SUMMARY}.md", markdown(made, said, notes))
    console.print(screen_table(made))
    say(console, *(f"- {line}" for line in said), *notes, f"written: {files.folder}")
    return result
