"""Matrices of low rank beside the frozen ones of the language model (LoRA, arXiv 2106.09685), and their file."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vtc.real.assemble import LOW_RANK, PROJECTOR

SCALE = 2.0
_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LowRankLinear(nn.Module):
    """A frozen linear layer `W x` with `SCALE * up (down x)` beside it.

    Parameters
    ----------
    frozen : nn.Linear
        Its weight is kept in bfloat16: it is only multiplied with.
    rank : int
        Rank of what is added; `up` starts at zero, so at first nothing is.
    """

    def __init__(self, frozen: nn.Linear, rank: int) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False).bfloat16()
        self.down = nn.Parameter(torch.empty(rank, frozen.in_features).normal_(0, frozen.in_features**-0.5))
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]`."""
        return self.frozen(x) + SCALE * F.linear(F.linear(x, self.down), self.up)


def add_low_rank(language: nn.Module, rank: int) -> dict[str, LowRankLinear]:
    """Put one beside every matrix of the language model's layers; gives them by the matrix's name."""
    added = {}
    for name, module in list(language.named_modules()):
        place, _, last = name.rpartition(".")
        if isinstance(module, nn.Linear) and last in _MATRICES:
            added[name] = LowRankLinear(module, rank)
            setattr(language.get_submodule(place), last, added[name])
    return added


def save_adapter(projector: nn.Module, added: dict[str, LowRankLinear], file: Path) -> None:
    """Write what was trained, in bfloat16, as ``vtc.real.assemble.apply_adapter`` reads it."""
    tensors = {PROJECTOR + name: tensor for name, tensor in projector.state_dict().items()}
    for name, module in added.items():
        tensors[f"{LOW_RANK}{name}.down"] = module.down.detach()
        tensors[f"{LOW_RANK}{name}.up"] = module.up.detach() * SCALE
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()}, file)


@torch.no_grad()
def load_adapter(projector: nn.Module, added: dict[str, LowRankLinear], file: Path) -> None:
    """Read what :func:`save_adapter` wrote, to go on training it."""
    tensors = load_file(file)
    projector.load_state_dict({name: tensors[PROJECTOR + name] for name in projector.state_dict()})
    for name, module in added.items():
        module.down.copy_(tensors[f"{LOW_RANK}{name}.down"])
        module.up.copy_(tensors[f"{LOW_RANK}{name}.up"] / SCALE)
