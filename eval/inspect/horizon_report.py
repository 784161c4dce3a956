"""What ``vtc horizon`` shows: a table, and a curve over the layers."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from vtc.eval.files.atomic import write_atomic

from .horizon import LayerInformation


@dataclass(frozen=True)
class Horizon:
    """What was found: the layer (None: there is none), the means per layer, and the unpruned model's."""

    layer: int | None
    layers: list[LayerInformation]
    p_full: float
    accuracy: float
    questions: int


def draw_horizon(found: Horizon, path: Path, title: str, threshold: float | None) -> None:
    """Draw information per layer, and below it what is left of the answer when all visual tokens leave.

    Parameters
    ----------
    found : Horizon
        What to draw; without windows the upper panel shows the divergence.
    path : Path
        The PNG; replaced in one go.
    title : str
        Heading.
    threshold : float, optional
        Drawn as a line in the upper panel.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 6.2), dpi=150, layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    x = [m.layer for m in found.layers]
    if found.layers[0].best_info is not None:
        upper.plot(x, [m.best_info for m in found.layers], marker="o", color="#0072B2", label="strongest window")
        upper.plot(x, [m.mean_info for m in found.layers], marker="s", color="#D55E00", label="mean over windows")
        upper.set_ylabel("|change of the answer's probability|")
    else:
        upper.plot(x, [m.kl for m in found.layers], marker="o", color="#0072B2", label="KL from unpruned")
        upper.set_ylabel("KL divergence (nats)")
        upper.set_yscale("symlog", linthresh=1e-4)
    if threshold is not None:
        upper.axhline(threshold, color="0.35", linestyle="--", linewidth=1.1, label=f"threshold {threshold:g}")
    lower.plot(
        x, [100 * m.p_text for m in found.layers], marker="o", color="#009E73", label="probability of the answer"
    )
    lower.plot(x, [100 * m.accuracy for m in found.layers], marker="^", color="#CC79A7", label="first token right")
    lower.axhline(100 * found.p_full, color="#009E73", linestyle=":", linewidth=1.2)
    lower.axhline(100 * found.accuracy, color="#CC79A7", linestyle=":", linewidth=1.2)
    lower.set_ylabel("% without visual tokens\nfrom this layer on (dotted: unpruned)")
    lower.set_xlabel("decoder layer")
    lower.set_xticks(x if len(x) <= 16 else x[:: len(x) // 12])
    for axes in (upper, lower):
        if found.layer is not None:
            axes.axvline(found.layer, color="0.2", linewidth=1)
        axes.grid(True, color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(fontsize=8, framealpha=0.9)
    if found.layer is not None:
        upper.annotate(
            f"layer {found.layer}",
            (found.layer, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, -10),
            textcoords="offset points",
            fontsize=9,
        )
    upper.set_title(title, fontsize=10, loc="left")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    write_atomic(path, picture.getvalue())


def horizon_table(found: Horizon) -> Table:
    """The means per layer."""
    table = Table(title="Visual tokens kept from this layer on", title_justify="left", title_style="bold")
    for column in ("layer", "strongest window", "mean window", "p without any", "right without any", "KL without any"):
        table.add_column(column, justify="right")
    for m in found.layers:
        info = ["-" if v is None else f"{v:.4f}" for v in (m.best_info, m.mean_info)]
        mark = " <" if m.layer == found.layer else ""
        table.add_row(f"{m.layer}{mark}", *info, f"{m.p_text:.3f}", f"{100 * m.accuracy:.1f}%", f"{m.kl:.5f}")
    table.add_row("unpruned", "", "", f"{found.p_full:.3f}", f"{100 * found.accuracy:.1f}%", "0")
    return table
