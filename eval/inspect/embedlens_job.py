"""``vtc embedlens``: calibrates the classes of projected tokens of a model."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vtc.bundled_files import bundled_data
from vtc.eval.files.atomic import write_atomic
from vtc.eval.tasks.media.images import open_image
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.terminal.console import make_console, say
from vtc.eval.terminal.progress_bars_and_eta import plain_progress
from vtc.eval.vlm.loading import Loaded, load_model, software
from vtc.pruners.primitives.calibration_file import FORMAT

from .embedlens import Found, Group, calibrate
from .options import FEW, LensOptions, check_lens, picture_files, refuse_few
from .watch_projected_tokens import features_of, table_of

SHOWN = 6  # words of a group


def pictures(data: Path | None, count: int) -> list[tuple[str, Any]]:
    """Names of up to `count` pictures, each with what opens it.

    Parameters
    ----------
    data : Path, optional
        A folder of pictures, or an evaluation set; the bundled one by default.
    count : int
        How many. Of an evaluation set the last in its fixed order are taken: a sweep of few questions asks about the
        first. Of a folder they are spread evenly over the sorted names.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such folder, or fewer than ``LEAST`` pictures in it.
    """
    if data is not None and not data.is_dir():
        raise FileNotFoundError(f"--data: no such folder: {data}")
    files = None if data is None else picture_files(data)
    if files is None:
        tasks = load_tasks(data or bundled_data())
        pictures = (i for q in tasks.subset().questions if q.kind == "image" for i in q.media)
        ids = list(dict.fromkeys(pictures))[-count:]
        found = [(i, lambda i=i: tasks.image(i)) for i in ids]
    else:
        places = np.linspace(0, max(len(files) - 1, 0), min(count, len(files))).round().astype(int).tolist()
        found = [(str(files[i]), lambda path=files[i]: open_image(path)) for i in dict.fromkeys(places)]
    refuse_few(len(found), data or "the bundled set")
    return found


def run_embedlens(options: LensOptions, console: Console | None = None) -> Found:
    """Calibrate, show what was found, and write the file that ``embedlens(classes=...)`` reads.

    Raises
    ------
    ValueError, FileNotFoundError, NotImplementedError
        For an option or a model that does not work; the message is one line.
    """
    console = console or make_console()
    started = time.time()
    check_lens(options)
    folder = options.output.resolve().parent
    if options.output.is_dir() or not folder.is_dir():
        raise ValueError(f"--output must be a file in a folder that is there, got {options.output}")
    chosen = pictures(options.data, options.images)
    loaded = load_model(options.model, options.device, options.dtype)
    table = table_of(loaded)
    features = []
    with plain_progress(console) as progress:
        for _, picture in progress.track(chosen, description="looking"):
            features.append(features_of(loaded, picture()))
    found = calibrate(features, table, options.rules)
    write_atomic(options.output, json.dumps(as_json(found, loaded, table.shape, options), indent=1) + "\n")
    console.print(classes_table(found, loaded))
    say(console, *remarks(found, options), f"{time.time() - started:.0f} s. Written: {options.output}")
    return found


def words_of(loaded: Loaded, ids: Sequence[int]) -> list[str]:
    """The vocabulary's words; ids beyond the tokenizer (padding rows) have none."""
    tokenizer = getattr(loaded.processor, "tokenizer", loaded.processor)
    made = tokenizer.convert_ids_to_tokens(list(ids))
    return [f"#{i}" if word is None else str(word) for i, word in zip(ids, made, strict=True)]


def as_json(found: Found, loaded: Loaded, shape: Sequence[int], options: LensOptions) -> dict[str, Any]:
    """What the file holds; ``vtc.pruners.primitives.vocabulary`` reads it."""

    def about(group: Group) -> dict[str, Any]:
        return {
            "ids": list(group.ids),
            "words": words_of(loaded, group.ids),
            "share": round(group.share, 6),
            "share_of_an_image": [round(s, 6) for s in group.shares],
            "cosine": round(group.cosine, 6),
            "relative_norm": round(group.norm, 4),
        }

    return {
        "format": FORMAT,
        "model": loaded.name,
        "identity": loaded.identity,
        "vocabulary_size": shape[0],
        "hidden_size": shape[1],
        "images": found.images,
        "tokens": found.tokens,
        "cosine": round(found.cosine, 6),
        "rules": vars(options.rules),
        "versions": software(),
        "classes": [
            {
                "kind": c.kind,
                **about(c.group),
                "threshold": round(c.threshold, 6),
                "found": round(c.found, 4),
                "false": round(c.false, 4),
                "direction": [float(f"{v:.6g}") for v in c.direction.tolist()],
            }
            for c in found.classes
        ],
        "others": [about(g) for g in found.others[:20]],
    }


def classes_table(found: Found, loaded: Loaded) -> Table:
    """The classes, and below them the largest groups that are none."""
    title = f"Projected tokens of {loaded.name} by nearest vocabulary id, over {found.images} images"
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("class", "words (ids)"):
        table.add_column(name)
    for name in ("share", "of an image", "cosine across images", "norm", "found", "false"):
        table.add_column(name, justify="right")

    def row(kind: str, group: Group, *more: str) -> None:
        named = [f"{w} ({i})" for w, i in zip(words_of(loaded, group.ids[:SHOWN]), group.ids, strict=False)]
        rest = [f"and {len(group.ids) - SHOWN} more"] if len(group.ids) > SHOWN else []
        low, high = group.shares
        table.add_row(
            kind,
            ", ".join(named + rest),
            f"{100 * group.share:.1f}%",
            f"{100 * low:.1f}-{100 * high:.1f}%",
            f"{group.cosine:.3f}",
            f"{group.norm:.2f}",
            *(more or ("-", "-")),
        )

    for c in found.classes:
        row(c.kind, c.group, f"{100 * c.found:.0f}%", f"{100 * c.false:.1f}%")
    for group in found.others[:5]:
        row("-", group)
    return table


def remarks(found: Found, options: LensOptions) -> list[str]:
    """What the table means, in words."""
    rules, said = options.rules, []
    if found.images < FEW:
        said.append(f"Only {found.images} images: take {FEW} or more varied ones before relying on this.")
    shares = {kind: found.share(kind) for kind in ("sink", "dead")}
    alive = 1 - sum(shares.values())
    if found.classes:
        parts = ", ".join(f"{100 * share:.1f}% {kind}" for kind, share in shares.items())
        said.append(
            f"{parts}, {100 * alive:.1f}% alive (LLaVA-1.5-7B in the paper: about 10, 30 and 60%). Any two tokens of "
            f"different images have a mean cosine of {found.cosine:.3f}."
        )
        said.append(
            "'found' and 'false': shares of the class's and of all other tokens that its direction takes in. Use it: "
            f"embedlens(classes='{options.output}')"
        )
        return said
    near = max(found.others, key=lambda g: g.cosine, default=None)
    closest = (
        f"; the group most alike has a cosine of {near.cosine:.3f} and a share of {100 * near.share:.1f}%"
        if near is not None
        else "; no vocabulary id is the nearest of some token in nearly every image"
    )
    bars = (
        f"No sinks (cosine >= {rules.sink_cosine:g}, share <= {100 * rules.sink_share:g}%) and no dead tokens (cosine "
        f">= {rules.dead_cosine:g}, share >= {100 * rules.dead_share:g}%) in this model"
    )
    said.append(
        f"{bars}{closest}. With this file embedlens takes all tokens for alive; small models may have no such classes."
    )
    return said
