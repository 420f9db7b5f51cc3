"""How the command line is started once more, in a process of its own."""

import sys

UPMIX = (sys.executable, "-P", "-m", "framework.cli")
"""What `upmix` is. -P: a folder of the working directory must not pass for one of our packages."""
