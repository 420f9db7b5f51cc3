"""The dispatch through symmetric memory: ranks of one machine write tokens straight into each other's GPUs.

Nothing waits on the host. How many rows come a rank learns on its device; its tensors are as long as the most that can.

Shapes: T tokens of this rank, D model width, E experts, L experts of one rank, R ranks, M routed rows of this rank
(sorted by expert), N rows for which this rank has room, V places for tokens of which these are.
"""

import socket
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributed.device_mesh import DeviceMesh

from kernels.backend import runs_triton
from kernels.moe import symmetric
from kernels.moe.peers import Layout, Peers, refuse_capture
from kernels.moe.symmetric import Places
from parallel.collectives import all_max
from parallel.dispatch.rows import Assignment, ExpertFunction

Allocate = Callable[[int, torch.device, dist.ProcessGroup], tuple[Tensor, Tensor]]
"""From a number of bytes, equal on all ranks: memory (uint8, zero), and everyone's addresses (int64, on the device)."""


def allocate_on_gpus(num_bytes: int, device: torch.device, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """PyTorch's symmetric memory. Collective; the ranks' GPUs must reach each other's memory."""
    from torch.distributed import _symmetric_memory

    memory = _symmetric_memory.empty(num_bytes, dtype=torch.uint8, device=device).zero_()
    handle = _symmetric_memory.rendezvous(memory, group)
    # A pool may have placed it within a larger allocation.
    shifts: list[int] = [0] * group.size()
    dist.all_gather_object(shifts, memory.data_ptr() - handle.buffer_ptrs[handle.rank], group)
    addresses = [address + shift for address, shift in zip(handle.buffer_ptrs, shifts, strict=True)]
    torch.cuda.synchronize(device)
    return memory, torch.tensor(addresses, device=device)


class Channel:
    """Memory for layers of one shape, and the number of the turn that its ranks are in."""

    def __init__(self, peers: Peers) -> None:
        self.peers, self.turn = peers, 0

    def next_turn(self) -> int:
        refuse_capture()
        self.turn += 1
        return self.turn


class SymmetricMemory:
    """What the ranks of a mesh show each other, for all layers of a model: layers of one shape use the same memory.

    It is made for as many tokens as come when it is first used, and anew where more come: collectively, so that ranks
    must then bring more than before in the same call, as they do that always have equally many.

    Collective. Raises ValueError where the ranks are not on one machine.
    """

    def __init__(self, mesh: DeviceMesh, allocate: Allocate = allocate_on_gpus) -> None:
        self.group, self.rank, self.num_ranks = mesh.get_group(), mesh.get_local_rank(), mesh.size()
        machines = [""] * self.num_ranks
        dist.all_gather_object(machines, socket.gethostname(), self.group)
        if len(set(machines)) > 1:
            raise ValueError(f"dispatch=symmetric_memory: the {self.num_ranks} ranks of ep are on {len(set(machines))} "
                             "machines; allowed: one, or dispatch=all_to_all")
        self._allocate = allocate
        self._channels: dict[tuple, Channel] = {}
        self._outgrown: list[Channel] = []  # which peers may still be reading

    def channel(self, x_TD: Tensor, num_experts: int, most_choices: int, deduplicate: bool) -> Channel:
        """Memory for tokens like these. Raises ValueError for a dtype other than float32 and bfloat16."""
        if x_TD.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"dispatch through symmetric memory: tokens are {x_TD.dtype}; allowed: float32, bfloat16")
        key = (num_experts, most_choices, deduplicate, x_TD.shape[1], x_TD.dtype)
        found = self._channels.get(key)
        if found is None or len(x_TD) > found.peers.layout.num_tokens:
            if found is not None:
                self._outgrown.append(found)
            found = self._channels[key] = self._open(x_TD, num_experts, most_choices, deduplicate)
        return found

    def _open(self, x_TD: Tensor, num_experts: int, most_choices: int, deduplicate: bool) -> Channel:
        num_tokens = max(1, int(all_max(torch.tensor([len(x_TD)], device=x_TD.device), self.group)))
        layout = Layout(
            self.num_ranks, num_experts, num_tokens, min(most_choices, num_experts // self.num_ranks),
            x_TD.shape[1] * x_TD.element_size(), deduplicate,
        )
        memory, pointers_R = self._allocate(layout.num_bytes, x_TD.device, self.group)
        dist.barrier(self.group)  # everyone's is zero
        return Channel(Peers(memory, pointers_R, self.rank, layout))


class SymmetricMemoryDispatcher:
    """Rank r of the memory's mesh holds the r-th of R equal runs of the experts; a token visits at most most_choices.

    deduplicate: a token crosses to a rank once, however many of its experts live there; otherwise once for each. Gates
    travel with it: a rank's experts weight their outputs, and one row returns for each that crossed. In the backward
    gradients take the same ways, and one number returns for each gate.

    A rank has room for all tokens of all ranks (deduplicated), or for as many rows as these can make, which is R * T *
    min(most_choices, L): what experts get, and keep for the backward, is that long.

    Calling it is collective, for the backward too, and all ranks must call all dispatchers of a memory in one order.
    RuntimeError in a CUDA graph's capture: turns are numbered on the host.
    bytes_sent: int64 tensor on the device, as `bytes_to_others` counts.
    """

    def __init__(self, memory: SymmetricMemory, most_choices: int, deduplicate: bool = False) -> None:
        self.memory, self.most_choices, self.deduplicate = memory, most_choices, deduplicate
        self.bytes_sent: Tensor | int = 0

    def __call__(self, x_TD: Tensor, assignment: Assignment, experts: ExpertFunction) -> Tensor:
        """y_TD in the dtype of x_TD: each token's experts' outputs, weighted by their gates.

        experts: maps x_VD and an assignment of its tokens to this rank's experts to y_VD in the same dtype, the
        weighted sum over each token's rows. Places of x_VD that no row names hold anything. On a GPU token_M and gate_M
        of this assignment are longer than the rows that its counts_E counts. What comes after these means nothing, and
        has no gradient: experts leave it alone, and `rows` names none of it. Where Triton does not work on x_TD, they
        are cut to length, for which the host waits.
        """
        counts_E, num_tokens = assignment.counts_E, len(x_TD)
        assert len(assignment.token_M) <= num_tokens * self.most_choices
        channel = self.memory.channel(x_TD, len(counts_E), self.most_choices, self.deduplicate)
        turn = channel.next_turn()
        symmetric.announce(channel.peers, turn, counts_E)
        places = symmetric.place(channel.peers, turn, counts_E, assignment.token_M, num_tokens, assignment.rows)

        is_cut = not runs_triton("auto", x_TD)
        num_rows = int(places.counts_L.sum()) if is_cut else channel.peers.layout.num_rows
        x_VD, gate_N, token_N, arrived_V = _Send.apply(x_TD, assignment.gate_M, channel, num_rows, *places)
        rows = None if is_cut else symmetric.rows_of_places(token_N, places.counts_L, len(x_VD), self.deduplicate)
        local = type(assignment)(token_M=token_N, gate_M=gate_N, counts_E=places.counts_L, rows=rows)
        self.bytes_sent = self._bytes_sent(x_TD, counts_E, places, arrived_V)
        return _Return.apply(experts(x_VD, local), channel, num_tokens, arrived_V, *places)

    def _bytes_sent(self, x_TD: Tensor, counts_E: Tensor, places: Places, arrived_V: Tensor | None) -> Tensor:
        if self.deduplicate:
            sent, received = places.visited_TR.sum(), arrived_V.sum()
            stay = places.visited_TR[:, self.memory.rank].sum()
        else:
            sent, received = len(places.token_M), places.counts_L.sum()
            stay = counts_E.view(self.memory.num_ranks, -1)[self.memory.rank].sum()
        return (sent + received - 2 * stay) * (x_TD.shape[1] * x_TD.element_size())


class _Send(torch.autograd.Function):
    """Tokens and gates to the experts; their gradients back."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x_TD: Tensor, gate_M: Tensor, channel: Channel, num_rows: int, *places: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        peers, turn, placed = channel.peers, channel.next_turn(), Places(*places)
        symmetric.send(peers, turn, x_TD, placed, gate_M)
        num_places = peers.layout.num_places if peers.layout.deduplicated else num_rows
        x_VD = symmetric.receive(peers, turn, placed.counts_L, None, num_places, x_TD.dtype)
        token_N, gate_N, arrived_V = symmetric.received_rows(peers, turn)
        token_N, gate_N = token_N[:num_rows], gate_N[:num_rows]
        ctx.save_for_backward(arrived_V, *places)
        ctx.mark_non_differentiable(*(tensor for tensor in (token_N, arrived_V) if tensor is not None))
        ctx.channel, ctx.num_tokens, ctx.gate_dtype = channel, len(x_TD), gate_M.dtype
        return x_VD, gate_N, token_N, arrived_V

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dx_VD: Tensor, dgate_N: Tensor, *unused: None) -> tuple[Tensor | None, ...]:
        arrived_V, *places = ctx.saved_tensors
        peers, turn, placed = ctx.channel.peers, ctx.channel.next_turn(), Places(*places)
        symmetric.offer(peers, turn, dx_VD, placed.counts_L, arrived_V, dgate_N.float())
        dx_TD, dgate_M = symmetric.collect(
            peers, turn, placed, ctx.num_tokens, dx_VD.shape[1], dx_VD.dtype, with_numbers=True
        )
        return dx_TD, dgate_M.to(ctx.gate_dtype), None, None, *(None for _ in places)


class _Return(torch.autograd.Function):
    """What experts made of tokens back to these; its gradients to the experts."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, y_VD: Tensor, channel: Channel, num_tokens: int, arrived_V: Tensor | None,
        *places: Tensor | None,
    ) -> Tensor:
        peers, turn, placed = channel.peers, channel.next_turn(), Places(*places)
        symmetric.offer(peers, turn, y_VD, placed.counts_L, arrived_V)
        ctx.save_for_backward(arrived_V, *places)
        ctx.channel, ctx.num_places = channel, len(y_VD)
        return symmetric.collect(peers, turn, placed, num_tokens, y_VD.shape[1], y_VD.dtype)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, dy_TD: Tensor) -> tuple[Tensor | None, ...]:
        arrived_V, *places = ctx.saved_tensors
        peers, turn, placed = ctx.channel.peers, ctx.channel.next_turn(), Places(*places)
        symmetric.send(peers, turn, dy_TD, placed)
        dy_VD = symmetric.receive(peers, turn, placed.counts_L, arrived_V, ctx.num_places, dy_TD.dtype)
        return dy_VD, None, None, None, *(None for _ in places)
