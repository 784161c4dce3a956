"""A plan on the screen, and as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .plan_job import Cell, Plan
from .wording import milliseconds, sentence, warnings_of


def _bytes(n: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n / 1e3:.3g} kB"


def _flops(n: float) -> str:
    return f"{n / 1e12:.3g} T" if n >= 1e11 else f"{n / 1e9:.3g} G"


def screen_plan(plan: Plan) -> RenderableType:
    """Tables, the sentence, warnings and assumptions."""
    picture, reckoning = plan.picture, plan.reckoning
    width, height = picture.size
    head = (
        f"{plan.options.model} ({plan.model_type}, {plan.dtype}): a picture of {width}x{height} is {picture.tokens} "
        f"visual tokens, beside {picture.text} others; weights {_bytes(reckoning.weights)}; answers of "
        f"{reckoning.answer} tokens"
    )
    said: list[RenderableType] = [Text(head), _parts(plan), _cells(plan), Text(sentence(plan), style="bold")]
    said += [Text(f"warning: {line}", style="yellow") for line in warnings_of(plan)]
    return Group(*said, Text(f"{reckoning.device.source}; {reckoning.device.assumed}.", style="dim"))


def _parts(plan: Plan) -> Table:
    batches = list(dict.fromkeys(c.batch for c in plan.cells))
    table = Table(title="unpruned prefill by part")
    for column in ("part", "FLOPs a request", *(f"ms, batch {b}" for b in batches)):
        table.add_column(column, justify="left" if column == "part" else "right")
    plain = {c.batch: c.plain for c in plan.cells}
    for part, flops in plan.reckoning.flops(plan.base.kept).items():
        shares = (
            f"{milliseconds(getattr(plain[b], part))} ({getattr(plain[b], part) / plain[b].prefill:.0%})"
            for b in batches
        )
        table.add_row(part, _flops(flops), *shares)
    return table


def _cells(plan: Plan) -> Table:
    table = Table(title="expected")
    columns = (
        "setting", "tokens", "batch", "prefill ms", "speed-up", "selection ms", "ms a token", "speed-up",
        "KV a request", "largest batch", "pays from keep",
    )  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column == "setting" else "right")
    for cell in _plain(plan) + list(plan.cells):
        table.add_row(*_row(plan, cell))
    return table


def _plain(plan: Plan) -> list[Cell]:
    return [Cell(plan.base, b, plain, plain) for b, plain in {c.batch: c.plain for c in plan.cells}.items()]


def _row(plan: Plan, cell: Cell) -> list[str]:
    setting, times = cell.setting, cell.times
    turning = plan.turning.get((setting.method, cell.batch))
    chosen = "not known" if setting.selection is None else milliseconds(times.selection) if times.selection else "-"
    pays = "-" if turning is None else "nowhere" if turning.pays_from is None else f"{turning.pays_from:g}"
    mean = sum(setting.kept.per_layer) / len(setting.kept.per_layer)
    tokens = f"{setting.kept.last}" + (f" (mean {mean:.0f})" if round(mean) != setting.kept.last else "")
    return [
        setting.name, tokens, str(cell.batch), milliseconds(times.prefill), f"{cell.speed_up:.2f}x", chosen,
        milliseconds(times.token), f"{cell.token_speed_up:.2f}x", _bytes(plan.reckoning.kv_bytes(setting.kept)),
        str(plan.reckoning.largest_batch(setting.kept)), pays,
    ]  # fmt: skip


def as_json(plan: Plan) -> dict[str, Any]:
    """All of it as plain values; times in seconds, of a whole batch."""
    reckoning = plan.reckoning
    return {
        "model": plan.options.model,
        "model_type": plan.model_type,
        "dtype": plan.dtype,
        "image": list(plan.picture.size),
        "visual_tokens": plan.picture.tokens,
        "text_tokens": plan.picture.text,
        "answer_tokens": reckoning.answer,
        "weights_bytes": reckoning.weights,
        "device": {"name": plan.options.gpu, "source": reckoning.device.source, "assumed": reckoning.device.assumed},
        "rows": [_values(plan, cell) for cell in _plain(plan) + list(plan.cells)],
        "smaller_picture": _smaller(plan),
        "sentence": sentence(plan),
        "warnings": warnings_of(plan),
    }


def _values(plan: Plan, cell: Cell) -> dict[str, Any]:
    setting, reckoning = cell.setting, plan.reckoning
    turning = plan.turning.get((setting.method, cell.batch))
    return {
        "method": setting.method or None,
        "keep": setting.keep,
        "batch": cell.batch,
        "visual_tokens": setting.kept.last,
        "visual_tokens_per_layer": list(setting.kept.per_layer),
        "flops": reckoning.flops(setting.kept),
        "seconds": {**asdict(cell.times), "prefill": cell.times.prefill},
        "selection_known": setting.selection is not None,
        "speed_up": cell.speed_up,
        "token_speed_up": cell.token_speed_up,
        "kv_bytes": reckoning.kv_bytes(setting.kept),
        "activation_bytes": reckoning.activation_bytes(setting.kept),
        "largest_batch": reckoning.largest_batch(setting.kept),
        "turning": asdict(turning) if turning else None,
    }


def _smaller(plan: Plan) -> dict[str, Any] | None:
    if plan.smaller is None:
        return None
    picture = plan.smaller.picture
    return {"image": list(picture.size), "visual_tokens": picture.tokens, "speed_up": plan.smaller.speed_ups}
