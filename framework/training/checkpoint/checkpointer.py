"""Saves while training goes on, and finds and loads the newest good checkpoint."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.errors import UserError
from framework.files import force_to_disk
from framework.training.checkpoint import folder
from framework.training.checkpoint.manifest import DamagedCheckpoint, Manifest, file_facts, write_manifest
from framework.training.checkpoint.state import copies
from framework.training.checkpoint.storage import load, write_state
from framework.training.checkpoint_names import checkpoint_folder, steps_present
from framework.training.peers import Peers

logger = logging.getLogger(__name__)


class Checkpointer:
    """Writes `root/step_N/`, one save at a time. Every method is collective over the ranks of `peers`.

    A save goes to a temporary name, every file is hashed and forced to disk, the manifest comes last and rank 0
    renames: a checkpoint is whole or not there. On every rank a save is over when the checkpoint has its name.
    Leaving a `with` block of the checkpointer waits for the save under way, whatever ended the block.
    """

    def __init__(
        self, root: Path, peers: Peers, keep_last: int | None = None, keep_every: int | None = None,
        keep_steps: Set[int] = frozenset(),
    ) -> None:
        self.root, self.peers = root, peers
        self.keep_last, self.keep_every, self.keep_steps = keep_last, keep_every, keep_steps
        self._newest: int | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        if peers.leads:
            root.mkdir(parents=True, exist_ok=True)
            folder.clear_leftovers(root)

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        self._join()
        if kind is None:
            self.check()

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
        # A new thread's current GPU is the first one, whatever this rank's is.
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self._thread = threading.Thread(target=self._write_quietly, args=(device, step, tensors, progress), daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise the error of a save in the background, if it had one."""
        if self._error is not None:
            raise RuntimeError(f"the last checkpoint could not be written: {self._error}") from self._error

    def wait(self) -> None:
        """Return when no save is under way; raises its error."""
        self._join()
        self.check()

    def load_newest(self, tensors: dict[str, Tensor]) -> Manifest | None:
        """Load the newest good checkpoint into the tensors, whatever layout wrote it; None where none was ever saved.

        Damaged ones are reported in a line each and, if a good one stands before them, renamed, so that their steps can
        be saved again. Raises UserError where checkpoints are there but none is good, is of another version or of other
        tensors, or looks different to some ranks.
        """
        names, steps = self.peers.broadcast((folder.names_present(self.root), steps_present(self.root)))
        for step in reversed(steps):
            if (damage := self._damage(step)) is None:
                return self._load(step, tensors, damaged=[later for later in steps if later > step])
            if self.peers.leads:
                logger.warning("checkpoint step_%d is damaged (%s); looking at the one before", step, damage)
        if names:
            raise UserError(f"{self.root}: none of the checkpoints is good: {', '.join(names)}; allowed: --resume with "
                            "one that is, or another --name to start anew")
        return None

    def _load(self, step: int, tensors: dict[str, Tensor], damaged: list[int]) -> Manifest:
        try:
            manifest = load(checkpoint_folder(self.root, step), tensors, self.peers)
        except DamagedCheckpoint as error:
            raise UserError(f"{self.root}: {error}; allowed: checkpoints of this recipe's model") from None
        if self.peers.leads:
            for later in damaged:
                folder.set_aside(self.root, later)
        self.peers.barrier()
        self._newest = step
        return manifest

    def _damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint, on every rank; each hashes its share of the files.

        What one rank finds may be due to its own view of the folder, so only what rank 0 finds too is damage.
        """
        findings = self.peers.gather(self._finding(step))
        if not any(findings):
            return None
        if confirmed := self.peers.lead(lambda: folder.damage(self.root, step)):
            return confirmed
        rank, finding = next((rank, finding) for rank, finding in enumerate(findings) if finding)
        raise UserError(f"{checkpoint_folder(self.root, step)}: rank {rank} finds that {finding}, but to rank 0 "
                        "it is whole; allowed: a runs folder that is the same on all machines")

    def _finding(self, step: int) -> str | None:
        try:
            return folder.damage(self.root, step, self.peers.rank, self.peers.count)
        except (UserError, OSError) as error:
            return str(error)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write_quietly(
        self, device: int | None, step: int, tensors: dict[str, Tensor], progress: dict[str, Any],
    ) -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)
            self._write(step, tensors, progress)
        except BaseException as error:
            self._error = error

    def _write(self, step: int, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        state = folder.temporary_folder(self.root, step) / "state"
        self._on_each(lambda: self.peers.leads and state.mkdir(parents=True))
        write_state(state, tensors, self.peers)
        mine = f"__{self.peers.rank}_*"
        parts = self._on_each(lambda: {f"state/{path.name}": file_facts(path) for path in state.glob(mine)})
        files = {name: facts for part in parts for name, facts in part.items()}
        self._on_each(lambda: self.peers.leads and self._complete(Manifest(step, progress, files)))

    def _complete(self, manifest: Manifest) -> None:
        """On rank 0, when all parts are written: add the manifest, give the checkpoint its name, let old ones go."""
        temporary = folder.temporary_folder(self.root, manifest.step)
        manifest.files["state/.metadata"] = file_facts(temporary / "state" / ".metadata")
        force_to_disk(temporary / "state")
        write_manifest(temporary, manifest)
        temporary.rename(checkpoint_folder(self.root, manifest.step))
        force_to_disk(self.root)
        present = steps_present(self.root)
        for old in folder.surplus(present, self.keep_last, self.keep_every, self.keep_steps):
            folder.remove(self.root, old)

    def _on_each(self, function: Callable[[], Any]) -> list[Any]:
        """Every rank's result, on every rank, when all are done; OSError on every rank where one of them fails."""
        result, error = None, None
        try:
            result = function()
        except Exception as failure:
            error = failure
        outcomes = self.peers.gather((result, error and f"rank {self.peers.rank}: {error}"))
        if told := next((told for _, told in outcomes if told), None):
            raise OSError(told) from error
        return [result for result, _ in outcomes]
