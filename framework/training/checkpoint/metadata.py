"""`.metadata` of a torch.distributed.checkpoint, read as plain data.

It is a pickle, and a pickle may call whatever it is handed and set attributes on it. So here it is handed nothing real:
each class that it names becomes an empty one made for this reading, whose instances only note what they are given. What
describes tensors is then read off them, with every type checked, into new objects.
"""

import pickle
import re
from collections.abc import Callable
from typing import IO, Any

import torch
from torch.distributed.checkpoint import metadata as described
from torch.distributed.checkpoint.filesystem import _StorageInfo

from framework.training.checkpoint.manifest import DamagedCheckpoint

_METADATA = described.__name__
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_FILE_NAME = re.compile(r"__\d+_\d+\.distcp")
ALLOWED = frozenset({
    *(("torch", name) for name in _DTYPES), ("torch", "Size"), ("torch.serialization", "_get_layout"),
    ("pathlib", "Path"), ("pathlib", "PosixPath"), ("pathlib._local", "Path"), ("pathlib._local", "PosixPath"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *((_METADATA, name) for name in (
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )),
})


def read_metadata(file: IO[bytes]) -> described.Metadata:
    """What tensors there are and where their parts stand. Raises DamagedCheckpoint for anything else."""
    try:
        return metadata_of(MetadataReader(file).load())
    except DamagedCheckpoint:
        raise
    except Exception as error:
        raise DamagedCheckpoint(f".metadata cannot be read ({type(error).__name__})") from None


class Noted:
    """Stands for an instance: the arguments and the state that the pickle gave it. Its class's name is the original's.

    The unpickler sets attributes only of what has no `__setstate__`.
    """

    args: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *args: Any) -> "Noted":
        noted = super().__new__(cls)
        noted.args = args
        return noted

    def __setstate__(self, state: Any) -> None:
        self.state = state


class MetadataReader(pickle.Unpickler):
    """Makes a `Noted` of every class in ALLOWED. Raises DamagedCheckpoint for any other."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self._classes: dict[tuple[str, str], type[Noted]] = {}

    def find_class(self, module: str, name: str) -> type[Noted]:
        if (module, name) not in ALLOWED:
            raise DamagedCheckpoint(f".metadata names {module}.{name}, which no checkpoint of tensors needs")
        if (module, name) not in self._classes:
            self._classes[module, name] = type(name, (Noted,), {})
        return self._classes[module, name]


def metadata_of(root: Any) -> described.Metadata:
    """What a reader made, as metadata. Raises DamagedCheckpoint, or whatever a wrong type does."""
    fields = _state(root, "Metadata")
    entries, places = (_typed(fields[name], dict) for name in ("state_dict_metadata", "storage_data"))
    return described.Metadata(
        {_typed(name, str): _tensor(name, entry) for name, entry in entries.items()},
        planner_data={name: (name,) for name in entries},  # the path of each in a nested state; ours is flat
        storage_data={_index(index): _place(place) for index, place in places.items()},
    )


def _tensor(name: str, entry: Any) -> described.TensorStorageMetadata:
    if type(entry).__name__ != "TensorStorageMetadata":
        raise DamagedCheckpoint(f"{name} is no tensor")
    fields = _state(entry, "TensorStorageMetadata")
    dtype = _DTYPES[_typed(_state(fields["properties"], "TensorProperties", tuple)[0], type).__name__]
    chunks = [_state(chunk, "ChunkStorageMetadata") for chunk in _typed(fields["chunks"], list)]
    return described.TensorStorageMetadata(
        described.TensorProperties(dtype), _size(fields["size"]),
        [described.ChunkStorageMetadata(_size(chunk["offsets"]), _size(chunk["sizes"])) for chunk in chunks],
    )


def _index(noted: Any) -> described.MetadataIndex:
    fields = _state(noted, "MetadataIndex")
    return described.MetadataIndex(_typed(fields["fqn"], str), _optional(fields.get("offset"), _size),
                                   _optional(fields.get("index"), _number))


def _place(noted: Any) -> _StorageInfo:
    fields = _state(noted, "_StorageInfo")
    path = _typed(fields["relative_path"], str)
    if not _FILE_NAME.fullmatch(path) or fields.get("transform_descriptors"):
        raise DamagedCheckpoint(f".metadata points at {path!r}, which is no file of this checkpoint")
    return _StorageInfo(path, _number(fields["offset"]), _number(fields["length"]))


def _size(noted: Any) -> torch.Size:
    if type(noted).__name__ != "Size" or len(noted.args) != 1:
        raise DamagedCheckpoint(".metadata has something else where a shape belongs")
    return torch.Size([_number(length) for length in _typed(noted.args[0], tuple)])


def _number(value: Any) -> int:
    if _typed(value, int) < 0:
        raise DamagedCheckpoint(f".metadata has {value} where a size or place belongs")
    return value


def _state(noted: Any, name: str, kind: type = dict) -> Any:
    if not isinstance(noted, Noted) or type(noted).__name__ != name:
        raise DamagedCheckpoint(f".metadata has something else where {name} belongs")
    return _typed(noted.state, kind)


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise DamagedCheckpoint(f".metadata has {type(value).__name__} where {kind.__name__} belongs")
    return value


def _optional(value: Any, read: Callable[[Any], Any]) -> Any:
    return None if value is None else read(value)
