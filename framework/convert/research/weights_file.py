"""One file that torch.save wrote, read without letting anything in it run."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.convert.distributed_folder import FLOATS
from framework.errors import UserError
from framework.training.checkpoint.safe_reader import refused_name

WRAPPERS = re.compile(r"^module\.|_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
"""What data parallelism, compilation and recomputation leave in names."""


class WeightsFile:
    """shapes: of every tensor of the model, by name, in the order of the file: what stands under `model`, or all.

    The file is mapped, not read, once its checksums are found right. Raises UserError for one that is missing,
    truncated or damaged, for a pickle that names more than tensors and plain values, and for no model in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _require_whole(path)
        self._tensors = _tensors(path, _load(path))
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def tensor(self, name: str) -> Tensor:
        """One tensor, float32."""
        tensor = self._tensors[name]
        if tensor.dtype not in FLOATS:
            raise UserError(f"{self.path}: {name} is {tensor.dtype}; allowed: float32, bfloat16, float16")
        return tensor.to(torch.float32)

    def file_of(self, name: str) -> Path:
        """The file."""
        return self.path


def bare_names(path: Path, names: Mapping[str, Any]) -> dict[str, Any]:
    """The same without wrappers in the names. Raises UserError where two become one."""
    bare = {WRAPPERS.sub("", name): value for name, value in names.items()}
    if len(bare) < len(names):
        raise UserError(f"{path}: two tensors have one name without {WRAPPERS.pattern}; allowed: one model")
    return bare


def _require_whole(path: Path) -> None:
    """Every byte of the archive against its checksums, which torch's reader leaves alone."""
    if not path.is_file():
        raise UserError(f"{path}: {'a folder' if path.is_dir() else 'missing'}; allowed: a file that torch.save wrote")
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [each.filename for each in archive.infolist() if each.compress_type != zipfile.ZIP_STORED]
            wrong = packed[0] if packed else archive.testzip()
    except Exception as error:  # whatever a damaged archive makes its reader raise
        raise UserError(f"{path}: truncated or damaged: no archive of torch.save ({error})") from None
    if wrong is not None:
        raise UserError(f"{path}: damaged: {wrong} is not what was written")


def _load(path: Path) -> Any:
    """What the file holds. torch makes tensors and plain values alone, and names what else a pickle asks for."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a crafted pickle makes torch's reader raise
        raise UserError(f"{path}: {refused_name(error)}; allowed: tensors and plain values, which run nothing"
                        ) from None


def _tensors(path: Path, root: Any) -> dict[str, Tensor]:
    found = root.get("model", root) if isinstance(root, dict) else None
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path}: no model in it; allowed: a state dict, or a dict with one under 'model'")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{path}: {str(name)[:60]!r} of the model is no tensor; allowed: a state dict")
        if tensor.layout is not torch.strided or prod(tensor.shape) > tensor.untyped_storage().nbytes():
            raise UserError(f"{path}: {name} has shape {list(tensor.shape)[:8]}, and fewer bytes; allowed: a tensor of "
                            "its size")
    return bare_names(path, found)
