"""Random baselines at measured budgets: for methods that spend something else than their keep."""

from __future__ import annotations

import pytest

from vtc.bundled_files import bundled_data
from vtc.eval.sweep.plan import Plan, plan_cells
from vtc.eval.sweep.random_baselines import add_baselines, measured_budget
from vtc.eval.tasks.questions import TaskSet
from vtc.eval.tasks.reading.load import load_tasks
from vtc.eval.vlm.feature_cache import Features
from vtc.eval.vlm.loading import Loaded, load_model
from vtc.eval.vlm.prompts import Row, make_row
from vtc.eval.vlm.pruning_settings import UNPRUNED, Cell, make_cell


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_model(None, "cpu")


@pytest.fixture(scope="module")
def tasks() -> TaskSet:
    return load_tasks(bundled_data()).subset(None, 4)


def budget(loaded: Loaded, cell: Cell, rows: list[Row]) -> float:
    return measured_budget(loaded, cell, rows, Features(loaded.model, [cell]))


def randoms(plan: Plan) -> list[tuple[int | float | None, int | None]]:
    return [(cell.keep, cell.seed) for cell in plan.cells if cell.method == "random"]


def test_budgets_are_measured(loaded: Loaded, tasks: TaskSet):
    q = tasks.questions[0]
    rows = [make_row(loaded.processor, loaded.model.config, tasks.visuals(q), q)]
    total, depth = rows[0].visual, loaded.model.config.get_text_config().num_hidden_layers
    quarter = round(total / 4)
    assert budget(loaded, UNPRUNED, rows) == 1.0
    assert budget(loaded, make_cell("uniform", 0.25), rows) == pytest.approx(quarter / total)
    late = budget(loaded, make_cell("fastv", 0.25), rows)
    assert late == pytest.approx((2 * total + (depth - 2) * quarter) / depth / total)
    assert not hasattr(loaded.model, "vtc")


def test_methods_that_prune_late_get_a_baseline_of_their_own(loaded: Loaded, tasks: TaskSet):
    # todre's second stage and pyramiddrop's three: no single random cell is like them
    asked = plan_cells(["uniform", "pyramiddrop", "uniform(keep=40)"], [0.25], seeds=[5, 6, 7], random=True)
    plan = add_baselines(asked, loaded, tasks, [5, 6, 7])
    assert [c for c in plan.cells if c in asked.cells] == asked.cells
    assert plan.cells[0] == UNPRUNED
    q = tasks.questions[0]
    rows = [make_row(loaded.processor, loaded.model.config, tasks.visuals(q), q)]
    late = budget(loaded, make_cell("pyramiddrop", 0.25), rows)
    assert late > 0.3
    wanted = [round(late, 3)] * 3 + [round(40 / rows[0].visual, 3)] * 3
    assert [k for k, _ in randoms(plan) if k != 0.25] == pytest.approx(wanted, abs=0.002)
    assert [seed for k, seed in randoms(plan) if k != 0.25] == [5, 6, 7] * 2
    again = add_baselines(plan, loaded, tasks, [5, 6, 7])
    assert again.cells == plan.cells  # a resumed sweep has the same cells


def test_smaller_pictures_meet_random_at_their_own_tokens(loaded: Loaded, tasks: TaskSet):
    """A square of 63 tokens there is not: 49 are shown, which 11% of random are not near to."""
    asked = plan_cells(["downsample"], [0.25, 0.11], seeds=[5, 6], random=True)
    plan = add_baselines(asked, loaded, tasks, [5, 6])
    assert [found for found in randoms(plan) if found[0] not in (0.25, 0.11)] == [(0.085, 5), (0.085, 6)]
    assert round(0.085 * 576) == 49
    assert add_baselines(plan, loaded, tasks, [5, 6]).cells == plan.cells


def test_nothing_is_added_without_need(loaded: Loaded, tasks: TaskSet):
    for methods, random in (
        (["uniform", "pool"], True),
        (["pyramiddrop"], False),
        (["fastv"], True),
        (["random"], True),
    ):
        plan = plan_cells(methods, [0.25], seeds=[0], random=random)
        assert add_baselines(plan, loaded, tasks, [0]).cells == plan.cells
    none = plan_cells(["todre_removal"], [0.25], seeds=[0], random=True)  # never fires on this model
    assert len(randoms(add_baselines(none, loaded, tasks, [0]))) == len(randoms(none))
