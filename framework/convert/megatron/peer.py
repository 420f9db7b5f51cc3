"""A process of its own that loads a checkpoint in Megatron-Core and says what it computes.

`python -m framework.convert.megatron.peer JOB.json`: a list of jobs, each with `checkpoint`, `kind`, `spec`,
`arguments`, `tokens` (lists of ids), and `out`, where the logits [B, S, V] go. Prints one JSON line: of each job
the keys that the model misses, and those that it ignores.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from framework.convert.megatron.build import build, start
from framework.convert.megatron.cpu import pretend_cuda


@torch.no_grad()
def load_and_compute(job: dict[str, Any]) -> dict[str, list[str]]:
    """Load with nothing missing ignored, and save the logits."""
    from megatron.core import dist_checkpointing

    model = build(job["kind"], job["spec"], job["arguments"])
    content = dist_checkpointing.load_content_metadata(job["checkpoint"])
    wanted = {"model": model.sharded_state_dict(metadata=content)}
    # What it calls missing is what the model does not ask for; what it calls unexpected is not in the checkpoint.
    state, unasked, absent = dist_checkpointing.load(wanted, job["checkpoint"], strict="return_all")
    if not absent:
        model.load_state_dict(state["model"])
        torch.save(compute(model, job["tokens"]), job["out"])
    return {"missing": sorted(absent), "ignored": sorted(key for key in unasked if not key.endswith("._extra_state"))}


def compute(model: torch.nn.Module, tokens: list[list[int]]) -> torch.Tensor:
    """Logits [B, S, V] of ids [B, S]."""
    tokens_BS = torch.tensor(tokens)
    length = tokens_BS.shape[1]
    hidden_SS = torch.ones(length, length, dtype=torch.bool).triu(1)[None, None]
    return model(tokens_BS, torch.arange(length).expand_as(tokens_BS), hidden_SS)


def main() -> None:
    """Do the jobs."""
    warnings.simplefilter("ignore")
    pretend_cuda()
    start()
    print(json.dumps([load_and_compute(job) for job in json.loads(Path(sys.argv[1]).read_text())]))


if __name__ == "__main__":
    main()
