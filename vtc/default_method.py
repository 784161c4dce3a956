"""What is meant where no method is named; docs/default-method.md says how it was chosen."""

from __future__ import annotations

NAME = "mmtok"
METHOD = f"{NAME}(space=projected)"
KEEP = 0.25
