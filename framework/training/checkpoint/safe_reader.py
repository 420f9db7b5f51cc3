"""Reads a torch.distributed.checkpoint without letting anything in it run.

PyTorch's own reader unpickles `.metadata` and byte entries freely, so a crafted file runs commands. Here `.metadata` is
read as plain data, byte entries are refused, and tensors are read by torch's restricted loader, as its reader does
already.
"""

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner
from torch.futures import Future

from framework.training.checkpoint.manifest import DamagedCheckpoint
from framework.training.checkpoint.metadata import read_metadata


class SafeReader(FileSystemReader):
    """FileSystemReader that runs nothing. Raises DamagedCheckpoint for what is no checkpoint of tensors."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The checkpoint's metadata, of tensors in files of its own alone."""
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = read_metadata(file)
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read tensors only."""
        if any(item.type == LoadItemType.BYTE_IO for item in plan.items):
            raise DamagedCheckpoint("a byte entry where a tensor belongs")
        try:
            return super().read_data(plan, planner)
        except UnpicklingError as error:
            raise DamagedCheckpoint(f"a pickle {refused_name(error)}; allowed: tensors, which run nothing") from None


def refused_name(error: Exception) -> str:
    """What torch's restricted loader refused, in our words: its own advise loading the file without restriction."""
    asked = re.search(r"GLOBAL (\S+)", str(error))
    return f"names {asked[1]}" if asked else f"cannot be read ({type(error).__name__})"
