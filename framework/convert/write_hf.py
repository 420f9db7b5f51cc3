"""A run's checkpoint, of any layout, as a folder that transformers loads; in one process, without a GPU."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from framework.convert.choose import choose
from framework.convert.fields import Facts
from framework.convert.identity import with_identity_layer
from framework.convert.shards import write_shards
from framework.convert.tokenizer import find_tokenizer, write_tokenizer
from framework.convert.weights import Weights
from framework.errors import UserError
from framework.files import atomic_folder
from framework.packages import require_package
from framework.surgery.reader import SourceReader
from framework.training.checkpoint import DamagedCheckpoint, checkpoint_folder
from framework.training.load import choose_step
from framework.training.peers import Peers

if TYPE_CHECKING:
    from framework.convert.target import Target
    from framework.surgery import Source

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHARD_BYTES = 4 * 10**9


@dataclass(frozen=True)
class Options:
    """target: a model_type; None: the first that fits. dtype: of DTYPES. verify: load in transformers and compare.

    identity_attention: add a layer that changes nothing, see `identity`.
    """

    target: str | None = None
    dtype: str = "float32"
    shard_bytes: int = SHARD_BYTES
    verify: bool = False
    identity_attention: bool = False


def to_hf(source: Source, out: Path, options: Options) -> dict[str, Any]:
    """Write weights, config, generation config and tokenizer into a new folder, which is whole or not there.

    Returns the report. Raises UserError where no target can express the model, `out` exists, the checkpoint is damaged
    or lacks a tensor, or transformers computes other logits.
    """
    if options.dtype not in DTYPES:
        raise UserError(f"--dtype {options.dtype}: not known; allowed: {', '.join(DTYPES)}")
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: exists already; allowed: a new folder")
    target = choose(source.loaded, options.target)
    architecture = source.loaded.architecture
    if options.identity_attention:
        architecture = with_identity_layer(architecture, target)
    if options.verify:
        require_package("--verify", "transformers")
    step = choose_step(source.run / "checkpoints", source.step)
    weights = Weights(source.loaded, architecture, target, _reader(source, step), DTYPES[options.dtype])
    tokenizer = find_tokenizer(source.run)
    facts = Facts(architecture, source.loaded.recipe.data.seq_len,
                  None if tokenizer is None else tokenizer.eod, options.dtype)
    config = target.write_config(facts)
    report: dict[str, Any] = {"source": str(source.run), "step": step, "target": target.model_type,
                              "dtype": options.dtype, "out": str(out)}
    with atomic_folder(out) as folder:
        report["files"] = write_shards(weights, folder, options.shard_bytes)
        _write_json(folder / "config.json", config)
        generation = {"eos_token_id": facts.eod, "use_cache": config["use_cache"]}
        _write_json(folder / "generation_config.json", {key: value for key, value in generation.items()
                                                        if value is not None})
        report["tokenizer"] = write_tokenizer(tokenizer, folder)
        report["cautions"] = _cautions(target, source, weights, config)
        if options.verify:
            from framework.convert.verify import verify

            report["verified"] = verify(source, step, folder, weights)
    return report | {
        "num_tensors": len(weights.tensors), "num_bytes": sum(tensor.num_bytes for tensor in weights.tensors),
    }


def _reader(source: Source, step: int) -> SourceReader:
    try:
        return SourceReader(checkpoint_folder(source.run / "checkpoints", step), Peers())
    except DamagedCheckpoint as error:
        raise UserError(f"{source.run}: {error}") from None


def _cautions(target: Target, source: Source, weights: Weights, config: dict[str, Any]) -> list[str]:
    """What a user of the folder must know."""
    found = [target.caution(source.loaded.architecture)]
    if not config["use_cache"]:
        found.append("no layer has attention: transformers 5 computes such a model without a cache only, which "
                     "config.json says; --identity-attention adds a layer that changes nothing but this")
    if weights.added:
        found.append("the last layer, of attention, has weights of zeros; it changes nothing, and stays when the "
                     "folder is converted back")
    if weights.factors:
        found.append(f"factors of the recipe are folded into {len(weights.factors)} tensors, which rounds them unless "
                     "they are powers of two")
    drops = any(sublayer.kind == "moe" and sublayer.settings.capacity_factor is not None
                for sublayer in source.loaded.architecture.sublayers())
    if drops:
        found.append("experts were held to a capacity in training; nothing is dropped here, as in `upmix eval`")
    return [text for text in found if text]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
