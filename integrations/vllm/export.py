"""What to start: a folder that is a model with our architecture and settings beside it, and the command for it."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .families import ROWS, Row, row_of
from .refusals import SWITCH, refuse_checkpoint, refuse_pipeline
from .settings import EngineSettings

OVERRIDES = "hf_overrides.json"


@dataclass(frozen=True)
class Export:
    """What was written: the arguments of the server's command, and notes for whoever starts it."""

    arguments: list[str]
    notes: list[str]

    @property
    def command(self) -> str:
        """To be pasted into a shell."""
        return " ".join(a if a.startswith('"$(') else shlex.quote(a) for a in ["vllm", "serve", *self.arguments])


def row_for(config: dict[str, Any], name: str) -> Row:
    """The plugin's row for a checkpoint's ``config.json``.

    Raises
    ------
    ValueError
        If it has none for this architecture, or the checkpoint is exported already.
    """
    architectures = config.get("architectures") or []
    row = row_of(architectures)
    if row is None:
        known = ", ".join(row.stock for row in ROWS)
        raise ValueError(
            f"{name} is a {' or '.join(map(str, architectures)) or 'model without an architecture'}, for which the "
            f"vLLM plugin has no row; it has {known}"
        )
    refuse_checkpoint((config.get("vision_config") or {}).get("model_type"), row)
    return row


def settings_of(pruner: str, keep: Any, choices: Sequence[str], imports: Sequence[str]) -> dict[str, Any]:
    """The ``vtc`` settings, checked as an engine checks them when it starts."""
    given: dict[str, Any] = {"pruner": pruner}
    more = {"keep": keep, "choices": list(choices), "imports": list(imports)}
    given |= {name: value for name, value in more.items() if value}
    for pipeline in EngineSettings.read(given).pipelines:
        refuse_pipeline(pipeline)
    return given


def export(folder: Path, model: str, config: dict[str, Any], settings: dict[str, Any], copy: bool = False) -> Export:
    """Write what vLLM is to be started with.

    Parameters
    ----------
    folder : Path
        Where; made if it is not there.
    model : str
        A folder with the model, whose files are linked, or a hub id, whose files stay where they are.
    config : dict
        The model's ``config.json``.
    settings : dict
        Of ``settings_of``.
    copy : bool
        Copy a folder's files instead of linking them.

    Raises
    ------
    ValueError, FileExistsError
        If the plugin has no row for the model, or `folder` holds something else.
    """
    row = row_for(config, model)
    if folder.exists() and any(folder.iterdir()) and not _ours(folder):
        raise FileExistsError(f"{folder} is not empty, and not of `vtc export-vllm`: name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    ours = {"architectures": [row.name], "vtc": settings}
    switch = ["--video-pruning-rate", f"{SWITCH}"] if row.rotary else []
    source = Path(model).expanduser()
    if source.is_dir():
        _fill(folder, source.resolve(), copy)
        (folder / "config.json").write_text(json.dumps({**config, **ours}, indent=2) + "\n", encoding="utf-8")
        return Export([str(folder), *switch], _notes(row, settings))
    path = folder / OVERRIDES
    path.write_text(json.dumps(ours, indent=1) + "\n", encoding="utf-8")
    return Export([model, "--hf-overrides", f'"$(cat {shlex.quote(str(path))})"', *switch], _notes(row, settings))


def _ours(folder: Path) -> bool:
    if (folder / OVERRIDES).is_file():
        return True
    try:
        return "vtc" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _fill(folder: Path, source: Path, copy: bool) -> None:
    if folder.resolve() == source:
        raise ValueError(f"{folder} is the model's own folder: name another one")
    for old in folder.iterdir():
        if old.is_symlink() or old.is_file():
            old.unlink()
    for file in sorted(source.iterdir()):
        if file.name == "config.json":
            continue
        if not copy:
            (folder / file.name).symlink_to(file)
        elif file.is_dir():
            shutil.copytree(file, folder / file.name, dirs_exist_ok=True)
        else:
            shutil.copy2(file, folder / file.name)


def _notes(row: Row, settings: dict[str, Any]) -> list[str]:
    notes = []
    if row.rotary:
        notes.append(
            f"--video-pruning-rate {SWITCH} prunes no video: it is vLLM's switch for positions that pictures keep"
        )
    if settings.get("choices") or "keep" in settings:
        notes.append(
            'requests may say {"mm_processor_kwargs": {"vtc_keep": 64}} where the server has --trust-request-mm-kwargs'
        )
    return notes
