"""Tensors to and from a torch.distributed.checkpoint on disk."""

import warnings
from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from framework.training.checkpoint.manifest import DamagedCheckpoint, Manifest, read_manifest
from framework.training.checkpoint.safe_reader import SafeReader
from framework.training.peers import Peers

warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def write_state(path: Path, tensors: dict[str, Tensor], peers: Peers) -> None:
    """Write tensors into an existing folder. Raises OSError on every rank where one of them fails."""
    writer = dcp.FileSystemWriter(path, single_file_per_rank=True, sync_files=True)
    try:
        dcp.save(dict(tensors), storage_writer=writer, process_group=peers.group, no_dist=peers.group is None)
    except CheckpointException as error:
        raise OSError(first_cause(error)) from error


def load(checkpoint: Path, tensors: dict[str, Tensor], peers: Peers) -> Manifest:
    """Load a checkpoint in place into tensors (DTensors of any layout, or plain). Its files must have been verified.

    Raises DamagedCheckpoint where its content is no set of tensors, or not these.
    """
    manifest = read_manifest(checkpoint)
    try:
        dcp.load(dict(tensors), storage_reader=SafeReader(checkpoint / "state"), process_group=peers.group,
                 no_dist=peers.group is None)
    except CheckpointException as error:
        raise DamagedCheckpoint(f"{checkpoint.name}: {first_cause(error)}") from error
    return manifest


def first_cause(error: CheckpointException) -> str:
    """What one of the ranks said."""
    return str(next(cause for cause, _ in error.failures.values()))
