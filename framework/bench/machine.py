"""What a measurement was made on, and by which code. Imports no torch."""

from __future__ import annotations

import os
import platform
import re
import tempfile
from pathlib import Path

from framework.training.code_state import write_code_state


def describe_machine() -> dict[str, object]:
    """The processor's name, cores that this process may use, bytes of memory, and the system."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return {"cpu": found.group(1).strip() if found else platform.processor(),
            "cores": len(os.sched_getaffinity(0)), "system": f"{platform.system()} {platform.release()}",
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}


def describe_code() -> dict[str, object]:
    """The commit of this checkout, and whether files differ from it."""
    with tempfile.TemporaryDirectory() as folder:
        commit = write_code_state(Path(folder))
        return {"commit": commit, "uncommitted_changes": (Path(folder) / "diff").stat().st_size > 0}
