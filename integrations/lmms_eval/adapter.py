"""The model ``vtc`` of lmms-eval: one of its own backends, with its model compressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmms_eval.api.model import lmms
from torch import nn

from .build_backend import build
from .compression import Setup
from .model_arguments import read_setup
from .token_counts import TokenLog
from .token_savings_file import Results
from .watched_generate import watch_generate, watch_requests


def compress_backend(lm: Any, setup: Setup, model_args: str) -> Any:
    """Compress a backend's model in place, and have its tokens counted.

    Raises
    ------
    ValueError
        If it holds no torch model, or one without ``generate``.
    NotImplementedError
        For models that vtc can't wrap.
    """
    from vtc.api import compress

    model = lm.model
    if not isinstance(model, nn.Module):
        raise ValueError(f"model_args: base {setup.base!r} holds a {type(model).__name__}, no torch model to compress")
    if not hasattr(model, "generate"):  # its backend `huggingface` takes AutoModel for most models
        kind = type(model).__name__
        raise ValueError(f"model_args: base {setup.base!r} loaded a {kind}, which can't generate: use its own backend")
    if setup.pipeline:
        words = getattr(lm, "tokenizer", None) if any(p.uses_question for p in setup.pipeline) else None
        compress(model, setup.pipeline, positions=setup.positions, tokenizer=words)
    log = TokenLog()
    failed: list[str] = []
    watch_generate(model, log, setup.on_error, failed)
    lm.vtc_results = Results(setup, model_args, log, failed)
    watch_requests(lm, log, lm.vtc_results.take)
    return lm


class _Vtc(lmms):
    """Stands for the backend until it is built; no instance of this class is ever made."""

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> Any:
        """Build the backend that the model arguments name, see ``model_arguments.read_setup``."""
        setup = read_setup(arg_string, cls.is_simple)
        return compress_backend(build(setup, additional_config or {}, cls.is_simple), setup, arg_string)

    def loglikelihood(self, requests: Sequence[Any]) -> Any:
        """Never called: the backend answers."""
        raise NotImplementedError

    def generate_until(self, requests: Sequence[Any]) -> Any:
        """Never called: the backend answers."""
        raise NotImplementedError

    def generate_until_multi_round(self, requests: Sequence[Any]) -> Any:
        """Never called: the backend answers."""
        raise NotImplementedError


class VtcChat(_Vtc):
    """For tasks as chat messages, if the backend has that form."""

    is_simple = False


class VtcSimple(_Vtc):
    """For tasks as a text and its images."""

    is_simple = True
