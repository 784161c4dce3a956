"""``save_pretrained`` of a wrapped model, and of whatever is put around it, writes ``vtc_config.json`` too.

It is shadowed by an instance attribute. What is put around the model later (PEFT's ``get_peft_model``) has a
``save_pretrained`` of its own: torch tells when the model, or what forwards its attributes, becomes a part of it.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from vtc.models.facts_of_model import facts_of
from vtc.models.layout.model_parts import unwrap, wrappers

from .config import CONFIG_NAME
from .files_beside import forget

HANDLE = "vtc"
SAVE = "save_pretrained"
UPLOAD = "_upload_modified_files"  # of transformers: what the folder held before is not uploaded


@dataclass
class _Saved:
    """What is known of a model: the modules whose ``save_pretrained`` is its own, and where its set-up lies."""

    owners: WeakSet[nn.Module] = field(default_factory=WeakSet)
    folders: set[Path] = field(default_factory=set)


_known: WeakKeyDictionary[nn.Module, _Saved] = WeakKeyDictionary()
_wrapped: WeakSet[nn.Module] = WeakSet()
_watch: Any = None


class Save:
    """Stands for ``save_pretrained`` of a wrapped model, or of what is around it.

    After ``restore`` it stays only where a folder holds this model's ``vtc_config.json``, to remove that file once the
    plain model is saved over it.
    """

    def __init__(self, module: nn.Module):
        self.module, self.before = module, module.__dict__.get(SAVE)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The method that it shadows."""
        found: Callable[..., Any] = self.before or getattr(type(self.module), SAVE).__get__(self.module)
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Save, and leave ``vtc_config.json`` as the model is: written, or gone where it was this model's own."""
        save = self.__wrapped__
        given = inspect.signature(save).bind(*args, **kwargs)
        given.apply_defaults()
        asked = {**given.arguments, **given.arguments.get("kwargs", {})}
        folder = asked.get("save_directory", args[0] if args else None)
        if folder is None or not asked.get("is_main_process", True):  # another process writes
            return save(*args, **kwargs)
        done: list[bool] = []

        def mark() -> None:
            _mark(self.module, Path(folder))
            done.append(True)

        with _before_upload(self.module, mark):
            result = save(*args, **kwargs)
        if not done:
            mark()
            if asked.get("push_to_hub"):
                warnings.warn(f"{CONFIG_NAME} is in {folder}, but was not uploaded with the model", stacklevel=2)
        return result


@contextmanager
def _before_upload(module: nn.Module, call: Callable[[], None]) -> Iterator[None]:
    """Have ``save_pretrained(push_to_hub=True)`` call `call` before it uploads the folder."""
    upload, before = getattr(module, UPLOAD, None), module.__dict__.get(UPLOAD)
    if upload is None:
        yield
        return

    def late(*args: Any, **kwargs: Any) -> Any:
        call()
        return upload(*args, **kwargs)

    module.__dict__[UPLOAD] = late
    try:
        yield
    finally:
        _put_back(module, UPLOAD, before)


def _put_back(module: nn.Module, name: str, before: Any) -> None:
    if before is None:
        module.__dict__.pop(name, None)
    else:
        module.__dict__[name] = before


def _mark(module: nn.Module, folder: Path) -> None:
    """Write the set-up of `module`'s model into `folder`, or remove the one that no longer holds."""
    target = unwrap(module)
    handle = target.__dict__.get(HANDLE)
    saved = _known.get(target) or _Saved()
    if not folder.is_dir():  # transformers has said why
        return
    if handle is not None and handle.config is not None:
        parts = getattr(handle.adapter, "parts", None)  # a bare ViT has none
        facts = facts_of(parts) if parts is not None and any(p.files for p in handle.pipeline) else None
        saved.folders.add(handle.config.save_pretrained(folder, handle.pipeline, facts).resolve().parent)
        return
    if handle is not None or folder.resolve() in saved.folders:
        forget(folder / CONFIG_NAME)
        saved.folders.discard(folder.resolve())
    if handle is not None:
        raise ValueError(
            f"the model was saved, but its pruner {' + '.join(map(str, handle.pipeline))} is not registered: "
            f"{CONFIG_NAME} can't name it; use @vtc.register_pruner(name)"
        )
    if not saved.folders:
        _unshadow(saved)


def _shadow(module: Any, saved: _Saved) -> None:
    if hasattr(type(module), SAVE) and not isinstance(module.__dict__.get(SAVE), Save):
        module.__dict__[SAVE] = Save(module)
        saved.owners.add(module)


def _unshadow(saved: _Saved) -> None:
    for module in list(saved.owners):
        found = module.__dict__.get(SAVE)
        if isinstance(found, Save):  # else somebody has put something else in its place
            _put_back(module, SAVE, found.before)


def attach(model: nn.Module) -> None:
    """Shadow ``save_pretrained`` of a model that was just wrapped, and of all that is and will be around it."""
    global _watch
    target = unwrap(model)
    saved = _known.setdefault(target, _Saved())
    for module in (*wrappers(model), *saved.owners):
        _shadow(module, saved)
    _wrapped.add(target)
    if _watch is None:
        _watch = register_module_module_registration_hook(_joined)


def detach(model: nn.Module) -> None:
    """Undo ``attach``; only where ``vtc_config.json`` was written the shadow stays, for that file's sake."""
    global _watch
    target = unwrap(model)
    saved = _known.get(target)
    if saved is not None and not saved.folders:
        _unshadow(saved)
    _wrapped.discard(target)
    if _watch is not None and not _wrapped:
        _watch.remove()
        _watch = None


def note(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Remember that the folder `path` holds the set-up that was just applied to `model`."""
    if Path(path).is_dir():
        _known.setdefault(unwrap(model), _Saved()).folders.add(Path(path).resolve())


def _joined(owner: nn.Module, name: str, part: nn.Module | None) -> None:
    """Torch calls it for every module that becomes a part of another, as long as any model is wrapped."""
    if not hasattr(type(owner), SAVE) or not isinstance(part, nn.Module):
        return
    handle = getattr(part, HANDLE, None)
    target = next((t for t in list(_wrapped) if handle is not None and t.__dict__.get(HANDLE) is handle), None)
    if target is not None:
        _shadow(owner, _known[target])
