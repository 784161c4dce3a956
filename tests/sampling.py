"""Which part of methods x families, and of tests that take long, a run takes.

Each pair of a method and a family belongs to one of a few shares, and a run takes the share of its day: all pairs come
by within a week. So do the parameters of a test marked ``share(N)``, of which a run takes every N-th (a test without
parameters is taken every N-th day); pairs that are marked so, too, come by within N weeks. ``--run N`` takes another
day's, ``--full`` all; so do ``-k`` and named tests, which ask for some.
"""

from __future__ import annotations

import time
from collections import Counter
from math import gcd
from typing import Any
from zlib import crc32

import pytest
from methods import METHODS, Setting
from zoo import FAMILIES

from vtc.eval.check.prompts.build_prompts import KINDS

OF_ZOO = 7  # shares of the contracts on the zoo's families, each with all prompt shapes
OF_TYPES = 7  # shares of the one contract on every type that ``vtc check`` builds
LONG = (  # files of few tests that take minutes: begun last, one process would wait for the other
    "tests/integrations/test_lmms_cli.py",
    "tests/eval/train/test_compressor_training.py",
    "tests/front_door/test_plugins.py",
    "tests/models/compiled/test_compiled.py",
    "tests/eval/classify/test_classify_cli.py",
    "tests/eval/classify/test_classify.py",
    "tests/eval/tune/test_tune.py",
    "tests/eval/sweep/test_bench.py",
    "tests/eval/sweep/test_killed.py",
)
REFUSED = ("qwen4_exp",)  # which is there to be refused
TYPES = [kind for kind in KINDS if kind not in REFUSED]
# a name of both is where the shorter list has it: each run has to meet every method there
_PLACE = {name: i for names in (TYPES, FAMILIES) for i, name in enumerate(names)}
_METHOD = {setting: i for i, setting in enumerate(METHODS)}


def today() -> int:
    """The number of a run that is given none: days since 1970."""
    return int(time.time() // 86_400)


def of_all_types(settings: list[Setting]) -> list[Any]:
    """Parameters of a test over settings x all types."""
    return [pytest.param(s, kind, id=f"{s}-{kind}") for kind in TYPES for s in settings]


def taken(setting: Setting, family: str, run: int, shares: int) -> bool:
    """Whether a run takes a method on a family; pipelines always."""
    place = _METHOD.get(setting)
    return place is None or (place + _PLACE[family]) % shares == run % shares


def split(items: list[Any], run: int) -> tuple[list[Any], list[Any]]:
    """Tests that a run takes, and those it leaves."""
    kept: list[Any] = []
    left: list[Any] = []
    met: Counter[Any] = Counter()
    for item in items:
        given = getattr(getattr(item, "callspec", None), "params", {})
        setting, of_type = given.get("setting"), "kind" in given
        family = given.get("kind") if of_type else given.get("family")
        sampled = isinstance(setting, Setting) and family in _PLACE
        takes = not sampled or taken(setting, family, run, OF_TYPES if of_type else OF_ZOO)
        if mark := item.get_closest_marker("share"):
            test = (item.path, item.originalname)
            assert not sampled or gcd(mark.args[0], OF_ZOO * OF_TYPES) == 1, "else some would never be taken"
            begins = crc32(str(item.originalname).encode())  # so that tests of one run each don't share a day
            takes = takes and (begins + met[test]) % mark.args[0] == run % mark.args[0]
            met[test] += 1
        (kept if takes else left).append(item)
    return kept, left
