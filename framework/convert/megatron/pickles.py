"""What a `torch_dist` checkpoint pickles, read as plain data: nothing that a file names is imported or called.

Each class and function that a pickle names becomes an empty class made for this reading, whose instances note what they
are given. Of these, what describes tensors and plain values is read.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata

from framework.errors import UserError
from framework.training.checkpoint import DamagedCheckpoint
from framework.training.checkpoint import metadata as described

MOST_BYTES = 2**28
"""Of a pickle; the arguments of a job are thousands, the parts of the largest model some ten millions."""
FOREIGN = ("megatron.", "torch.distributed.checkpoint.", "collections", "builtins")
"""Where names come from that a `.metadata` of Megatron-Core may have beside those of a checkpoint of ours."""


def read_metadata(path: Path) -> Metadata:
    """Tensors of a checkpoint and where their parts stand; what is no tensor is left out. Raises UserError."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DamagedCheckpoint(f"more than {MOST_BYTES} bytes")
        with path.open("rb") as file:
            return _of_tensors(_MetadataReader(file).load())
    except (DamagedCheckpoint, OSError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except Exception as error:  # whatever a damaged pickle makes the unpickler raise
        raise UserError(f"{path}: damaged ({type(error).__name__})") from None


def read_common(path: Path) -> dict[str, Any]:
    """The dict that torch.save wrote, with its `args` as a dict; only plain values of both are kept.

    Raises UserError where there is no such file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry, = (each for each in archive.infolist() if each.filename.endswith("/data.pkl"))
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > MOST_BYTES:
                raise ValueError("no pickle of torch.save")
            with archive.open(entry) as file:
                root = _Reader(file).load()
        if not isinstance(root, dict):
            raise ValueError("no dict")
    except Exception as error:  # whatever a damaged archive or pickle makes its reader raise
        raise UserError(f"{path}: missing or damaged ({type(error).__name__})") from None
    args = root.get("args")
    arguments = args.state if isinstance(args, _Noted) else args
    return {**_plain(root), "args": _plain(arguments) if isinstance(arguments, Mapping) else None}


class _Noted:
    """Stands for anything that a pickle makes; takes whatever it is given, and notes its state."""

    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> _Noted:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _Noted:
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """An item of a list that is none."""

    def extend(self, values: Any) -> None:
        """Items of a list that is none."""

    def add(self, value: Any) -> None:
        """An item of a set that is none."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_Noted]:
        return type("Unread", (_Noted,), {})

    def persistent_load(self, pid: Any) -> _Noted:
        return _Noted()


class _MetadataReader(described.MetadataReader):
    """Also takes what Megatron-Core adds to a `.metadata`, which is not looked at."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) in described.ALLOWED or not module.startswith(FOREIGN):
            return super().find_class(module, name)
        return type(name, (described.Noted,), {})


def _of_tensors(root: Any) -> Metadata:
    entries = root.state["state_dict_metadata"]
    for name in [name for name, entry in entries.items() if type(entry).__name__ == "BytesStorageMetadata"]:
        del entries[name]
    places = root.state["storage_data"]
    for place in [place for place in places if place.state["fqn"] not in entries]:
        del places[place]
    return described.metadata_of(root)


def _plain(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if isinstance(key, str) and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(item, bool | int | float | str | None) for item in value)
    return isinstance(value, bool | int | float | str | None)
