"""lmms-eval with compressed models, and its tasks in ``vtc bench``; needs the extra ``lmms``.

``python -m lmms_eval --model vtc --model_args base=llava_hf,method=dart,keep=0.25,pretrained=FOLDER ...`` builds
lmms-eval's own backend `base` and compresses its model; the arguments are those of ``model_arguments.read_setup``.
``load_lmms_task("pope")`` makes an evaluation set of one of its tasks: same prompts, same images, same metrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # lmms-eval imports this at its start
    from vtc.eval.tasks.metrics import Metric
    from vtc.eval.tasks.questions import TaskSet


def manifests() -> list[Any]:
    """What the entry point ``lmms_eval.models`` yields: the model ``vtc``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    home = f"{__name__}.adapter"
    return [
        ModelManifest(model_id="vtc", simple_class_path=f"{home}.VtcSimple", chat_class_path=f"{home}.VtcChat"),
    ]


def load_lmms_task(
    name: str, include_path: str | None = None, limit: int | None = None, on_error: str = "stop"
) -> TaskSet:
    """An lmms-eval task, or group or tag of tasks, as an evaluation set.

    Parameters
    ----------
    name : str
        A task of lmms-eval or of `include_path`, or a task's YAML file.
    include_path : str, optional
        Folder with more tasks, as lmms-eval's ``--include_path``.
    limit : int, optional
        Only the first questions of each task, as lmms-eval's ``--limit``.
    on_error : str
        "stop" at the first row that can't be read, or "skip" such rows: ``TaskSet.skipped`` names them, and in either
        case those without an image.

    Raises
    ------
    ValueError
        Without lmms-eval, for an unknown task, and for one that is more than questions with one greedy answer each.
    """
    from .task_as_question_set import load

    return load(name, include_path, limit, on_error)


def load_metric(name: str) -> Metric:
    """The metric that a question of ``load_lmms_task`` names: its task's own ``process_results`` and aggregation."""
    from .task_metric import metric_named

    return metric_named(name)
