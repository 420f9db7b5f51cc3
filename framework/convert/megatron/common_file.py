"""`common.pt` of a `torch_dist` checkpoint, read as plain data: nothing that it names is imported or called.

Each class and function that a pickle names becomes an empty class made for this reading, whose instances note what they
are given. Of these, plain values are read.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from framework.convert.foreign_metadata import MOST_BYTES
from framework.errors import UserError


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


def _plain(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if isinstance(key, str) and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(item, bool | int | float | str | None) for item in value)
    return isinstance(value, bool | int | float | str | None)
