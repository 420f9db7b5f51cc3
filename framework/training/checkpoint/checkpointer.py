"""Saves while training goes on, and finds and loads the newest good checkpoint."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from torch import Tensor

from framework.training.checkpoint import folder
from framework.training.checkpoint.manifest import Manifest, file_facts, write_manifest
from framework.training.checkpoint.state import copies
from framework.training.checkpoint.storage import load, write_state
from framework.training.files import sync_folder
from framework.training.peers import Peers

logger = logging.getLogger(__name__)


class Checkpointer:
    """Writes `root/step_N/`, one save at a time. Every method is collective over the ranks of `peers`.

    A save goes to a temporary name, every file is hashed and forced to disk, the manifest comes last and rank 0
    renames: a checkpoint is whole or not there.
    """

    def __init__(self, root: Path, peers: Peers, keep_last: int | None = None, keep_every: int | None = None) -> None:
        self.root, self.peers = root, peers
        self.keep_last, self.keep_every = keep_last, keep_every
        self._newest: int | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        if peers.leads:
            root.mkdir(parents=True, exist_ok=True)
            folder.clear_leftovers(root)

    def save(self, step: int, tensors: dict[str, Tensor], progress: dict[str, Any], background: bool = True) -> None:
        """Save tensors (DTensors or replicated) and JSON after `step` steps; waits for an earlier save first.

        Does nothing where the newest checkpoint is of this step. With `background` the tensors are copied to host
        memory and written by a thread; an error of it is raised by the next call of `save`, `check` or `wait`.
        """
        self.wait()
        if step == self._newest:
            return
        self._newest = step
        tensors = copies(tensors)
        if not background:
            return self._write(step, tensors, progress)
        self._thread = threading.Thread(target=self._write_quietly, args=(step, tensors, progress), daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise the error of a save in the background, if it had one."""
        if self._error is not None:
            raise RuntimeError(f"the last checkpoint could not be written: {self._error}") from self._error

    def wait(self) -> None:
        """Return when no save is under way; raises its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def load_newest(self, tensors: dict[str, Tensor]) -> Manifest | None:
        """Load the newest good checkpoint into the tensors, whatever layout wrote it; None where there is none.

        Damaged ones are reported in a line each and renamed, so that their steps can be saved again.
        """
        for step in reversed(self.peers.broadcast(folder.steps_present(self.root))):
            damage = next(filter(None, self.peers.gather(self._damage(step))), None)
            if damage is None:
                self._newest = step
                return load(folder.checkpoint_folder(self.root, step), tensors, self.peers)
            if self.peers.leads:
                logger.warning("checkpoint step_%d is damaged (%s); looking at the one before", step, damage)
                folder.set_aside(self.root, step)
            self.peers.barrier()
        return None

    def _damage(self, step: int) -> str | None:
        return folder.damage(self.root, step, self.peers.rank, self.peers.count)

    def _write_quietly(self, step: int, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        try:
            self._write(step, tensors, progress)
        except BaseException as error:
            self._error = error

    def _write(self, step: int, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        temporary = folder.temporary_folder(self.root, step)
        if self.peers.leads:
            (temporary / "state").mkdir(parents=True)
        self.peers.barrier()
        write_state(temporary / "state", tensors, self.peers)
        mine = {f"state/{path.name}": file_facts(path) for path in temporary.glob(f"state/__{self.peers.rank}_*")}
        files = {name: facts for part in self.peers.gather(mine) for name, facts in part.items()}
        if self.peers.leads:
            files["state/.metadata"] = file_facts(temporary / "state" / ".metadata")
            sync_folder(temporary / "state")
            write_manifest(temporary, Manifest(step, progress, files))
            temporary.rename(folder.checkpoint_folder(self.root, step))
            sync_folder(self.root)
            for old in folder.surplus(folder.steps_present(self.root), self.keep_last, self.keep_every):
                folder.remove(self.root, old)
