"""GPUs by the data sheets of their maker, and how many of them a cluster is."""

from __future__ import annotations

import re
from dataclasses import dataclass

from framework.errors import UserError


@dataclass(frozen=True)
class Machine:
    """A GPU and what joins it to others; rates are a second's, of one direction.

    memory: bytes. flops: dense products of bfloat16. flops_float32: of float32, without tensor cores. bandwidth: of
    memory, bytes. nvlink: bytes to other GPUs of the node. network: bytes to other nodes. node: GPUs of a node.
    """

    name: str
    memory: float
    flops: float
    flops_float32: float
    bandwidth: float
    nvlink: float
    network: float
    node: int


MACHINES = {
    machine.name: machine for machine in (
        Machine("a100", 80e9, 312e12, 19.5e12, 2.039e12, 300e9, 25e9, 8),
        Machine("h100", 80e9, 989e12, 67e12, 3.35e12, 450e9, 50e9, 8),
        Machine("h200", 141e9, 989e12, 67e12, 4.8e12, 450e9, 50e9, 8),
        Machine("gh200", 96e9, 990e12, 67e12, 4.0e12, 450e9, 25e9, 4),
        Machine("b200", 180e9, 2250e12, 75e12, 7.7e12, 900e9, 50e9, 8),
    )
}
"""By NVIDIA's data sheets, recalled [R] and not fetched for this table: A100 80GB SXM (2021), H100 SXM (2023), H200 SXM
(2023), GH200 Grace Hopper with 96 GB of HBM3 (2023), and HGX B200 (2024; an eighth of 36 PFLOP/s with sparsity, 62 TB/s
and 1.44 TB). Derived [D]: where a sheet gives a rate with sparsity, half of it stands here; where it gives NVLink in
both directions together (600, 900, 900, 900 and 1800 GB/s), half of that.

Assumed, as it is the cluster's and not the GPU's: nodes of 8 (as DGX), or of 4 for gh200; a network card for each GPU,
of 200 Gbit/s for a100 (as DGX A100) and gh200, of 400 Gbit/s for the others (as DGX H100); and that the GPUs of a node
of gh200 reach each other at NVLink's full rate.
"""


@dataclass(frozen=True)
class Cluster:
    """So many GPUs of one kind."""

    num_gpus: int
    machine: Machine

    @property
    def name(self) -> str:
        return f"{self.num_gpus}x{self.machine.name}"


def read_cluster(text: str) -> Cluster:
    """From NxMACHINE, as 64xh100. Raises UserError."""
    match = re.fullmatch(r"(\d{1,7})x([a-z0-9]+)", text)
    if match is None or match[2] not in MACHINES or int(match[1]) == 0:
        raise UserError(f"--on {text!r}: no such cluster; allowed: a number, x and one of {', '.join(MACHINES)}, as in "
                        "64xh100")
    return Cluster(int(match[1]), MACHINES[match[2]])
