"""Reads a torch.distributed.checkpoint without letting anything in it run.

PyTorch's own reader unpickles `.metadata` and byte entries freely, so a crafted file runs commands. Here `.metadata`
may name only the plain classes that describe tensors, byte entries are refused, and tensors are read by torch's
restricted loader, as its reader does already.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner
from torch.futures import Future

from framework.training.checkpoint.manifest import DamagedCheckpoint

_METADATA = "torch.distributed.checkpoint.metadata"
_DTYPES = {("torch", name) for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
ALLOWED = frozenset(_DTYPES | {
    ("torch", "Size"), ("torch.serialization", "_get_layout"),
    ("pathlib", "Path"), ("pathlib", "PosixPath"), ("pathlib._local", "Path"), ("pathlib._local", "PosixPath"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *((_METADATA, name) for name in (
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )),
})


class _AllowListUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise DamagedCheckpoint(f".metadata names {module}.{name}, which no checkpoint of tensors needs")
        return super().find_class(module, name)


class SafeReader(FileSystemReader):
    """FileSystemReader that runs nothing. Raises DamagedCheckpoint for what is no checkpoint of tensors."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The checkpoint's metadata, through the allow-list."""
        with (Path(self.path) / ".metadata").open("rb") as file:
            try:
                metadata = _AllowListUnpickler(file).load()
            except DamagedCheckpoint:
                raise
            except Exception as error:
                raise DamagedCheckpoint(f".metadata cannot be read ({type(error).__name__})") from None
        _check(metadata)
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read tensors only."""
        if any(item.type == LoadItemType.BYTE_IO for item in plan.items):
            raise DamagedCheckpoint("a byte entry where a tensor belongs")
        return super().read_data(plan, planner)


def _check(metadata: Any) -> None:
    if not isinstance(metadata, Metadata) or not isinstance(metadata.state_dict_metadata, dict):
        raise DamagedCheckpoint(".metadata is none of a checkpoint")
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, BytesStorageMetadata) or not isinstance(entry, TensorStorageMetadata):
            raise DamagedCheckpoint(f"{name} is no tensor")
    for info in (metadata.storage_data or {}).values():
        if Path(info.relative_path).name != info.relative_path or info.transform_descriptors:
            raise DamagedCheckpoint(f".metadata points at {info.relative_path!r}, which is no file of this checkpoint")
