"""This command again, once for each rank."""

import sys


def start_ranks(num_ranks: int) -> int:
    """Run this process's command line on as many ranks of this machine; returns the exit code of `parallel.launch`."""
    from parallel import launch

    # -P: a folder of the working directory must not pass for one of our packages.
    return launch([sys.executable, "-P", "-c", "from framework.cli import main; main()", *sys.argv[1:]], num_ranks)
