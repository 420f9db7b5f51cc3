"""How it is trained: data, optimizer, training, checkpoints, layout."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from framework.recipe.schema.base import NullEmpties, Section

Beta = Annotated[float, Field(ge=0, lt=1)]
Lengths = Annotated[tuple[PositiveInt, ...], BeforeValidator(lambda value: () if value is None else value)]


def _names(value: Any) -> Any:
    """`a,b` as a list; null empties what a file would inherit."""
    if isinstance(value, str):
        return tuple(name for part in value.split(",") if (name := part.strip()))
    return () if value is None else value


class Data(Section):
    corpus: str | None = Field(
        None, description="python_stdlib, a raw file, folder or glob, a prepared name or folder, or a .bin/.idx prefix"
    )
    blend: Annotated[dict[str, PositiveFloat], NullEmpties] = Field(
        default_factory=dict, description="corpora and their weights"
    )
    tokenizer: str = Field(
        "sentencepiece", description="sentencepiece: trained on the corpus; or a .model or .json file"
    )
    validation_fraction: float = Field(
        0.05, ge=0, le=0.5, description="documents held out: those whose key's md5 is 0 modulo round(1/fraction)"
    )
    seq_len: PositiveInt = Field(1024, description="tokens of one sequence")
    batch_size: PositiveInt = Field(64, description="sequences of one optimizer step, over all ranks")
    micro_batch_size: PositiveInt | None = Field(
        None, description="sequences of one forward on one rank; None: a rank's whole share"
    )
    batch_ramp: Annotated[dict[PositiveInt, PositiveInt], NullEmpties] = Field(
        default_factory=dict, description="{tokens: batch_size}: the size until so many tokens have been seen"
    )
    isolate_documents: bool = Field(False, description="activations never cross the documents packed in a sequence")
    malformed: Literal["skip", "fail"] = Field("fail", description="an unreadable line: report and skip, or stop")


class RelativeLR(Section):
    """Factors on the base learning rate, at its peak and on its final value."""

    start: PositiveFloat = 1.0
    end: PositiveFloat = 1.0


class Optim(Section):
    lr: PositiveFloat = Field(1e-3, description="peak learning rate; auto: from the model's sizes by the joint law")
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: float = Field(0.1, ge=0, description="on matrices; never on norms, biases, A, D")
    clip_norm: PositiveFloat | None = Field(1.0, description="largest norm of the whole gradient; null: off")
    schedule: Literal["cosine", "trapezoid", "constant"] = "cosine"
    warmup_steps: NonNegativeInt = 0
    decay_fraction: float = Field(0.2, ge=0, le=1, description="trapezoid: last share of the steps, in which it falls")
    final_lr_fraction: float = Field(0.1, ge=0, le=1, description="last learning rate / peak")
    relative_lr: Annotated[dict[str, RelativeLR], NullEmpties] = Field(
        default_factory=dict, description="by role or family of roles"
    )


class Init(Section):
    """How matrices start. `fan_in` is the width that a matrix sums over."""

    rule: Literal["truncated_normal", "truncated_normal_fixed", "normal"] = Field(
        "truncated_normal_fixed",
        description="std sqrt(scale/fan_in) cut at +-2*scale; std scale/sqrt(fan_in) cut at 2 std; or normal with std",
    )
    scale: PositiveFloat = 1.0
    std: PositiveFloat = Field(0.02, description="normal: standard deviation")
    scale_residual_outputs: bool = Field(False, description="divide the std of matrices that write to the residual "
                                         "stream by sqrt(number of residual sublayers)")
    relative_std: Annotated[dict[str, NonNegativeFloat], NullEmpties] = Field(
        default_factory=dict, description="factors on the std that the rule gives, by role or family of roles; 0: zeros"
    )


class Parametrization(Section):
    """How initial values and learning rates follow the width: Tensor Programs V, and arXiv 2508.09752 for experts."""

    kind: Literal["standard", "mup", "simple_p"] = Field(
        "standard", description="mup: maximal update, for every role; simple_p: for experts alone"
    )
    base_d_model: PositiveInt | None = Field(None, description="width at which all kinds are one")
    base_model: Annotated[dict[str, Any], NullEmpties] = Field(
        default_factory=dict, description="what else differs in the model of base width, as {moe: {num_experts: 8}}"
    )
    attention_scale: Literal["auto", "inverse", "inverse_sqrt"] = Field(
        "auto", description="q.k over head_dim (alike at base width) or over its root; auto: inverse in mup"
    )
    scale_weight_decay: bool = Field(False, description="learning rate * weight decay as at base width, for every role")
    init: Init = Init()


class Training(Section):
    steps: PositiveInt | None = Field(None, description="optimizer steps")
    tokens: PositiveInt | None = Field(None, description="token budget, instead of steps")
    slides: Lengths = Field(
        (), description="trapezoid: shorter lengths, in tokens or steps as its own; each a decay that branches off"
    )
    seed: NonNegativeInt = 0
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of activations and matrix products")
    eval_every: PositiveInt | None = Field(None, description="steps between evaluations; None: only at the end")
    log_every: PositiveInt = 1
    compile: bool = Field(False, description="torch.compile attention and dense feed-forward blocks")
    recompute: Literal["none", "selective", "full"] = Field(
        "none", description="activations that the backward computes again. full: all but the inputs of sublayers, "
        "about a third more work; selective: all but those and the results of products, attention and exchanges"
    )
    stall_minutes: PositiveFloat | None = Field(30.0, description="no step ends for so long: write stacks and stop")
    max_bad_steps: PositiveInt = Field(10, description="skipped steps in a row with NaN or Inf gradients, then stop")
    profile_steps: tuple[PositiveInt, PositiveInt] | None = Field(None, description="first and last step to trace")
    memory_snapshot: bool = Field(False, description="on CUDA: record allocations, written when the run ends")
    wandb: bool = Field(False, description="metrics to Weights & Biases too (extra wandb; WANDB_MODE=offline works)")

    @property
    def unit(self) -> Literal["steps", "tokens"] | None:
        """What the length is stated in; None without one."""
        return next((unit for unit in ("steps", "tokens") if getattr(self, unit) is not None), None)


class Tasks(Section):
    """Downstream tasks of lm-eval, on the model as it is trained (extra hf)."""

    names: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_names)] = Field(
        (), description="tasks, groups or tags of lm-eval, as a list or joined by commas"
    )
    every: PositiveInt | None = Field(None, description="steps between runs of the tasks; None: only at the end")
    limit: PositiveInt | None = Field(None, description="documents of each task; None: all")
    num_fewshot: NonNegativeInt | None = Field(None, description="examples in a prompt; None: as each task says")
    path: str | None = Field(None, description="folder with further tasks, as lm-eval writes them")


class Checkpoint(Section):
    every: PositiveInt | None = Field(None, description="steps between checkpoints; None: only at the end")
    keep_last: PositiveInt | None = Field(None, description="None: keep all")
    keep_every: PositiveInt | None = Field(None, description="steps whose multiples are kept for ever")
    background: bool = Field(True, description="write while training goes on")


class Parallel(Section):
    """Degrees of each axis; the world is dp_replicate * dp_shard * cp * tp * pp, and ep divides dp_shard * cp * tp."""

    dp_replicate: PositiveInt = Field(1, description="replicas of the whole sharded model")
    dp_shard: PositiveInt = Field(1, description="data-parallel ranks that share one copy of parameters (FSDP)")
    cp: PositiveInt = Field(1, description="context parallelism: ranks that split a sequence")
    tp: PositiveInt = Field(1, description="tensor and sequence parallelism")
    pp: PositiveInt = Field(1, description="ranks that hold consecutive layers, as stages of a pipeline")
    ep: PositiveInt = Field(1, description="ranks over which the experts are spread")
    pp_schedule: Literal["1f1b", "interleaved", "zero_bubble"] = "1f1b"
    pp_stages_per_rank: PositiveInt | None = Field(
        None, description="pipeline stages on a rank; None: 2 if interleaved, else 1"
    )
    engine: Literal["fsdp", "deepspeed"] = "fsdp"
    zero_stage: Literal[1, 2, 3] = 3
    offload: Literal["none", "cpu", "nvme"] = "none"
    dispatch: Literal["auto", "all_to_all", "symmetric_memory"] = Field(
        "auto", description="how tokens reach experts on other ranks: exchanges, or stores into GPUs of one machine; "
        "auto: exchanges"
    )
    dedup_dispatch: bool = Field(False, description="a token crosses to a rank once for all its experts there")
