"""What ``vtc show --signal`` can draw, by name."""

from __future__ import annotations

from collections.abc import Sequence

TITLES = {
    "relevance": "relevance for the answer",
    "predicted": "relevance, predicted from layer 0",
    "attention": "the text's attention in layer 0",
}
SIGNALS = (*TITLES, "classes")


def check_signals(signals: Sequence[str]) -> None:
    """Refuse a --signal that is not there.

    Raises
    ------
    ValueError
        Naming those that are.
    """
    for signal in signals:
        if signal not in SIGNALS:
            raise ValueError(f"--signal {signal!r} is unknown: there is {', '.join(SIGNALS)}")
