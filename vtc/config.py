"""``VTCConfig``: everything needed to wrap a model again, saved as ``vtc_config.json`` beside the model's own files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from vtc.pruners.base import check_keep
from vtc.pruners.model_facts import ModelFacts
from vtc.pruners.registry import nearest
from vtc.pruners.untrusted_json import parse_json
from vtc.pruners.vtc_warning import VTCWarning

from .files_beside import as_json, forget, locate, pack, write_whole
from .pipeline_text import Pipeline, format_pipeline, parse
from .version import __version__

CONFIG_NAME = "vtc_config.json"
POSITIONS = ("keep", "compact")


@dataclass(kw_only=True)
class VTCConfig:
    """A pruning set-up.

    Parameters
    ----------
    pruner : str
        A method's name or a pipeline string.
    keep : int or float, optional
        For a single method that does not say its own: an int >= 1 is tokens per image, a float in (0, 1] a fraction.
    params : dict
        Parameters of a single method.
    positions : {"keep", "compact"}
        Whether kept tokens keep their original position ids (default, right for every family), or are renumbered.
    parts : dict, optional
        Module paths (``core``, ``lm``, ``layers``, ``tower``) for a model family that vtc does not know.
    vtc_version : str
        Version that wrote the file.

    Raises
    ------
    TypeError, ValueError
        For an unknown method or parameter (the nearest ones are named) or a value out of range.
    """

    pruner: str
    keep: int | float | None = None
    params: dict[str, Any] = field(default_factory=dict)
    positions: str = "keep"
    parts: dict[str, str] | None = None
    vtc_version: str = __version__

    def __post_init__(self) -> None:
        if not isinstance(self.pruner, str):
            raise TypeError(f"pruner must be a string, got {self.pruner!r}; instances go to vtc.compress")
        if not isinstance(self.params, Mapping):
            raise TypeError(f"params must be a mapping, got {self.params!r}")
        if self.positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, got {self.positions!r}")
        if self.parts is not None and not (
            isinstance(self.parts, Mapping) and all(isinstance(x, str) for kv in self.parts.items() for x in kv)
        ):
            raise TypeError(f"parts must map names to module paths, got {self.parts!r}")
        if self.keep is not None:
            self.keep = check_keep(self.keep)
        self.pipeline()

    @classmethod
    def of(cls, pipeline: Pipeline, **kwargs: Any) -> VTCConfig:
        """The configuration of a parsed pipeline, in canonical form."""
        if len(pipeline) == 1:
            params = pipeline[0].params()
            return cls(pruner=pipeline[0].name, keep=params.pop("keep", None), params=params, **kwargs)
        return cls(pruner=format_pipeline(pipeline), **kwargs)

    def pipeline(self) -> Pipeline:
        """The methods, built anew."""
        return parse(self.pruner, keep=self.keep, **self.params)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as saved."""
        return {k: v for k, v in asdict(self).items() if v is not None and v != {}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VTCConfig:
        """Build from plain values; unknown keys warn and are left out."""
        if not isinstance(data, Mapping):
            raise TypeError(f"a vtc configuration must be a mapping, got {type(data).__name__}")
        known = [f.name for f in fields(cls)]
        for key in data:
            if key not in known:
                warnings.warn(
                    f"{CONFIG_NAME}: unknown key {key!r} is ignored. {nearest(str(key), known)}",
                    VTCWarning,
                    stacklevel=2,
                )
        if "pruner" not in data:
            raise ValueError(f"a vtc configuration needs 'pruner'; it has {', '.join(map(str, data)) or 'nothing'}")
        return cls(**{k: v for k, v in data.items() if k in known})

    def save_pretrained(
        self, directory: str | os.PathLike[str], pipeline: Pipeline | None = None, model: ModelFacts | None = None
    ) -> Path:
        """Write ``vtc_config.json``, and the files that its methods read, into `directory` (made if missing).

        Parameters
        ----------
        directory : str or path
            Where to; the file names those beside it by their bare names.
        pipeline : tuple of Pruner, optional
            The methods at work, where one of them holds a network that is in no file yet.
        model : ModelFacts, optional
            The model that is saved there as well, to which a trained network belongs from then on.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        path, data = folder / CONFIG_NAME, self.to_dict()
        methods = self.pipeline() if pipeline is None else pipeline
        packed = pack(methods, folder, model)
        if packed != methods:
            data = {k: v for k, v in {**data, **_spoken(packed)}.items() if v is not None}
        if path.is_file():
            forget(path, packed)
        write_whole(path, as_json(data))
        return path

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str], **hub_kwargs: Any) -> VTCConfig:
        """Read ``vtc_config.json`` from a folder, a file, or a hub repository.

        Raises
        ------
        FileNotFoundError
            If there is none, or a file that it names is not beside it.
        ValueError
            If it is no valid JSON, or says something that does not exist, or names a file that is not beside it.
        """
        path = find_config(path_or_id, **hub_kwargs)
        if path is None:
            raise FileNotFoundError(f"no {CONFIG_NAME} in {str(path_or_id)!r}")
        try:
            data = parse_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no valid JSON: {error}") from None
        if not isinstance(data, Mapping):
            return cls.from_dict(data)  # says what is wrong with it
        fetch = path.parent.joinpath if Path(path_or_id).exists() else partial(_cached, path_or_id, **hub_kwargs)
        return cls.from_dict(locate(data, fetch))


def _spoken(pipeline: Pipeline) -> dict[str, Any]:
    """Methods as plain values, not built anew: what they name is beside the file."""
    if len(pipeline) == 1:
        params = pipeline[0].params()
        return {"pruner": pipeline[0].name, "keep": params.pop("keep", None), "params": params}
    return {"pruner": format_pipeline(pipeline)}


def find_config(path_or_id: str | os.PathLike[str], **hub_kwargs: Any) -> Path | None:
    """Path of ``vtc_config.json`` in a folder or a hub repository; None where there is none."""
    path = Path(path_or_id)
    if path.is_file():
        return path
    if path.is_dir():
        inner = path / CONFIG_NAME
        return inner if inner.is_file() else None
    return _cached(path_or_id, CONFIG_NAME, **hub_kwargs)


def _cached(hub_id: str | os.PathLike[str], name: str, **hub_kwargs: Any) -> Path | None:
    """Path of a file of a hub repository in the cache; None where there is none."""
    from transformers.utils import cached_file

    try:
        found = cached_file(
            str(hub_id),
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
            **hub_kwargs,
        )
    except OSError:
        return None
    return Path(found) if found else None
