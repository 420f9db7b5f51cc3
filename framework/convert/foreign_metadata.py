"""`.metadata` of a torch.distributed.checkpoint that others wrote, read as plain data: nothing that it names runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata

from framework.errors import UserError
from framework.training.checkpoint import DamagedCheckpoint
from framework.training.checkpoint import metadata as described

MOST_BYTES = 2**28
"""Of a pickle; the parts of the largest model are some ten millions."""
FOREIGN = ("megatron.", "torch.distributed.checkpoint.", "collections", "builtins")
"""Where names come from that may stand there beside those of a checkpoint of ours."""


def read_metadata(path: Path) -> Metadata:
    """Tensors of a checkpoint and where their parts stand; what is no tensor is left out. Raises UserError."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DamagedCheckpoint(f"more than {MOST_BYTES} bytes")
        with path.open("rb") as file:
            return _of_tensors(_MetadataReader(file).load())
    except FileNotFoundError:
        raise UserError(f"{path.parent}: no {path.name}; allowed: a checkpoint that torch.distributed.checkpoint "
                        "wrote") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except DamagedCheckpoint as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except Exception as error:  # whatever a damaged pickle makes the unpickler raise
        raise UserError(f"{path}: damaged ({type(error).__name__})") from None


class _MetadataReader(described.MetadataReader):
    """Also takes what Megatron-Core, say, adds, which is not looked at."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) in described.ALLOWED or not module.startswith(FOREIGN):
            return super().find_class(module, name)
        return type(name, (described.Noted,), {})


def _of_tensors(root: Any) -> Metadata:
    entries = root.state["state_dict_metadata"]
    for name in [name for name, entry in entries.items() if type(entry).__name__ == "BytesStorageMetadata"]:
        del entries[name]
    places = root.state["storage_data"]
    for place in [place for place in places if place.state["fqn"] not in entries]:
        del places[place]
    return described.metadata_of(root)
