"""A folder with a model of transformers, read without letting anything in it run: JSON and safetensors alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from framework.convert.shards import INDEX, ONE
from framework.errors import UserError

RECOMPUTED = ("rotary_emb.inv_freq",)
"""Buffers that old checkpoints hold and models make anew."""
FLOATS = {"F32", "F16", "BF16"}


class HuggingFaceFolder:
    """config: of config.json. shapes: of every tensor, by name, from the files' headers.

    Raises UserError, which names the file, for one that is missing, truncated, damaged or no JSON, and for weights that
    only a pickle holds.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise UserError(f"{path}: no folder; allowed: one with config.json and safetensors files")
        self.path = path
        self.config = read_json(path / "config.json")
        self._files: dict[str, Any] = {}
        self._place = self._find_tensors()
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name in sorted(self._place):
            header = self._open(self._place[name]).get_slice(name)
            if header.get_dtype() not in FLOATS:
                raise UserError(f"{path / self._place[name]}: {name} is {header.get_dtype()}; allowed: float32, "
                                "bfloat16, float16")
            self.shapes[name] = tuple(header.get_shape())

    def tensor(self, name: str) -> Tensor:
        """One tensor, float32."""
        try:
            return self._open(self._place[name]).get_tensor(name).to(torch.float32)
        except SafetensorError as error:
            raise UserError(f"{self.path / self._place[name]}: {name} cannot be read ({error})") from None

    def file_of(self, name: str) -> Path:
        """Where a tensor stands, or where all are listed."""
        return self.path / self._place.get(name, INDEX if (self.path / INDEX).is_file() else ONE)

    def _find_tensors(self) -> dict[str, str]:
        """Which file holds each tensor. The index must tell the truth."""
        if (self.path / INDEX).is_file():
            told = read_json(self.path / INDEX).get("weight_map")
            if not isinstance(told, dict) or not all(isinstance(name, str) for name in told.values()):
                raise UserError(f"{self.path / INDEX}: no weight_map in it; allowed: a name of a file for each tensor")
            for name in sorted(set(told.values())):
                if name != Path(name).name or not name.endswith(".safetensors"):
                    raise UserError(f"{self.path / INDEX}: names {name!r}; allowed: safetensors files beside it")
            held = {name: file for file in sorted(set(told.values())) for name in self._open(file).keys()}
            if wrong := sorted(name for name in told if held.get(name) != told[name]):
                raise UserError(f"{self.path / told[wrong[0]]}: {wrong[0]} is missing, which {INDEX} places here")
            return held
        if (self.path / ONE).is_file():
            return dict.fromkeys(self._open(ONE).keys(), ONE)
        pickled = sorted(each.name for each in self.path.iterdir() if each.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        also = f"; {pickled[0]} may run code when read, and is not" if pickled else ""
        raise UserError(f"{self.path}: no {ONE} and no {INDEX}{also}; allowed: weights in safetensors files")

    def _open(self, name: str) -> Any:
        if name not in self._files:
            path = self.path / name
            if not path.is_file():
                raise UserError(f"{path}: missing; allowed: the file that {INDEX} names")
            try:
                self._files[name] = safe_open(path, framework="pt", device="cpu")
            except (SafetensorError, OSError, ValueError) as error:
                raise UserError(f"{path}: truncated or damaged: no safetensors file ({error})") from None
        return self._files[name]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError for anything else."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: missing; allowed: a folder with config.json and safetensors files") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: no JSON ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: no JSON object")
    return content
