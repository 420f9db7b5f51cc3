"""manifest.json: what a checkpoint holds, and the size and SHA-256 of every file of it, its own text included."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.errors import UserError
from framework.files import write_atomically

FORMAT = 1
FILE_NAME = "manifest.json"


class DamagedCheckpoint(Exception):
    """Says in a few words what is wrong with a checkpoint."""


@dataclass(frozen=True)
class Manifest:
    """step: optimizer steps done. progress: what training needs beside tensors. files: facts of each, by name."""

    step: int
    progress: dict[str, Any]
    files: dict[str, dict[str, Any]]


def file_facts(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest last of all: a folder that has one was complete."""
    body = {"format": FORMAT, "step": manifest.step, "progress": manifest.progress, "files": manifest.files}
    write_atomically(folder / FILE_NAME, json.dumps({**body, "sha256": _digest(body)}, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest itself.

    Raises DamagedCheckpoint, and UserError for a format of another version. Every format has this file, with the hash
    of its text, so that damage is told from novelty.
    """
    try:
        body = json.loads((folder / FILE_NAME).read_bytes())
        if body.pop("sha256") != _digest(body):
            raise DamagedCheckpoint(f"{FILE_NAME} does not match its own hash")
        if body["format"] != FORMAT:
            raise UserError(f"{folder}: format {body['format']} is not known; this version reads {FORMAT}")
        return Manifest(body["step"], body["progress"], body["files"])
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedCheckpoint(f"{FILE_NAME} is missing") from None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedCheckpoint(f"{FILE_NAME} cannot be read") from None


def present_files(folder: Path) -> dict[str, int]:
    """Bytes of each file that the manifest names. Raises DamagedCheckpoint for one that is missing or of other size."""
    files = read_manifest(folder).files
    for name, facts in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            raise DamagedCheckpoint(f"{name} is missing")
        if path.stat().st_size != facts["size"]:
            raise DamagedCheckpoint(f"{name} has {path.stat().st_size} bytes instead of {facts['size']}")
    return {name: facts["size"] for name, facts in files.items()}


def verify(folder: Path, index: int = 0, count: int = 1) -> None:
    """Check every file against the manifest; of `count` ranks, number `index` hashes its share of the files.

    Raises DamagedCheckpoint, naming the file.
    """
    present_files(folder)
    for number, (name, facts) in enumerate(sorted(read_manifest(folder).files.items())):
        if number % count == index and file_facts(folder / name) != facts:
            raise DamagedCheckpoint(f"{name} does not match its hash")


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
