"""``vtc tune`` as a job: from options to a configuration, or to the plain word that nothing qualifies."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vtc.config import CONFIG_NAME, VTCConfig
from vtc.eval.cost.prefill_cost import LMCost, lm_cost
from vtc.eval.files.atomic import write_atomic
from vtc.eval.files.output_folder import writing_to
from vtc.eval.sweep.asked_questions import asked_questions
from vtc.eval.sweep.fingerprint import configuration, files_read, provenance
from vtc.eval.sweep.plan import leave_out, plan_cells
from vtc.eval.sweep.results_store import AnswerStore, ResultStore, results_folder
from vtc.eval.sweep.sweep_run import Sweep
from vtc.eval.sweep.worker_processes import Rank
from vtc.eval.tasks.questions import Question
from vtc.eval.terminal.console import make_console, say, say_found
from vtc.eval.terminal.progress_bars_and_eta import make_progress
from vtc.eval.vlm.loading import Loaded, config_hash, load_model
from vtc.eval.vlm.pruning_settings import UNPRUNED
from vtc.model_sources import BUNDLED
from vtc.pipeline_text import parse
from vtc.pruners.registry import imported

from .accuracy_share import Paired
from .answering import Answering
from .confirm import confirm, sequence
from .options import TuneOptions, check_options
from .search_and_confirmation_parts import Parts, images_of
from .successive_halving import FINALISTS, Rung, search
from .tune_report import Found, finalists_table, rung_line, tune_json, verdict

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
        sweep = Sweep.of(options, loaded, tasks, plan.cells, cost)
        _forget(folder)
        with AnswerStore(folder / "results.jsonl", config) as store:
            found = _search(options, parts, rungs, sweep, store, console)
        about = {
            **provenance(loaded, tasks, described, time.time() - started),
            "split": parts.to_json(),
            "command": shlex.join(["vtc", *sys.argv[1:]]),
            "left_out": plan.left_out,
        }
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


def _search(
    options: TuneOptions,
    parts: Parts,
    rungs: Sequence[Sequence[Question]],
    sweep: Sweep,
    store: ResultStore,
    console: Console,
) -> Found:
    """Go down the rungs, and confirm what is left."""
    found = Found(options, images=len(images_of(parts.confirmation)))
    specs = [cell.spec for cell in sweep.cells if cell.spec != UNPRUNED.spec]

    def told(rung: Rung) -> None:
        found.rungs.append(rung)
        say(console, rung_line(rung, len(found.rungs), len(rungs)))

    with make_progress(console) as progress:
        say_found(console, len(store.rows))
        later = parts.later(rungs, len(specs), options.eta)
        trial = Answering(sweep, store, progress, options.by, options.source, options.workers, later)
        if options.by == "prefill":
            trial.time_prefills(store.path.parent / "timing.json")
        search(specs, rungs, trial, options.target, options.confidence, options.eta, FINALISTS, options.seed, told)
        _decide(found, parts, trial)
    return found


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
