"""This command again, once for each rank."""

import sys


def start_ranks(num_ranks: int) -> int:
    """Run this process's command line on as many ranks of this machine; returns the exit code of `parallel.launch`."""
    from framework.command import UPMIX
    from parallel import launch

    return launch([*UPMIX, *sys.argv[1:]], num_ranks)
