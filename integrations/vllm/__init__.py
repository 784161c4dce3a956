"""Pictures pruned inside vLLM, without a fork: a plugin that vLLM finds by itself; needs the extra ``vllm``.

In: a checkpoint of a known family, started under an architecture's name of ours with ``vtc`` settings beside it.
Out: fewer placeholders in the front end, as many rows in the worker, and the positions that belong to them.

Models under their own names stay as they are. ``vtc export-vllm`` writes what to start.
"""

from __future__ import annotations


def register() -> None:
    """The entry point ``vllm.general_plugins``: make our architectures known, in every process of an engine."""
    from vllm import ModelRegistry

    from .families import ROWS

    known = ModelRegistry.get_supported_archs()
    for row in ROWS:
        if row.name not in known:
            ModelRegistry.register_model(row.name, f"{__name__}.architectures:{row.name}")  # imported on first use
