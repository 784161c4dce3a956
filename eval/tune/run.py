"""The job: from options to a configuration, or to the plain word that nothing qualifies."""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vtc.config import CONFIG_NAME, VTCConfig
from vtc.pruners.registry import imported
from vtc.sources import BUNDLED
from vtc.spec import parse

from ..asked import asked_questions
from ..cells import UNPRUNED
from ..configuration import configuration, files_read, provenance
from ..console import make_console, say, say_found
from ..cost import LMCost, lm_cost
from ..loading import Loaded, config_hash, load_model
from ..options import LONGEST, longest_answers
from ..outputs import results_folder, writing_to
from ..plan import leave_out, plan_cells
from ..progress import make_progress
from ..runner import Sweep
from ..store import AnswerStore, write_atomic
from ..workers import Rank
from .answering import Answering
from .confirm import confirm, sequence
from .halving import FINALISTS, Rung, search
from .options import TuneOptions, check_options
from .parts import Parts, images_of
from .report import Found, finalists_table, rung_line, tune_json, verdict
from .shares import Paired

REPORT = "tune.json"
ENOUGH = 150  # questions of each bundled task: half of them have to confirm


def run_tune(options: TuneOptions, console: Console | None = None) -> Found:
    """Search (or go on searching), confirm, and write ``tune.json`` and, if something qualifies, ``vtc_config.json``.

    Raises
    ------
    ValueError, TypeError, FileNotFoundError
        For an option, a model or an evaluation set that does not work; the message is one line.
    KeyboardInterrupt
        Passed on; finished answers stay in the output folder, and the same command goes on from there.
    """
    check_options(options)
    if Rank.from_environment().world > 1:
        raise ValueError("vtc tune is started once, not by a launcher: --workers says how many processes it uses")
    console, started = console or make_console(), time.time()
    everything, tasks = asked_questions(options, ENOUGH)
    tasks = replace(tasks, tasks=tuple(t for t in tasks.tasks if tasks.counts[t]))
    parts = Parts.of(options, tasks)
    plan = plan_cells(options.pruners, options.keeps, (options.seed,))
    loaded = load_model(*options.source)
    cost = _cost_model(options, loaded)
    plan = leave_out(plan, loaded, tasks)
    settings = len(plan.cells) - 1
    if not settings:
        raise ValueError(f"--pruners {','.join(options.pruners)}: no setting of these runs on this model")
    described = {**configuration(options, loaded, everything), **files_read(plan.cells)}
    config = config_hash(described)
    folder = results_folder(options.output, loaded, everything, config, "tune")
    with writing_to(folder):
        rungs = parts.rungs(settings, options)
        say(console, parts.stated(options, tasks), *plan.remarks())
        say(console, f"{settings} settings, {len(rungs)} rungs, model {loaded.name}; results in {folder}")
        sweep = Sweep(
            loaded, tasks, plan.cells, cost, options.batch_size, LONGEST, options.share,
            longest_answers(options, tasks), options.num_frames, options.cache_bytes,
        )  # fmt: skip
        found = Found(options, images=len(images_of(parts.confirmation)))
        _forget(folder)
        with AnswerStore(folder / "results.jsonl", config) as store, make_progress(console) as progress:
            say_found(console, len(store.rows))
            later = parts.later(rungs, settings, options.eta)
            trial = Answering(sweep, store, progress, options.by, options.source, options.workers, later)
            if options.by == "prefill":
                trial.time_prefills(folder / "timing.json")

            def told(rung: Rung) -> None:
                found.rungs.append(rung)
                say(console, rung_line(rung, len(found.rungs), len(rungs)))

            specs = [cell.spec for cell in plan.cells if cell.spec != UNPRUNED.spec]
            search(specs, rungs, trial, options.target, options.confidence, options.eta, FINALISTS, options.seed, told)
            _decide(found, parts, trial)
        about = {
            **provenance(loaded, tasks, described, time.time() - started), "split": parts.to_json(),
            "command": shlex.join(["vtc", *sys.argv[1:]]), "left_out": plan.left_out,
        }  # fmt: skip
        _write(folder, found, about)
    if found.trialled:
        console.print(finalists_table(found))
    written = f"{folder}/{REPORT}" + (f", {CONFIG_NAME}" if found.winner else f"; no {CONFIG_NAME}")
    say(console, *verdict(found), f"{time.time() - started:.0f} s. Written: {written}")
    if found.winner:
        say(console, f"To use it: {to_use(options.model, folder, found.winner.spec)}")
    return found


def to_use(model: str | None, folder: Path, spec: str) -> str:
    """A line of Python that loads the model with what was found, wherever it is run.

    Parameters
    ----------
    model : str, optional
        As ``--model`` names it.
    folder : Path
        Holds the configuration.
    spec : str
        The setting; methods of a user's are imported before.
    """
    name = BUNDLED if model is None else str(Path(model).resolve()) if Path(model).is_dir() else model
    own = any(not type(pruner).__module__.startswith("vtc.") for pruner in parse(spec))
    lines = ["import vtc", *(f"vtc.import_methods({source!r})" for source in imported() if own)]
    config = f"vtc.VTCConfig.from_pretrained({str(folder.resolve())!r})"
    return "; ".join([*lines, f"model = vtc.load({name!r}, {config})"])


def _cost_model(options: TuneOptions, loaded: Loaded) -> LMCost | None:
    try:
        return lm_cost(loaded.model)
    except NotImplementedError as e:
        if options.by == "flops":
            raise ValueError(f"{e}: choose --by tokens or --by prefill") from None
        return None


def _decide(found: Found, parts: Parts, trial: Answering) -> None:
    """Confirm the finalists."""
    chain, options = sequence(found.rungs[-1].alive), found.options
    if not chain:
        return
    held_out = parts.confirmation
    answered = trial([UNPRUNED.spec, *(s.spec for s in chain)], held_out, f"confirming {len(chain)}")
    plain = answered[UNPRUNED.spec].scores
    found.accuracy = float(Paired(held_out, plain).plain.mean())
    found.trialled = confirm(chain, held_out, plain, answered, options.target, options.confidence, options.seed)


def _forget(folder: Path) -> None:
    """Remove what an earlier search decided here, so that it can't be taken for this one's."""
    if (folder / CONFIG_NAME).exists() and not (folder / REPORT).exists():
        raise ValueError(f"{folder} has a {CONFIG_NAME} that vtc tune did not write: choose another --output")
    (folder / CONFIG_NAME).unlink(missing_ok=True)
    (folder / REPORT).unlink(missing_ok=True)


def _write(folder: Path, found: Found, about: dict[str, Any]) -> None:
    write_atomic(folder / REPORT, json.dumps(tune_json(found, about), indent=1) + "\n")
    if found.winner:  # after the report: a configuration without one is somebody else's
        VTCConfig.of(parse(found.winner.spec)).save_pretrained(folder)
