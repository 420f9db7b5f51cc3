"""Checkpoints: written in the background, whole or not there, readable by any layout, and safe to read."""

from framework.training.checkpoint.checkpointer import Checkpointer
from framework.training.checkpoint.contents import consolidate, stored_tensors
from framework.training.checkpoint.folder import damage
from framework.training.checkpoint.manifest import DamagedCheckpoint, Manifest, present_files, read_manifest
from framework.training.checkpoint.state import model_tensors, optimizer_tensors
from framework.training.checkpoint.storage import load
from framework.training.checkpoint_names import checkpoint_folder, steps_present

__all__ = [
    "Checkpointer", "DamagedCheckpoint", "Manifest", "checkpoint_folder", "consolidate", "damage", "load",
    "model_tensors", "optimizer_tensors", "present_files", "read_manifest", "steps_present", "stored_tensors",
]
