"""The written folder loaded in Megatron-Core's own modules, and its logits beside ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from framework.convert.verify import LENGTH, compare_logits, random_tokens, round_as_written
from framework.errors import UserError
from framework.model import Context
from framework.training.load import load_run

if TYPE_CHECKING:
    from framework.convert.megatron.target import MegatronTarget
    from framework.convert.weights import Weights
    from framework.surgery import Source


def verify(
    source: Source, step: int, checkpoint: Path, weights: Weights, target: MegatronTarget, arguments: dict[str, Any]
) -> dict[str, float]:
    """Compare float32 logits of 2 x 19 random tokens; both models have the weights that were written.

    Megatron-Core loads on the CPU in a process of its own, into its own modules ("local"), whatever specification the
    names are for; in Mamba-2 blocks our scan and gated norm stand for mamba_ssm's, which need a GPU. Returns what
    `compare_logits` does, and raises as it does, or where a tensor is missing or ignored.
    """
    tokens_BS = random_tokens(source.loaded.recipe.model.vocab_size)
    with TemporaryDirectory() as folder:
        out = Path(folder) / "logits.pt"
        job = {"checkpoint": str(checkpoint.absolute()), "kind": target.kind, "spec": target.spec,
               "arguments": {**arguments, "seq_length": max(LENGTH, arguments["seq_length"])},
               "tokens": tokens_BS.tolist(), "out": str(out)}
        told, = run_peer([job], Path(folder))
        if wrong := [*told["missing"], *told["ignored"]]:
            raise UserError(f"--verify: Megatron-Core misses or ignores {wrong[0]} ({len(wrong)} tensors); nothing "
                            "written")
        theirs = torch.load(out, weights_only=True)
    ours = load_run(source.run, step).model
    if weights.dtype is not torch.float32:
        round_as_written(ours, weights)
    with torch.no_grad():
        mine = ours(tokens_BS, Context())
    return compare_logits(mine, theirs, "Megatron-Core")


def run_peer(jobs: list[dict[str, Any]], folder: Path) -> list[dict[str, list[str]]]:
    """What `peer` says of each job. Raises UserError with its last line where it fails."""
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    done = subprocess.run([sys.executable, "-m", "framework.convert.megatron.peer", str(path)], capture_output=True,
                          text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise UserError(f"--verify: Megatron-Core failed to load the folder: {last[:300]}; nothing written")
    return json.loads(done.stdout.strip().splitlines()[-1])
