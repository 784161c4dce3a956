"""A plan in plain words: one sentence that says whether pruning pays, and what to be warned of."""

from __future__ import annotations

from .plan_job import ANY, Cell, Plan
from .reckon import LITTLE

DEAR = 0.03  # of the pruned prefill: what choosing may take without a warning


def sentence(plan: Plan) -> str:
    """Whether pruning pays, at the first batch and the smallest keep of the first method."""
    batch = plan.cells[0].batch
    method = plan.cells[0].setting.method
    cell = [c for c in plan.cells if c.batch == batch and c.setting.method == method][-1]
    plain = cell.plain
    share = (plain.tower + plain.projector) / plain.prefill
    name = "pruning" if method == ANY else method
    kept = f"keep {cell.setting.keep:g}" if cell.setting.keep is not None else "what it keeps"
    where = f"at batch {batch} on {plan.options.gpu}"
    if cell.speed_up < 1 + LITTLE:
        said = f"{_capital(name)} does not pay {where}: {kept} makes the prefill {_times(cell.speed_up)} as fast"
        said += f" ({_why_not(cell, share)})"
    else:
        limit = "even " if cell.speed_up < 2 else ""
        most = "at most " if method == ANY else ""
        said = f"Tower is {share:.0%} of prefill {where}: {limit}{kept} with {name} gains {most}{_times(cell.speed_up)}"
        if method == ANY:
            said = said.replace(" with pruning", "")
        turning = plan.turning.get((method, batch))
        if turning and turning.pays_from is not None and turning.pays_from < 0.9:
            said += f"; it pays from keep {turning.pays_from:g} down"
        if turning and turning.flat_below is not None:
            said += f"; below keep {turning.flat_below:g} halving it again gains < {LITTLE:.0%}"
    return f"{said}; {_smaller(plan, batch)}."


def _why_not(cell: Cell, share: float) -> str:
    times = cell.times
    saved = cell.plain.prefill - (times.prefill - times.selection)
    if times.selection and saved > 0 and times.selection > saved * (1 - LITTLE):
        return "choosing takes longer than it saves"
    if share > 0.9:
        return f"the tower is {share:.0%} of the prefill, and stays"
    if cell.plain.decoder * 0.95 < times.decoder:
        return "reading the weights and launching operators takes the decoder's time, however few tokens there are"
    return "too little of the prefill goes with the tokens"


def _smaller(plan: Plan, batch: int) -> str:
    last = min((s.kept.last for s in plan.settings), default=0)
    if plan.smaller is None:
        return (
            f"this model's processor makes no picture of {last} tokens or fewer, so smaller pictures are no way round"
        )
    width, height = plan.smaller.picture.size
    gain = _times(plan.smaller.speed_ups[batch])
    return f"smaller pictures ({width}x{height}, {plan.smaller.picture.tokens} tokens) would gain {gain}"


def _times(gain: float) -> str:
    return f"{gain:.2f}x" if gain < 1.2 else f"{gain:.1f}x"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def warnings_of(plan: Plan) -> list[str]:
    """What a reader should know before believing a row."""
    found = []
    for method in dict.fromkeys(s.method for s in plan.settings):
        cells = [c for c in plan.cells if c.setting.method == method]
        if cells[0].setting.selection is None:
            found.append(
                f"{method}: what choosing costs could not be tried without the model, and is counted as nothing"
            )
        dear = max(cells, key=lambda c: c.times.selection / c.times.prefill)
        part = dear.times.selection / (dear.times.prefill - dear.times.selection)
        if part > DEAR:
            extrapolated = dear.setting.selection is not None and dear.setting.selection.extrapolated
            found.append(
                f"{method}: the selection itself is dear: {milliseconds(dear.times.selection)} ms at batch "
                f"{dear.batch}, {part:.0%} of the pruned prefill without it"
                + (" (extrapolated from fewer tokens)" if extrapolated else "")
            )
        pruners = [stop[0] for stop in cells[0].setting.kept.stops]
        if any(p.adaptive_count for p in pruners):
            found.append(f"{method}: it chooses by the picture how many it keeps; taken to keep what was asked")
        if plan.recurrent and any(stop[1].stage == "decoder" for stop in cells[0].setting.kept.stops):
            found.append(f"{method}: recurrent layers below the one it prunes at keep the state of all tokens")
    if plan.reckoning.device.memory < plan.reckoning.weights:
        found.append(
            f"the weights ({plan.reckoning.weights / 1e9:.1f} GB) do not fit into the memory of {plan.options.gpu}: "
            "times are of a device that could hold them"
        )
    return found


def milliseconds(seconds: float) -> str:
    """With three digits."""
    return f"{seconds * 1e3:.3g}"
