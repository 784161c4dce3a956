"""``python -m vtc``."""

from vtc.commands.main import main

main()
