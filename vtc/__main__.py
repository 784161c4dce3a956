"""``python -m vtc``."""

from .cli import main

main()
