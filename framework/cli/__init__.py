"""The command line: the roof over all floors. One small file per verb, no logic that a library call could hold."""

from framework.cli.app import main

__all__ = ["main"]
