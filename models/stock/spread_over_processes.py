"""What tensor parallelism has spread over several processes, brought together again: attention heads, weights.

Under ``tp_plan`` each process computes some of the heads. A method that looked at these alone would choose other tokens
in each process, so what it reads is gathered first: all of them see all heads, in their order, and choose alike.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def every_head(module: nn.Module, local: Tensor) -> Tensor:
    """`local` `[B, h, ...]` of this process' heads of an attention module as `[B, H, ...]` of all heads."""
    group = _group_of(module)
    if group is None:
        return local
    parts = [torch.empty_like(local, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, local.contiguous(), group=group)
    return torch.cat(parts, 1)


def whole(weight: Tensor) -> Tensor:
    """A weight of which each process may hold a part, complete."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def _group_of(module: nn.Module) -> Any:
    """The processes among which the projections of an attention module are split by head; None: they are whole."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    mesh = next(filter(None, map(_mesh_of, module.modules())), None)
    if mesh is not None and mesh.ndim != 1:
        raise NotImplementedError(
            f"the heads of {type(module).__name__} are split over a mesh of {mesh.ndim} dimensions "
            f"({', '.join(mesh.mesh_dim_names or ())}), which vtc can't gather for a method that reads attention: use "
            "a mesh of tensor parallelism alone, or a method that reads no attention"
        )
    return None if mesh is None else mesh.get_group()


def _mesh_of(linear: nn.Module) -> Any:
    """The mesh over which the output of a linear layer is split; None: it is whole."""
    from torch.distributed.tensor import DTensor

    if str(getattr(linear, "_hf_tp_plan", "")).startswith("colwise"):  # older transformers keep plain tensors
        return getattr(linear, "_hf_device_mesh", None)
    for weight in linear.parameters(recurse=False):
        if isinstance(weight, DTensor) and any(placement.is_shard(0) for placement in weight.placements):
            return weight.device_mesh
    return None
