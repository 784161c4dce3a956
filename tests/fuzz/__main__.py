"""``python tests/fuzz``: runs draws, see ``cli.py``."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # as for pytest: zoo, reference, fuzz

from fuzz.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
