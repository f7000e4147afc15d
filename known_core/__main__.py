"""``python -m known_core`` is the command line."""

from known_core.cli import main

main()
