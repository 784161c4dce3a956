"""A sweep with a method of somebody's own."""

from __future__ import annotations

from bench_world import world


def bench(*more: object) -> list[object]:
    return ["bench", "--model", world()[0], "--keep", "3", "--no-timing", "--no-random", *more]
