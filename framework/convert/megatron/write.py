"""A run's checkpoint, of any layout, as a folder that Megatron-LM loads; in one process, without a GPU."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from framework.convert.fields import Facts
from framework.convert.megatron.arguments import as_flags
from framework.convert.megatron.folder import TRACKER
from framework.convert.megatron.state_files import write_state
from framework.convert.megatron.target import choose
from framework.convert.tokenizer import find_tokenizer
from framework.convert.weights import Weights
from framework.convert.write_hf import DTYPES
from framework.errors import UserError
from framework.files import atomic_folder
from framework.packages import require_package
from framework.surgery.reader import SourceReader
from framework.training.checkpoint import DamagedCheckpoint, checkpoint_folder
from framework.training.load import choose_step
from framework.training.peers import Peers

if TYPE_CHECKING:
    from framework.convert.megatron.target import MegatronTarget
    from framework.surgery import Source

RELEASE = "release"
"""Folder of weights without training state: Megatron-LM starts at iteration 0 and looks for no optimizer."""
BACKEND = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch",
           "common_backend_version": 1}
CONTENT = {"singleton_local_shards": False}
"""How tensors are split, which Megatron-Core reads before it asks for them; what Megatron-LM writes too."""


@dataclass(frozen=True)
class Options:
    """spec: layer specification that will load it, te (Megatron-LM's default) or local. dtype: float32, bfloat16 or
    float16. verify: load it in Megatron-Core's own modules and compare logits.
    """

    spec: str = "te"
    dtype: str = "float32"
    verify: bool = False


def to_megatron(source: Source, out: Path, options: Options) -> dict[str, Any]:
    """Write weights and arguments into a new folder, which is whole or not there; returns the report.

    Raises UserError where Megatron-Core cannot express the model, `out` exists, the checkpoint is damaged or lacks a
    tensor, or Megatron-Core computes other logits.
    """
    if options.dtype not in DTYPES:
        raise UserError(f"--dtype {options.dtype}: not known; allowed: {', '.join(DTYPES)}")
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: exists already; allowed: a new folder")
    target = choose(source.loaded.architecture, options.spec)
    if options.verify:
        require_package("--verify", "einops")  # which Megatron-Core does not bring
    step = choose_step(source.run / "checkpoints", source.step)
    weights = Weights(source.loaded, source.loaded.architecture, target, _reader(source, step), DTYPES[options.dtype])
    arguments = target.write_config(Facts(source.loaded.architecture, source.loaded.recipe.data.seq_len, None,
                                          options.dtype))
    report: dict[str, Any] = {
        "source": str(source.run), "step": step, "target": target.model_class, "spec": options.spec,
        "dtype": options.dtype, "out": str(out)}
    with atomic_folder(out) as folder:
        (folder / RELEASE).mkdir()
        write_state(folder / RELEASE, weights, target.stacked(source.loaded.architecture))
        write_common(folder / RELEASE, arguments)
        (folder / TRACKER).write_text(RELEASE)
        tokenizer = find_tokenizer(source.run)
        if tokenizer is not None:
            (folder / tokenizer.path.name).write_bytes(tokenizer.path.read_bytes())
        report["tokenizer"] = None if tokenizer is None else tokenizer.path.name
        report["arguments"] = as_flags(arguments)
        report["cautions"] = _cautions(target, source, weights)
        if options.verify:
            from framework.convert.megatron.verify import verify

            report["verified"] = verify(source, step, folder / RELEASE, weights, target, arguments)
    return report | {
        "num_tensors": len(weights.tensors), "num_bytes": sum(tensor.num_bytes for tensor in weights.tensors)}


def write_common(folder: Path, arguments: dict[str, Any]) -> None:
    """common.pt, what is not sharded, and metadata.json, which is written last: it says that the rest is there."""
    common = {"args": Namespace(**arguments), "checkpoint_version": 3.0, "iteration": 0, "content_metadata": CONTENT,
              "num_floating_point_operations_so_far": 0}
    torch.save(common, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps(BACKEND))


def _reader(source: Source, step: int) -> SourceReader:
    try:
        return SourceReader(checkpoint_folder(source.run / "checkpoints", step), Peers())
    except DamagedCheckpoint as error:
        raise UserError(f"{source.run}: {error}") from None


def _cautions(target: MegatronTarget, source: Source, weights: Weights) -> list[str]:
    """What a user of the folder must know."""
    model = source.loaded.architecture.model
    found = [f"--use-checkpoint-args takes most arguments from the folder, and not --norm-epsilon {model.norm_eps:g}"]
    if target.kind == "gpt" and any(each.kind == "moe" for each in source.loaded.architecture.sublayers()):
        found.append(f"norms before mixtures of experts have the names of the layer specification {target.spec}; the "
                     "other one finds none: --spec")
    if weights.factors:
        found.append(f"factors of the recipe are folded into {len(weights.factors)} tensors, which rounds them unless "
                     "they are powers of two")
    return found
