"""A mixture-of-experts layer and its parts, at the shapes of docs/kernels.md.

T tokens, D model width, E experts, F width of an expert, K choices per token, M = T K routed rows.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from framework.bench.kernels import peers
from framework.bench.kernels.case import Arguments, Case, Work
from kernels.moe.experts import expert_ffn
from kernels.moe.router import route
from kernels.moe.rows import TokenRows, gather_rows, rows_of_choices, sum_rows
from kernels.moe.sort import sort_by_expert

BATCH = 8
"""Sequences in a forward."""


@dataclass(frozen=True)
class MoE:
    name: str
    num_tokens: int
    d_model: int
    d_expert: int
    num_experts: int
    top_k: int

    @property
    def num_rows(self) -> int:
        return self.num_tokens * self.top_k

    def __str__(self) -> str:
        return (f"{self.name} T={self.num_tokens} D={self.d_model} F={self.d_expert} E={self.num_experts} "
                f"K={self.top_k}")


SHAPES = (
    MoE("A", 16384, 2048, 1024, 64, 8), MoE("B", 24576, 1536, 256, 128, 8), MoE("C", 32768, 4096, 256, 256, 16),
    MoE("D", 16384, 2048, 128, 512, 32), MoE("E", 16384, 1024, 128, 256, 8),
)
SCORINGS = ("sigmoid", "topk_softmax")
ACTIVATIONS = ("relu", "gelu", "relu2")


def cases() -> list[Case]:
    a, b = SHAPES[:2]
    return [
        *(layer_case(moe) for moe in SHAPES), *(experts_case(moe) for moe in SHAPES),
        *(router_case(moe) for moe in SHAPES), *(sort_case(moe) for moe in SHAPES),
        *(gather_case(moe) for moe in SHAPES), *(sum_case(moe) for moe in SHAPES),
        sum_case(b, weighted=True), *(experts_case(a, activation) for activation in ACTIVATIONS),
        experts_case(b, adds=True), experts_case(b, frozen=True),
        *(router_case(b, scoring, biased=True) for scoring in SCORINGS),
    ]


def router_work(moe: MoE) -> tuple[Work, Work]:
    """Logits read at 4 bytes, chosen experts at 8 and gates at 4 written: 4 T E + 12 M. Backward: logits read, their
    gradients written, gates, their gradients and experts read: 8 T E + 16 M."""
    scores, rows = moe.num_tokens * moe.num_experts, moe.num_rows
    return Work("route", 0, 4 * scores + 12 * rows), Work("route backward", 0, 8 * scores + 16 * rows)


def sort_work(moe: MoE) -> Work:
    """Experts read twice, two orders written, at 8 bytes; a count for each expert of 256 rows written and read twice.
    Far above that stand four launches, each of 3 to 5 microseconds."""
    return Work("sort", 0, 32 * moe.num_rows + 16 * moe.num_experts * moe.num_rows / 256)


def experts_work(moe: MoE) -> tuple[tuple[Work, ...], tuple[Work, ...]]:
    """Kernel by kernel, each matrix once, each gathered row once for each time that it is routed, 2 bytes a number.

    up: 4 M D F operations; 2 M D + 4 E D F + 6 M F bytes. down: 2 M D F; 2 M F + 2 E D F + 2 M D. combine: 2 M D +
    2 T D. Backward, down: 2 M D F; 2 M D + 2 E D F + 10 M F. ddown: 2 M D F; 2 M D + 2 M F + 2 E D F. dx: 4 M D F;
    4 M F + 4 E D F + 2 M D, and combine again. dup: 4 M D F; 2 M D + 4 M F + 4 E D F.
    """
    rows, d_model, d_expert = moe.num_rows, moe.d_model, moe.d_expert
    wide, narrow, matrix = 2 * rows * d_model, 2 * rows * d_expert, 2 * moe.num_experts * d_model * d_expert
    product, combine = 2 * rows * d_model * d_expert, wide + 2 * moe.num_tokens * d_model
    return (
        (Work("up", 2 * product, wide + 2 * matrix + 3 * narrow), Work("down", product, narrow + matrix + wide),
         Work("combine", 0, combine)),
        (Work("down backward", product, wide + matrix + 5 * narrow), Work("ddown", product, wide + narrow + matrix),
         Work("dx", 2 * product, 2 * narrow + 2 * matrix + wide), Work("combine dx", 0, combine),
         Work("dup", 2 * product, wide + 2 * narrow + 2 * matrix)),
    )


def layer_case(moe: MoE) -> Case:
    """From the router's logits to the experts' sum; the router's own product is PyTorch's, and left out."""
    def arguments(device: torch.device, num_tokens: int | None) -> Arguments:
        x_TD, *_, matrices = _tokens(moe, device, num_tokens)
        logits_BSE = torch.randn(BATCH, len(x_TD) // BATCH, moe.num_experts, device=device).requires_grad_()
        return x_TD, logits_BSE, *matrices, moe.top_k

    forward, backward = experts_work(moe)
    route_forward, route_backward = router_work(moe)
    return Case("moe layer", str(moe), arguments, moe_layer, (route_forward, sort_work(moe), *forward),
                (*backward, route_backward), {"permute, grouped_mm": _layer_of_peers})


def experts_case(moe: MoE, activation: str = "swiglu", adds: bool = False, frozen: bool = False) -> Case:
    """adds: gradients of matrices to buffers in float32. frozen: nothing has a gradient, as when a model generates."""
    def arguments(device: torch.device, num_tokens: int | None) -> Arguments:
        x_TD, token_M, gate_M, counts_E, rows, matrices = _tokens(moe, device, num_tokens)
        if activation != "swiglu":
            matrices = (None, *matrices[1:])
        buffers = tuple(torch.zeros_like(matrix, dtype=torch.float32) for matrix in matrices) if adds else None
        if frozen:
            x_TD, gate_M, *matrices = (tensor.detach() for tensor in (x_TD, gate_M, *matrices))
        return x_TD, token_M, gate_M, counts_E, *matrices, activation, rows, buffers

    forward, backward = experts_work(moe)
    plain = activation == "swiglu" and not adds and not frozen
    detail = "" if plain else " float32 gradients" if adds else " frozen" if frozen else f" {activation}"
    return Case("expert_ffn", f"{moe}{detail}", arguments, expert_ffn, forward, () if frozen else backward,
                {"permute, grouped_mm": peers.permute_and_grouped_mm} if plain else {}, timed=plain)


def router_case(moe: MoE, scoring: str = "softmax_topk", biased: bool = False) -> Case:
    def arguments(device: torch.device, num_tokens: int | None) -> Arguments:
        size = (BATCH, (num_tokens or moe.num_tokens) // BATCH, moe.num_experts)
        bias_E = torch.randn(moe.num_experts, device=device) if biased else None
        return torch.randn(size, device=device).requires_grad_(), moe.top_k, scoring, True, bias_E

    forward, backward = router_work(moe)
    return Case("route", f"{moe}{'' if not biased else f' {scoring}, bias'}", arguments, route, (forward,), (backward,),
                {} if biased else {"softmax, topk": peers.unfused_router}, timed=not biased)


def sort_case(moe: MoE) -> Case:
    def arguments(device: torch.device, num_tokens: int | None) -> Arguments:
        num_rows = (num_tokens or moe.num_tokens) * moe.top_k
        return torch.randint(moe.num_experts, (num_rows,), device=device), moe.num_experts

    return Case("sort_by_expert", str(moe), arguments, sort_by_expert, (sort_work(moe),),
                peers={"argsort, bincount": peers.argsort_and_bincount})


def gather_case(moe: MoE) -> Case:
    """Rows read and written: 4 M D bytes. Backward: rows read, tokens written."""
    def arguments(device: torch.device, num_tokens: int | None) -> Arguments:
        x_TD, token_M, _, _, rows, _ = _tokens(moe, device, num_tokens)
        return x_TD, token_M, rows

    wide = 2 * moe.num_rows * moe.d_model
    return Case("gather_rows", str(moe), arguments, gather_rows, (Work("gather", 0, 2 * wide),),
                (Work("sum", 0, wide + 2 * moe.num_tokens * moe.d_model),),
                {"index_select": lambda x_TD, token_M, rows: x_TD.index_select(0, token_M)})


def sum_case(moe: MoE, weighted: bool = False) -> Case:
    """Rows read, tokens written: 2 M D + 2 T D bytes. Backward: rows written, their tokens read for each."""
    def arguments(device: torch.device, num_tokens: int | None) -> Arguments:
        x_TD, token_M, gate_M, _, rows, _ = _tokens(moe, device, num_tokens)
        y_MD = torch.randn(len(token_M), moe.d_model, device=device, dtype=torch.bfloat16).requires_grad_()
        return y_MD, token_M, len(x_TD), rows, gate_M if weighted else None

    def added(y_MD: Tensor, token_M: Tensor, num_tokens: int, rows: TokenRows, weight_M: Tensor | None) -> Tensor:
        y_MD = y_MD if weight_M is None else y_MD * weight_M[:, None]
        return y_MD.new_zeros(num_tokens, y_MD.shape[1]).index_add(0, token_M, y_MD)

    wide = 2 * moe.num_rows * moe.d_model
    return Case("sum_rows", f"{moe}{' weighted' if weighted else ''}", arguments, sum_rows,
                (Work("sum", 0, wide + 2 * moe.num_tokens * moe.d_model),),
                (Work("gather", 0, (3 if weighted else 2) * wide),), {} if weighted else {"index_add": added},
                timed=not weighted)


def moe_layer(
    x_TD: Tensor, logits_BSE: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor, top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """y_TD, and the router's sums that auxiliary losses are made of."""
    routed = route(logits_BSE, top_k, "softmax_topk", True)
    order_M, place_M, counts_E = sort_by_expert(routed.index_BSK.flatten(), logits_BSE.shape[2])
    token_M, gate_M = order_M // top_k, routed.gate_BSK.flatten().index_select(0, order_M)
    y_TD = expert_ffn(x_TD, token_M, gate_M, counts_E, gate_EFD, up_EFD, down_EDF, "swiglu",
                      rows_of_choices(place_M, top_k))
    return y_TD, routed.probability_BE, routed.square_B


def _layer_of_peers(
    x_TD: Tensor, logits_BSE: Tensor, gate_EFD: Tensor, up_EFD: Tensor, down_EDF: Tensor, top_k: int
) -> tuple[Tensor, Tensor, Tensor]:
    index_BSK, gate_BSK, _, probability_BE, square_B = peers.unfused_router(logits_BSE, top_k, "softmax_topk", True)
    order_M, _, counts_E = peers.argsort_and_bincount(index_BSK.flatten(), logits_BSE.shape[2])
    gate_M = gate_BSK.flatten().index_select(0, order_M)
    y_TD = peers.permute_and_grouped_mm(x_TD, order_M // top_k, gate_M, counts_E, gate_EFD, up_EFD, down_EDF)
    return y_TD, probability_BE, square_B


def _tokens(
    moe: MoE, device: torch.device, num_tokens: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, TokenRows, tuple[Tensor, Tensor, Tensor]]:
    """Tokens, evenly routed at random to different experts, and the experts' matrices, gate, up and down."""
    num_tokens = num_tokens or moe.num_tokens
    randn = partial(torch.randn, device=device, dtype=torch.bfloat16)
    scores_TE = torch.rand(num_tokens, moe.num_experts, device=device)
    expert_M = scores_TE.topk(moe.top_k).indices.flatten()
    order_M, place_M, counts_E = sort_by_expert(expert_M, moe.num_experts)
    wide, narrow = (moe.num_experts, moe.d_expert, moe.d_model), (moe.num_experts, moe.d_model, moe.d_expert)
    gate_EFD, up_EFD = (randn(wide).mul_(moe.d_model**-0.5).requires_grad_() for _ in range(2))
    down_EDF = randn(narrow).mul_(moe.d_expert**-0.5).requires_grad_()
    gate_M = torch.rand(len(order_M), device=device).requires_grad_()
    return (randn(num_tokens, moe.d_model).requires_grad_(), order_M // moe.top_k, gate_M, counts_E,
            rows_of_choices(place_M, moe.top_k), (gate_EFD, up_EFD, down_EDF))
