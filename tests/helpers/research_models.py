"""Small models as the research code of llm-random and nano names and computes them, written plainly as an oracle.

Whoever reads them must find the same logits. D model width, F FFN width, E experts, V vocabulary.
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCAB, WIDTH, HEADS, HEAD_DIM, INNER, EXPERTS, LENGTH = 61, 32, 4, 8, 48, 6, 24


def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


class OwnRMSNorm(nn.Module):
    """llm-random's, with a gain and a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.g, self.b = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.g + self.b


NORMS = {
    "layernorm": lambda: nn.LayerNorm(WIDTH),
    "layernorm without biases": lambda: nn.LayerNorm(WIDTH, bias=False),
    "rmsnorm": lambda: nn.RMSNorm(WIDTH),
    "own rmsnorm": OwnRMSNorm,
}


class Rope(nn.Module):
    """Feature n of a head turns with feature n + P / 2. scaling: by 32, as in nano's Llama."""

    def __init__(self, base: float, scaled: bool, stored: bool) -> None:
        super().__init__()
        turns = torch.tensor([base ** (-2 * n / HEAD_DIM) for n in range(HEAD_DIM // 2)])
        if scaled:
            turns = torch.tensor([self.scaled(float(each)) for each in turns])
        angles = torch.arange(LENGTH)[:, None] * torch.cat([turns, turns])
        self.register_buffer("sin", angles.sin(), persistent=stored)
        self.register_buffer("cos", angles.cos(), persistent=stored)

    @staticmethod
    def scaled(turn: float) -> float:
        wavelength = 2 * math.pi / turn
        if wavelength < 8192 / 4:
            return turn
        if wavelength > 8192:
            return turn / 32
        share = (8192 / wavelength - 1) / 3
        return (1 - share) * turn / 32 + share * turn

    def forward(self, x_BHSP: Tensor) -> Tensor:
        left, right = x_BHSP.chunk(2, -1)
        length = x_BHSP.shape[2]
        return x_BHSP * self.cos[:length] + torch.cat([-right, left], -1) * self.sin[:length]


def attend(q_BHSP: Tensor, k_BHSP: Tensor, v_BHSP: Tensor) -> Tensor:
    """Causal; the heads side by side."""
    length = q_BHSP.shape[2]
    scores = q_BHSP @ k_BHSP.transpose(-1, -2) / math.sqrt(HEAD_DIM)
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    return (scores.softmax(-1) @ v_BHSP).transpose(1, 2).flatten(2)


class LizrdAttention(nn.Module):
    """Queries, keys and values of a head next to each other. apart: of three matrices, stacked first."""

    def __init__(self, apart: bool, rope: bool) -> None:
        super().__init__()
        if apart:
            self.input_projection_q, self.input_projection_k, self.input_projection_v = (
                linear(WIDTH, HEADS * HEAD_DIM) for _ in range(3))
        else:
            self.input_projection = linear(WIDTH, 3 * HEADS * HEAD_DIM)
        self.output_projection = linear(HEADS * HEAD_DIM, WIDTH)
        self.rope = Rope(10000.0, False, True) if rope else nn.Identity()

    def forward(self, x_BSD: Tensor) -> Tensor:
        if hasattr(self, "input_projection"):
            projected = self.input_projection(x_BSD)
        else:
            projected = torch.cat([getattr(self, f"input_projection_{each}")(x_BSD) for each in "qkv"], -1)
        projected = projected.view(*x_BSD.shape[:2], HEADS, 3 * HEAD_DIM).transpose(1, 2)
        q, k, v = projected.chunk(3, -1)
        return self.output_projection(attend(self.rope(q), self.rope(k), v))


def lizrd_dense(bias: bool) -> nn.Module:
    return nn.Sequential(OrderedDict(
        logging_ff_pre_relu=linear(WIDTH, INNER, bias), relu=nn.ReLU(),
        logging_ff_post_relu=linear(INNER, WIDTH, bias)))


class LizrdSwiGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1_gate, self.w2 = linear(WIDTH, 2 * INNER), linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.w1_gate(x).split(INNER, -1)
        return self.w2(F.silu(first) * second)


class LizrdExperts(nn.Module):
    """Token choice. kind: relu, gated, swi_glu, or direct, which has its matrices in the layer itself."""

    def __init__(self, kind: str, top_k: int) -> None:
        super().__init__()
        self.kind, self.top_k = kind, top_k
        self.router = nn.Module()
        self.router.gate = nn.Parameter(torch.zeros(WIDTH, EXPERTS))
        owner = self if kind == "direct" else nn.Module()
        names = {"gated": ["gate_weight"], "swi_glu": ["swi_glu_gate_weight"]}.get(kind, [])
        for name in ["lin1_weight", *names]:
            setattr(owner, name, nn.Parameter(torch.zeros(EXPERTS, WIDTH, INNER)))
        owner.lin2_weight = nn.Parameter(torch.zeros(EXPERTS, INNER, WIDTH))
        if owner is not self:
            self.expert_inner_function = owner

    def forward(self, x_BSD: Tensor) -> Tensor:
        owner = self if self.kind == "direct" else self.expert_inner_function
        probabilities = (x_BSD @ self.router.gate).softmax(-1)
        kept = torch.zeros_like(probabilities)
        best = probabilities.topk(self.top_k, -1).indices
        kept.scatter_(-1, best, probabilities.gather(-1, best))
        y_BSD = torch.zeros_like(x_BSD)
        for expert in range(EXPERTS):
            hidden = x_BSD @ owner.lin1_weight[expert]
            if self.kind == "gated":
                hidden = F.silu(x_BSD @ owner.gate_weight[expert]) * hidden
            elif self.kind == "swi_glu":
                hidden = F.silu(hidden) * (x_BSD @ owner.swi_glu_gate_weight[expert])
            else:
                hidden = hidden.relu()
            y_BSD = y_BSD + kept[..., expert, None] * (hidden @ owner.lin2_weight[expert])
        return y_BSD


class MambaSSM(nn.Module):
    """mamba_ssm's Mamba, one token after the other."""

    def __init__(self, inner: int = 64, state: int = 6, rank: int = 3) -> None:
        super().__init__()
        self.rank, self.state = rank, state
        self.in_proj = linear(WIDTH, 2 * inner)
        self.conv1d = nn.Conv1d(inner, inner, 4, groups=inner, padding=3)
        self.x_proj = linear(inner, rank + 2 * state)
        self.dt_proj = linear(rank, inner, bias=True)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = linear(inner, WIDTH)

    def forward(self, x_BSD: Tensor) -> Tensor:
        x, z = self.in_proj(x_BSD).chunk(2, -1)
        x = F.silu(self.conv1d(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        low, B, C = self.x_proj(x).split([self.rank, self.state, self.state], -1)
        dt = F.softplus(self.dt_proj(low))
        hidden, outputs = torch.zeros(len(x), x.shape[2], self.state), []
        for token in range(x.shape[1]):
            decay = (dt[:, token, :, None] * -self.A_log.exp()).exp()
            hidden = decay * hidden + (dt[:, token] * x[:, token])[..., None] * B[:, token, None]
            outputs.append((hidden * C[:, token, None]).sum(-1) + self.D * x[:, token])
        return self.out_proj(torch.stack(outputs, 1) * F.silu(z))


class Residual(nn.Module):
    def __init__(self, name: str, norm: nn.Module, body: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Sequential(OrderedDict([("pre_norm", norm), (name, body)]))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


class Lizrd(nn.Module):
    """blocks: of each, the names of its sublayers and what they are."""

    def __init__(self, norm: str, blocks: list[dict[str, nn.Module]]) -> None:
        super().__init__()
        self.embedding_layer = nn.Module()
        self.embedding_layer.layers = nn.ModuleList([nn.Embedding(VOCAB, WIDTH)])
        self.encoder = nn.Module()
        self.encoder.blocks = nn.Sequential(OrderedDict(
            (f"block_{index}", nn.Sequential(OrderedDict(block=nn.Sequential(OrderedDict(
                (f"residual_{name}", Residual(name, NORMS[norm](), body)) for name, body in sublayers.items())))))
            for index, sublayers in enumerate(blocks)))
        self.head = nn.Sequential(OrderedDict(unembedding=nn.Sequential(OrderedDict(
            head_norm=NORMS[norm](), head=linear(WIDTH, VOCAB)))))

    def forward(self, tokens_BS: Tensor) -> Tensor:
        return self.head(self.encoder.blocks(self.embedding_layer.layers[0](tokens_BS)))


class NanoAttention(nn.Module):
    def __init__(self, kv_heads: int, base: float, scaled: bool, stored: bool) -> None:
        super().__init__()
        self.q_proj, self.o_proj = linear(WIDTH, HEADS * HEAD_DIM), linear(HEADS * HEAD_DIM, WIDTH)
        self.k_proj, self.v_proj = linear(WIDTH, kv_heads * HEAD_DIM), linear(WIDTH, kv_heads * HEAD_DIM)
        self.rope = Rope(base, scaled, stored)

    def forward(self, x_BSD: Tensor) -> Tensor:
        q, k, v = (each(x_BSD).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
                   for each in (self.q_proj, self.k_proj, self.v_proj))
        times = HEADS // k.shape[1]
        k, v = (each.repeat_interleave(times, 1) for each in (self.rope(k), v))
        return self.o_proj(attend(self.rope(q), k, v))


class NanoDense(nn.Module):
    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.ff_pre_act, self.ff_post_act = linear(WIDTH, INNER), linear(INNER, WIDTH)
        if gated:
            self.gate = linear(WIDTH, INNER)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.ff_pre_act(x)
        return self.ff_post_act(hidden * F.silu(self.gate(x)) if hasattr(self, "gate") else hidden.relu())


class NanoExperts(nn.Module):
    """Softmax, the best of it made to sum to one, no token dropped."""

    def __init__(self, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.router_weight = nn.Parameter(torch.zeros(EXPERTS, WIDTH))
        self.ff_pre_act_weight = nn.Parameter(torch.zeros(EXPERTS, INNER, WIDTH))
        self.gate_weight = nn.Parameter(torch.zeros(EXPERTS, INNER, WIDTH))
        self.ff_post_act_weight = nn.Parameter(torch.zeros(EXPERTS, WIDTH, INNER))

    def forward(self, x_BSD: Tensor) -> Tensor:
        best, index = (x_BSD @ self.router_weight.T).softmax(-1).topk(self.top_k, -1)
        best = best / best.sum(-1, keepdim=True)
        gates = torch.zeros(*x_BSD.shape[:2], EXPERTS).scatter(-1, index, best)
        outputs = [(x_BSD @ up.T * F.silu(x_BSD @ gate.T)) @ down.T for up, gate, down in zip(
            self.ff_pre_act_weight, self.gate_weight, self.ff_post_act_weight, strict=True)]
        return sum(gates[..., expert, None] * output for expert, output in enumerate(outputs))


class NanoResidual(nn.Module):
    def __init__(self, norm: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.norm, self.layer = norm, layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(self.norm(x))


class Nano(nn.Module):
    """blocks: of each, attention and feed-forward layer. nested: the older name of the embedding."""

    def __init__(self, norm: str, blocks: list[tuple[nn.Module, nn.Module]], nested: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Module()
        self.embedding.embedding = nn.Embedding(VOCAB, WIDTH)
        if nested:
            inner, self.embedding.embedding = self.embedding.embedding, nn.Module()
            self.embedding.embedding.embedding = inner
        self.nested = nested
        self.encoder = nn.Module()
        self.encoder.blocks = nn.ModuleList(nn.Sequential(OrderedDict(
            attention_layer=NanoResidual(NORMS[norm](), attention), ff_layer=NanoResidual(NORMS[norm](), layer)))
            for attention, layer in blocks)
        self.head = nn.Sequential(OrderedDict(norm=NORMS[norm](), linear=linear(WIDTH, VOCAB)))

    def forward(self, tokens_BS: Tensor) -> Tensor:
        x = (self.embedding.embedding.embedding if self.nested else self.embedding.embedding)(tokens_BS)
        for block in self.encoder.blocks:
            x = block(x)
        return self.head(x)
