"""``compressed`` blocks of one model that begin and end in every order: the newest open one counts."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
import torch
from anatomy import anatomy
from zoo import prompt, tiny

import vtc

pytestmark = pytest.mark.usefixtures("no_grad")
KEEPS = (2, 3, 4)


def current(model: Any) -> int | None:
    return model.vtc.pipeline[0].keep if hasattr(model, "vtc") else None


def orders() -> list[tuple[int, ...]]:
    """Every way in which three blocks begin (in order) and end: +1 begins block 1, -1 ends it."""
    found = []
    for order in itertools.permutations((1, 2, 3, -1, -2, -3)):
        begins = [step for step in order if step > 0]
        if begins == sorted(begins) and all(order.index(n) < order.index(-n) for n in (1, 2, 3)):
            found.append(order)
    return found


@pytest.mark.parametrize("base", [None, 9])
def test_every_order_of_three_blocks(base: int | None) -> None:
    model, inputs = tiny("llava"), prompt("llava", "one").inputs
    model(**inputs)
    before, plain = anatomy(model), model(**inputs).logits
    assert len(orders()) == 15
    for order in orders():
        if base is not None:
            vtc.compress(model, "uniform", keep=base)
        blocks = {n: vtc.compressed(model, "random", keep=keep) for n, keep in enumerate(KEEPS, 1)}
        still: list[int] = []
        for step in order:
            if step > 0:
                blocks[step].__enter__()
                still.append(step)
            else:
                blocks[-step].__exit__(None, None, None)
                still.remove(-step)
            assert current(model) == (KEEPS[still[-1] - 1] if still else base), order
            model(**inputs)
            if hasattr(model, "vtc"):
                assert model.vtc.report.tokens_kept == current(model)
        vtc.restore(model)
        assert anatomy(model) == before
    assert torch.equal(model(**inputs).logits, plain)


def test_what_is_done_inside_a_block_ends_with_it() -> None:
    model = tiny("llava")
    first, second = vtc.compressed(model, "random", keep=2), vtc.compressed(model, "random", keep=3)
    first.__enter__()
    vtc.compress(model, "uniform", keep=7)
    second.__enter__()
    first.__exit__(None, None, None)
    assert current(model) == 3
    second.__exit__(None, None, None)
    assert current(model) is None
    with vtc.compressed(model, "random", keep=2):
        vtc.restore(model)
    assert current(model) is None


def test_a_block_that_never_began_ends_nothing() -> None:
    model = tiny("llava")
    with vtc.compressed(model, "random", keep=2):
        with pytest.raises(ValueError, match="unknown pruner"), vtc.compressed(model, "randum", keep=3):
            pass
        assert current(model) == 2
    assert current(model) is None
    with pytest.raises(TypeError, match="torch module"), vtc.compressed("a path", "random", keep=3):  # type: ignore[type-var]
        pass


def test_blocks_of_threads() -> None:
    model = tiny("llava")
    before, barrier = anatomy(model), threading.Barrier(4)

    def work(keep: int) -> None:
        for _ in range(20):
            barrier.wait()
            with vtc.compressed(model, "random", keep=keep):
                pass

    threads = [threading.Thread(target=work, args=(keep,)) for keep in (2, 3, 4, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert anatomy(model) == before
