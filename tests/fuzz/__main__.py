"""``python tests/fuzz``: runs draws, see ``cli.py``."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[0] = str(TESTS)  # as for pytest: zoo, reference, fuzz

from fuzz.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
