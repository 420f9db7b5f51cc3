"""State-space scans over a sequence in parts: all parts at one time from zero, then the states are handed over.

A part is summed up by the state that it leaves and by what it leaves of a state that enters it; these compose
(https://arxiv.org/abs/2405.21060, section 8.2), so that one all-gather tells every rank the state that enters its part.

Shapes: B batch, S tokens of this rank's part, R ranks, H heads, G groups, P head width, I channels, N state.
"""

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from kernels import selective_scan, ssd
from kernels.ssm.entering_state import selective_response, ssd_response
from parallel.collectives import all_gather
from parallel.context.part import own_part, part_size


def ssd_parts(
    x_BSHP: Tensor, dt_BSH: Tensor, A_H: Tensor, B_BSGN: Tensor, C_BSGN: Tensor, D_H: Tensor, chunk_size: int = 64,
    document_BS: Tensor | None = None, state_BHPN: None = None, *, cp: DeviceMesh,
) -> tuple[Tensor, Tensor]:
    """`kernels.ssd` of this rank's part, and the state after it; document_BS is the whole sequence's, [B, S*cp].

    Each rank sends and keeps cp states [B, H, P, N]. Over a scan the response adds one product with C.
    """
    assert state_BHPN is None, "a sequence in parts starts at its beginning"
    y_BSHP, leaving_BHPN = ssd(x_BSHP, dt_BSH, A_H, B_BSGN, C_BSGN, D_H, chunk_size, own_part(document_BS, cp))
    wide = leaving_BHPN.dtype
    elapsed_BSH, A_H = dt_BSH.to(wide).cumsum(1), A_H.to(wide)
    kept_BH11 = (elapsed_BSH[:, -1] * A_H).exp()[..., None, None]
    entering_BHPN, left_BHPN = pass_states(leaving_BHPN, kept_BH11, document_BS, cp)
    readers_BSGN = _of_first_document(C_BSGN, own_part(document_BS, cp))
    response_BSHP = ssd_response(elapsed_BSH, A_H, readers_BSGN, entering_BHPN)
    return (y_BSHP.to(wide) + response_BSHP).to(y_BSHP.dtype), left_BHPN


def scan_parts(
    x_BSI: Tensor, dt_BSI: Tensor, A_IN: Tensor, B_BSN: Tensor, C_BSN: Tensor, D_I: Tensor, chunk_size: int = 64,
    document_BS: Tensor | None = None, state_BIN: None = None, *, cp: DeviceMesh,
) -> tuple[Tensor, Tensor]:
    """`kernels.selective_scan` of this rank's part, and the state after it; document_BS is the whole sequence's,
    [B, S*cp].

    Each rank sends and keeps cp states and decays [B, I, N]. The response is elementwise work of about half a scan,
    and as the scan holds one chunk's states at a time.
    """
    assert state_BIN is None, "a sequence in parts starts at its beginning"
    y_BSI, leaving_BIN = selective_scan(x_BSI, dt_BSI, A_IN, B_BSN, C_BSN, D_I, chunk_size, own_part(document_BS, cp))
    wide = leaving_BIN.dtype
    elapsed_BSI, A_IN = dt_BSI.to(wide).cumsum(1), A_IN.to(wide)
    kept_BIN = (elapsed_BSI[:, -1, :, None] * A_IN).exp()
    entering_BIN, left_BIN = pass_states(leaving_BIN, kept_BIN, document_BS, cp)
    readers_BSN = _of_first_document(C_BSN, own_part(document_BS, cp))
    response_BSI = selective_response(elapsed_BSI, A_IN, readers_BSN, entering_BIN, chunk_size)
    return (y_BSI.to(wide) + response_BSI).to(y_BSI.dtype), left_BIN


def pass_states(
    leaving_B: Tensor, kept_B: Tensor, document_BS: Tensor | None, cp: DeviceMesh
) -> tuple[Tensor, Tensor]:
    """The state that enters this rank's part, and the one that leaves it then: h_in[0] = 0, h_in[r+1] = leaving[r] +
    kept[r] h_in[r], zero where rank r+1 starts with another document.

    leaving_B: [B, ...], of this rank's part started from zero. kept_B: the factor on an entering state over the part,
    as if it were of one document; of the same dims, of size 1 where it broadcasts. document_BS: of the whole sequence.
    """
    num_ranks, rank = cp.size(), cp.get_local_rank()
    size = 0 if document_BS is None else part_size(document_BS.shape[1], cp)
    kept_B = _keep_within_document(kept_B, document_BS, rank * size, (rank + 1) * size - 1)
    summary_1BX = torch.cat([leaving_B.flatten(1), kept_B.flatten(1)], dim=1)[None]
    summary_RBX = all_gather(summary_1BX, 0, cp.get_group())
    leaving_RBX, kept_RBX = summary_RBX.split([leaving_B[0].numel(), kept_B[0].numel()], dim=2)
    # Every rank computes all states: one that left out a part would not take part in the gathering's backward.
    entering = [torch.zeros_like(leaving_B)]
    for before in range(num_ranks - 1):
        left_B = leaving_RBX[before].view_as(leaving_B) + kept_RBX[before].view_as(kept_B) * entering[-1]
        border = (before + 1) * size
        entering.append(_keep_within_document(left_B, document_BS, border - 1, border))
    entering_B = torch.stack(entering)[rank]
    return entering_B, leaving_B + kept_B * entering_B


def _keep_within_document(x_B: Tensor, document_BS: Tensor | None, place: int, other: int) -> Tensor:
    """x where the tokens at two places are of one document, zero elsewhere."""
    if document_BS is None:
        return x_B
    same_B = document_BS[:, place] == document_BS[:, other]
    return torch.where(same_B.view(-1, *[1] * (x_B.dim() - 1)), x_B, 0.0)


def _of_first_document(C_BS: Tensor, document_BS: Tensor | None) -> Tensor:
    """C of the tokens that an entering state reaches, zero for those after the first start of a document."""
    if document_BS is None:
        return C_BS
    first_BS = document_BS == document_BS[:, :1]
    return torch.where(first_BS.view(*first_BS.shape, *[1] * (C_BS.dim() - 2)), C_BS, 0.0)
