"""State that each thread has for itself."""

from __future__ import annotations

import threading
from typing import Any, NoReturn


def refuse_copy(protocol: Any) -> NoReturn:
    """Stands for ``__reduce_ex__`` of what can't be copied or pickled."""
    raise TypeError(
        "a model wrapped by vtc can't be copied or pickled, since its hooks would stay the original's; call "
        "vtc.restore(model) first, and vtc.compress(...) on the copy"
    )


class ThreadState(threading.local):
    """Per-thread attributes; refuses to be copied or pickled with a model, whose hooks would stay the original's."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        refuse_copy(protocol)
