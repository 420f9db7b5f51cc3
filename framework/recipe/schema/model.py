"""What is trained: the pattern of sublayers and the sizes of each kind of sublayer.

Fields left at None are derived (see `framework.recipe.sizes`); `upmix show` prints the derived value.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt

from framework.recipe.schema.base import NullEmpties, Section

Letter = Annotated[str, Field(min_length=1, max_length=1)]
Activation = Literal["swiglu", "gelu", "relu", "relu2"]
Router = Literal["softmax_topk", "topk_softmax", "sigmoid", "expert_choice"]


def _qk_norm(value: Any) -> Any:
    if value is True:
        return "head"
    return "none" if value is False or value is None else value


class RopeScaling(Section):
    """Llama 3's frequency scaling of rotary embeddings."""

    factor: PositiveFloat = Field(8.0, description="how much longer than the original context")
    low_frequency_factor: PositiveFloat = 1.0
    high_frequency_factor: PositiveFloat = 4.0
    original_seq_len: PositiveInt = 8192


class Attention(Section):
    """`*`: causal grouped-query attention."""

    num_heads: PositiveInt = 8
    num_kv_heads: PositiveInt | None = Field(None, description="None: as many as num_heads")
    head_dim: PositiveInt | None = Field(None, description="None: d_model / num_heads")
    qk_norm: Annotated[Literal["none", "head", "full"], BeforeValidator(_qk_norm)] = Field(
        "none", description="RMSNorm of queries and keys, per head or over the full width; true means head"
    )
    qkv_bias: bool = False
    rope: bool = Field(True, description="rotary positions; false: no positions at all")
    rope_base: PositiveFloat = 10000.0
    rope_fraction: float = Field(1.0, gt=0, le=1, description="share of head_dim that is rotated")
    rope_scaling: RopeScaling | None = None
    window: PositiveInt | None = Field(None, description="tokens that a query sees, itself included; None: all")


class FFN(Section):
    """`-`: dense feed-forward; also the reference FFN that experts are a fraction of."""

    d_ff: PositiveInt | None = Field(None, description="None: multiplier * d_model")
    multiplier: PositiveFloat | None = Field(None, le=1e6, description="d_ff / d_model; None: 4, unless d_ff is given")
    activation: Activation = "swiglu"


class MoE(Section):
    """`E`: mixture of experts. Sizes by expansion rate and granularity, or explicitly."""

    expansion_rate: PositiveInt | None = Field(None, description="E: expert parameters / those of the dense FFN")
    granularity: PositiveInt | None = Field(None, description="G: d_ff / d_expert")
    num_experts: PositiveInt | None = Field(None, description="None: expansion_rate * granularity")
    top_k: PositiveInt | None = Field(None, description="experts a token visits; None: granularity")
    d_expert: PositiveInt | None = Field(None, description="width of one expert; None: d_ff / granularity")
    activation: Activation = "swiglu"
    router: Router = Field(
        "softmax_topk",
        description="softmax over all experts, then top-k; top-k, then softmax over the chosen; sigmoid; "
        "or experts choose tokens",
    )
    normalize_top_k: bool = Field(True, description="gates of a token's chosen experts sum to one")
    gate_scale: PositiveFloat = Field(1.0, description="factor on the gates after normalisation")
    selection_bias_rate: float = Field(
        0.0, ge=0, description="loss-free balancing: step of the per-expert bias that only selection sees; 0: off"
    )
    capacity_factor: PositiveFloat | None = Field(
        None, description="rows an expert takes, over the mean; the rest is dropped. None: dropless (experts choose: 1)"
    )
    capacity_in_evaluation: bool = Field(False, description="drop in evaluation too")
    choice_group: Literal["sequence", "position"] = Field(
        "sequence", description="expert choice: among the tokens of a sequence, or those at one position of the batch"
    )
    load_balance_weight: float = Field(0.0, ge=0)
    load_balance_over: Literal["sequence", "forward"] = Field(
        "sequence", description="tokens whose loads are balanced: each sequence, or one forward of all ranks"
    )
    z_loss_weight: float = Field(0.0, ge=0)
    num_shared_experts: int = Field(0, ge=0, description="experts every token visits, each d_expert wide")
    shared_expert_router: bool = Field(False, description="a sigmoid gate on the shared experts' output")
    output_norm: bool = Field(False, description="LayerNorm on the layer's output, as the fine-grained law's runs had")


class Mamba(Section):
    """`m` Mamba-1 and `M` Mamba-2."""

    d_state: PositiveInt | None = Field(None, description="None: 16 for Mamba-1, 128 for Mamba-2")
    d_conv: int = Field(4, ge=1, le=8)
    expand: PositiveFloat = Field(2.0, le=1e6, description="d_inner / d_model")
    head_dim: PositiveInt = Field(64, description="Mamba-2: width of a head")
    num_groups: PositiveInt = Field(1, description="Mamba-2: groups of heads that share B and C")
    chunk_size: PositiveInt = Field(64, description="tokens of one chunk of the scan; changes speed only")
    dt_rank: PositiveInt | None = Field(None, description="Mamba-1: None: ceil(d_model / 16)")
    inner_norms: bool = Field(False, description="Mamba-1: RMSNorm on dt, B and C, as Jamba has")


class Multipliers(Section):
    """Scalars on activations; all neutral by default."""

    embedding: float = Field(1.0, description="factor on the token embeddings")
    attention: PositiveFloat | None = Field(None, description="factor on q.k; None: head_dim ** -0.5")
    residual: float = Field(1.0, description="factor on what a sublayer adds to the residual stream")
    logits: float = Field(1.0, description="factor on the logits")


class SublayerVariant(Section):
    """A further letter of the pattern: a kind and the fields in which it differs from the model's section."""

    model_config = {**Section.model_config, "extra": "allow"}

    kind: Literal["attention", "ffn", "moe", "mamba1", "mamba2"]


class Model(Section):
    """A language model: embedding, a pattern of pre-norm residual sublayers, final norm, unembedding."""

    pattern: str = Field(description="letters * - E m M, (...)xN repeats, [...] branches under one residual")
    d_model: PositiveInt
    vocab_size: PositiveInt
    tie_embeddings: bool = False
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: PositiveFloat = 1e-5
    attention: Attention = Attention()
    ffn: FFN = FFN()
    moe: MoE = MoE()
    mamba: Mamba = Mamba()
    multipliers: Multipliers = Multipliers()
    sublayers: Annotated[dict[Letter, SublayerVariant], NullEmpties] = Field(
        default_factory=dict, description="further letters, for example {W: {kind: attention, window: 1024}}"
    )
