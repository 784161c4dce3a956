"""QueCC's vectors: the authors' module on drawn weights and inputs, through the method."""

from __future__ import annotations

import golden_trained_draws as draws
import numpy as np
import torch
from golden_support import Golden, Served, golden, tokens_of
from torch import Tensor

from vtc.pruners.layout import Grid, Layout
from vtc.pruners.quecc import QueCC, QueryCompressor
from vtc.pruners.signals import QuestionState
from vtc.pruners.trained.windows import windows


def close(found: Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@golden("QueCC")
@torch.no_grad()
def check(vector: Golden) -> None:
    meta = vector.meta
    rows, grid, width, kernel = (meta[name] for name in ("batch", "grid", "width", "kernel"))
    weights = draws.quecc_weights(meta["weight_seed"], width, meta["text"], meta["levels"], kernel)
    r = np.random.default_rng(meta["input_seed"])
    x, multi = (draws.normal(r, rows, grid * grid, n) for n in (width, meta["levels"]))
    t = draws.normal(r, rows, meta["text"])
    assert draws.sha(*weights.values()) == meta["sha"]["weights"]
    assert draws.sha(x, multi, t) == meta["sha"]["inputs"]

    sizes = {"width": width, "text": meta["text"], "levels": meta["levels"], "kernel": kernel, "heads": meta["heads"]}
    network = QueryCompressor(*sizes.values())
    network.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    pruner = QueCC(keep=meta["tokens_out"], weights="untrained", no_text=meta["no_text"])
    pruner.use(network, sizes)
    # the joined layers as they come: a fourth of the channels from each
    patches, *levels = pruner.signals[:-1]
    read_of = {patches: torch.from_numpy(x)[:, :, None]}
    read_of.update(zip(levels, torch.from_numpy(multi)[:, :, None].chunk(len(levels), -1), strict=True))
    source = Served(read_of, {QuestionState(): torch.from_numpy(t)})
    layout = Layout((Grid(grid, grid),))
    found = pruner.select(tokens_of(x, meta["tokens_out"], source, [layout] * rows), meta["tokens_out"])
    out = found.features
    close(out[..., :8], vector["out_first8"])
    close(out.norm(dim=-1), vector["out_rownorm"])
    close(out.sum(-1), vector["out_rowsum"])
    if "out" in vector.arrays:
        close(out, vector["out"])
    check_weights(vector, network, torch.from_numpy(x), torch.from_numpy(multi), torch.from_numpy(t))


def check_weights(vector: Golden, network: QueryCompressor, x: Tensor, multi: Tensor, t: Tensor) -> None:
    """The patch of the whole grid that each token looks at most, and how much."""
    meta = vector.meta
    patches = torch.from_numpy(windows(Layout((Grid(meta["grid"], meta["grid"]),)), meta["kernel"])[0])
    there = torch.ones_like(patches, dtype=torch.bool)
    for row in range(meta["batch"]):
        asked = () if meta["no_text"] else (t[row].expand(len(patches), -1),)
        seen = network.weights(x[row][patches], network.key(multi[row])[patches], *asked, there=there).mean(1)
        close(seen.max(-1).values, vector["weight_max"][row])
        assert (
            patches.gather(1, seen.argmax(-1, keepdim=True))[:, 0].tolist()
            == vector["weight_argmax_patch"][row].tolist()
        )
