"""The command line, run inside the test."""

from __future__ import annotations

import pytest

from vtc.commands.main import main


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err
