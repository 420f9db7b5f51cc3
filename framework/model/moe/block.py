"""The block of the pattern's letter E.

B batch, S sequence, D model width, T = B * S tokens, E experts.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from framework.model.context import Context
from framework.model.ffn import FFN, FFNRoles
from framework.model.linear import Linear
from framework.model.moe.balance import AttachLoss, load_balance_loss, z_loss
from framework.model.moe.dispatch import Dispatcher, LocalDispatcher
from framework.model.moe.experts import Experts
from framework.model.moe.parts import TokenParts
from framework.model.moe.router import Router
from framework.model.moe.routing import Routing, experts_choose, tokens_choose
from framework.model.moe.statistics import RoutingStatistics
from framework.model.norm import LayerNorm
from framework.parametrization.roles import Role

if TYPE_CHECKING:
    from framework.recipe.schema import MoE

SHARED_ROLES = FFNRoles(Role.SHARED_EXPERT_GATE, Role.SHARED_EXPERT_UP, Role.SHARED_EXPERT_DOWN)


class MixtureOfExperts(nn.Module):
    """Sparse feed-forward layer (https://arxiv.org/abs/1701.06538); `settings` is a recipe's MoE section, filled.

    1. `router` gives each token logits over experts; `routing.py` makes an assignment of them.
    2. `dispatcher` carries tokens to `experts` and sums their outputs, weighted by gates.
    3. `shared` experts, gated by `shared_router` if there is one, are added; `output_norm` closes.
    4. In training the auxiliary losses are attached to the output.

    Parallelism from outside replaces `dispatcher`, and `token_parts`: how those of a forward lie on ranks.
    """

    def __init__(self, d_model: int, settings: "MoE", norm_eps: float) -> None:
        super().__init__()
        self.settings = settings
        self.router = Router(d_model, settings.num_experts, settings.selection_bias_rate > 0)
        self.experts = Experts(d_model, settings.num_experts, settings.d_expert, settings.activation)
        self.shared = self._shared_experts(d_model)
        self.shared_router = Linear(d_model, 1, Role.SHARED_EXPERT_ROUTER) if settings.shared_expert_router else None
        self.output_norm = LayerNorm(d_model, norm_eps) if settings.output_norm else None
        self.dispatcher: Dispatcher = LocalDispatcher()
        self.token_parts = TokenParts()
        self.statistics = RoutingStatistics()

    def forward(self, x_BSD: Tensor, context: Context, cache: None = None) -> Tensor:
        """x: any float dtype [B, S, D] -> the same shape and dtype."""
        logits_BSE = self.router(x_BSD)
        routing = self._route(logits_BSE)
        y_TD = self.dispatcher(x_BSD.flatten(0, 1), routing.assignment, self.experts)
        y_BSD = y_TD.view_as(x_BSD)
        if self.shared is not None:
            y_BSD = y_BSD + self._shared_output(x_BSD)
        if self.output_norm is not None:
            y_BSD = self.output_norm(y_BSD)

        balance, z = self._auxiliary_losses(logits_BSE, routing, context)
        self.statistics.add(tokens_per_expert_E=routing.rows_BE.sum(0), dropped=routing.num_dropped,
                            load_balance_loss=balance, z_loss=z,
                            dispatch_bytes=torch.as_tensor(self.dispatcher.bytes_sent, dtype=torch.float64))
        return AttachLoss.apply(y_BSD, balance + z) if self.training else y_BSD

    def new_cache(self, *_) -> None:
        """Nothing is remembered between tokens."""

    def take_statistics(self) -> dict[str, Tensor]:
        """This rank's sums over forwards since the last call; empty where there were none.

        `tokens_per_expert_E`: int64, rows routed to each expert, before dropping. `dropped`: int64, rows. Floats
        `load_balance_loss`, `z_loss`: shares of the training loss, weights included. `dispatch_bytes`: float64, what
        forwards sent to other ranks' experts and back, as the dispatcher counts.
        """
        return self.statistics.take()

    @torch.no_grad()
    def update_selection_bias(self, tokens_per_expert_E: Tensor) -> None:
        """Loss-free balancing (https://arxiv.org/abs/2408.15664, Algorithm 1), given a step's counts over all ranks.

        The bias of experts below the mean rises by selection_bias_rate, that of experts above falls by it.
        """
        bias_E = self.router.selection_bias_E
        if bias_E is not None:
            counts_E = tokens_per_expert_E.to(bias_E.device, torch.float64)
            bias_E += self.settings.selection_bias_rate * (counts_E.mean() - counts_E).sign().to(bias_E.dtype)

    def _route(self, logits_BSE: Tensor) -> Routing:
        settings = self.settings
        if settings.router == "expert_choice":
            return experts_choose(logits_BSE, settings, self.token_parts)
        drop = settings.capacity_factor is not None and (self.training or settings.capacity_in_evaluation)
        return tokens_choose(logits_BSE, self.router.selection_bias_E, settings, drop, self.token_parts)

    def _auxiliary_losses(self, logits_BSE: Tensor, routing: Routing, context: Context) -> tuple[Tensor, Tensor]:
        """Weighted load-balance and z loss: means over sequences of the whole step, of which these are shares.

        Loads over a forward are the same for all its sequences. Each sequence enters with its own probabilities, so
        that forwards of unequal size are weighted by their sequences.
        """
        settings = self.settings
        balance = z = logits_BSE.new_zeros(())
        if not self.training or not (settings.load_balance_weight or settings.z_loss_weight):
            return balance, z
        seq_len = logits_BSE.shape[1] * self.token_parts.sequence.count
        if settings.load_balance_weight:
            if settings.load_balance_over == "sequence":
                rows = self.token_parts.sequence.sum(routing.rows_BE)
            else:
                rows = self.token_parts.forward.sum(routing.rows_BE.sum(0, keepdim=True))
            balance = load_balance_loss(routing.probability_BE, rows, seq_len)
        if settings.z_loss_weight:
            z = z_loss(routing.square_B, seq_len)
        return (
            balance * (settings.load_balance_weight / context.num_sequences),
            z * (settings.z_loss_weight / context.num_sequences),
        )

    def _shared_experts(self, d_model: int) -> FFN | None:
        settings = self.settings
        if settings.num_shared_experts == 0:
            return None
        return FFN(d_model, settings.num_shared_experts * settings.d_expert, settings.activation, SHARED_ROLES)

    def _shared_output(self, x_BSD: Tensor) -> Tensor:
        shared_BSD = self.shared(x_BSD)
        return shared_BSD if self.shared_router is None else shared_BSD * self.shared_router(x_BSD).sigmoid()
