"""What the assembler made of a kernel, read with the tools that Triton brings along."""

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
WIDTHS = {"128": 128, "64": 64, "U16": 16, "S16": 16, "U8": 8, "S8": 8}


class MachineCode(NamedTuple):
    """Of one thread: registers and spill_bytes, its stack. Of the code: tensor_core_instructions, those of a warpgroup
    (HGMMA), and how many loads from and stores to global memory there are of each width in bits."""

    registers: int
    spill_bytes: int
    tensor_core_instructions: int
    loads: Counter[int]
    stores: Counter[int]


def read(cubin: bytes) -> MachineCode:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        assembly = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, f"cuobjdump says nothing of registers: {usage[:200]}"
    code = parse(assembly)
    return code._replace(registers=int(found[1]), spill_bytes=int(found[2]))


def parse(assembly: str) -> MachineCode:
    """What stands in the instructions alone; registers and stack are left at 0."""
    instructions = [instruction.split(".") for instruction in INSTRUCTION.findall(assembly)]
    loads = Counter(_bits(parts) for parts in instructions if parts[0] in ("LDG", "LD", "LDGSTS", "UTMALDG"))
    stores = Counter(_bits(parts) for parts in instructions if parts[0] in ("STG", "ST", "UTMASTG"))
    return MachineCode(0, 0, sum(parts[0] == "HGMMA" for parts in instructions), loads, stores)


def _bits(parts: list[str]) -> int:
    """Of a thread's access; blocks moved by the tensor memory accelerator count as the widest."""
    if parts[0].startswith("UTMA"):
        return 128
    return next((WIDTHS[part] for part in parts[1:] if part in WIDTHS), 32)


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], check=True, capture_output=True, text=True).stdout
