"""`python -m framework.cli`: the command `upmix`, wherever the package is found."""

from framework.cli import main

main()
