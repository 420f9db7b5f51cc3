"""The rule that shrinks a recipe until every layout of it runs in seconds.

Kept is what decides which code runs: sublayers and their order, routers, capacity, norms, biases, ties, multipliers,
auxiliary losses, initial values, clipping, decay, recomputation. Sizes are cut to the fixed ones below, and to
powers of two, so that up to eight ranks divide them.
"""

from __future__ import annotations

from framework.equivalence.layouts import Layout
from framework.equivalence.period import shorten_layers
from framework.errors import UserError
from framework.recipe import Architecture, Loaded, Origin, RecipeError, architecture
from framework.recipe.check import check
from framework.recipe.derive import section_of
from framework.recipe.schema import (
    FFN,
    Attention,
    Data,
    Mamba,
    Model,
    MoE,
    Optim,
    Parametrization,
    Recipe,
    Section,
    Training,
)
from framework.recipe.schema.model import SublayerVariant
from framework.recipe.stages import num_stages

D_MODEL, D_FF, NUM_HEADS = 64, 128, 8
NUM_EXPERTS, D_EXPERT, MAX_TOP_K, MAX_SHARED_EXPERTS = 8, 32, 4, 2
D_STATE, SSM_HEAD_DIM, CHUNK_SIZE, DT_RANK = 16, 16, 16, 4
SEQ_LEN, VOCAB_SIZE, BATCH_SIZE, NUM_STEPS = 64, 256, 8, 6
LEARNING_RATE = 3e-3
# Adam divides by |g| + eps. With the usual eps an element whose gradient is only rounding moves by a whole learning
# rate in a random direction; and a gradient of twice the size gives the same update. With an eps of about the size of
# the smaller elements of clipped gradients, rounding moves nothing far, and a wrong factor shows in the update too.
EPS = 1e-5
MAX_CLIP_NORM = 0.1  # below any gradient's norm here: a wrong norm shows only where it clips


def shrink_recipe(loaded: Loaded, layout: Layout) -> Loaded:
    """The small recipe that a layout is tried with; the same for all layouts that cut it into as many stages.

    Raises UserError or RecipeError where the layout does not divide even this, or the recipe's loss depends on it.
    """
    model = _model(loaded, num_stages(layout.parallel))
    structure = architecture(model)
    recipe = loaded.recipe
    small = Recipe(
        description=recipe.description, model=model, data=_data(recipe, layout), optim=_optim(recipe.optim),
        parametrization=_parametrization(recipe.parametrization),
        parallel=layout.parallel.model_copy(update={"dedup_dispatch": recipe.parallel.dedup_dispatch}),
        training=Training(steps=NUM_STEPS, seed=recipe.training.seed, recompute=recipe.training.recompute),
    )
    origin = Origin(f"layout {layout.name}")
    try:
        check(small, structure)
    except RecipeError as error:
        raise error.located({}, origin) from None
    _require_independence(structure, layout)
    return Loaded(small, {"parallel": origin}, structure)


def _model(loaded: Loaded, num_layers: int) -> Model:
    """One period of the pattern, cuts left out; as many as it takes to be num_layers long."""
    model = loaded.recipe.model
    used = {sublayer.letter: sublayer for sublayer in loaded.architecture.sublayers()}
    layers = ["".join(branch.letter for branch in layer.branches) for layer in loaded.architecture.layers]
    sections, variants = {}, {}
    for letter, sublayer in used.items():
        if letter in model.sublayers:
            settings = _shrunk(sublayer.settings, model.d_model)
            variants[letter] = SublayerVariant(kind=sublayer.kind, **settings.model_dump())
        else:
            # Mamba-1 and Mamba-2 share a section whose open fields they fill differently: these stay open.
            stated = model.mamba if isinstance(sublayer.settings, Mamba) else sublayer.settings
            sections[section_of(sublayer.kind)] = _shrunk(stated, model.d_model)
    pattern = "".join(layer if len(layer) == 1 else f"[{layer}]" for layer in shorten_layers(layers, num_layers))
    return Model(
        pattern=pattern, d_model=D_MODEL, vocab_size=VOCAB_SIZE, tie_embeddings=model.tie_embeddings, norm=model.norm,
        norm_eps=model.norm_eps, multipliers=model.multipliers, sublayers=variants,
        **{"ffn": FFN(d_ff=D_FF)} | sections,
    )


def _shrunk(settings: Section, d_model: int) -> Section:
    if isinstance(settings, Attention):
        return settings.model_copy(update=_attention(settings, d_model))
    if isinstance(settings, FFN):
        return settings.model_copy(update={"d_ff": D_FF, "multiplier": None})
    return settings.model_copy(update=_moe(settings) if isinstance(settings, MoE) else _mamba(settings))


def _attention(settings: Attention, d_model: int) -> dict[str, object]:
    """Heads whose width together is d_model stay so; keys stay one, grouped, or one to each query head."""
    head_dim = D_MODEL // NUM_HEADS
    if settings.num_heads * settings.head_dim != d_model:
        head_dim *= 2
    queries_per_key = settings.num_heads // settings.num_kv_heads
    num_kv_heads = 1 if settings.num_kv_heads == 1 else max(2, NUM_HEADS // _power_of_two(queries_per_key))
    rotated = max(2, 2 * round(settings.rope_fraction * head_dim / 2))
    return {"num_heads": NUM_HEADS, "num_kv_heads": num_kv_heads, "head_dim": head_dim,
            "rope_fraction": rotated / head_dim, "window": settings.window and min(settings.window, 3 * SEQ_LEN // 8)}


def _moe(settings: MoE) -> dict[str, object]:
    return {"num_experts": NUM_EXPERTS, "top_k": min(settings.top_k, MAX_TOP_K), "d_expert": D_EXPERT,
            "expansion_rate": None, "granularity": None,
            "num_shared_experts": min(settings.num_shared_experts, MAX_SHARED_EXPERTS)}


def _mamba(settings: Mamba) -> dict[str, object]:
    return {"d_state": min(settings.d_state or D_STATE, D_STATE), "expand": 2.0, "head_dim": SSM_HEAD_DIM,
            "num_groups": min(settings.num_groups, 2), "chunk_size": CHUNK_SIZE,
            "dt_rank": settings.dt_rank and min(settings.dt_rank, DT_RANK)}


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


def _data(recipe: Recipe, layout: Layout) -> Data:
    """Random tokens; sequences for every data-parallel rank and, with stages, for twice as many micro-batches."""
    parallel = layout.parallel
    shares = parallel.dp_replicate * parallel.dp_shard
    batch_size = -(-BATCH_SIZE // (shares * parallel.pp)) * shares * parallel.pp
    share = batch_size // shares
    size = None if parallel.pp == 1 else max(1, share // (2 * parallel.pp))
    return Data(corpus="random tokens", seq_len=SEQ_LEN, batch_size=batch_size, micro_batch_size=size,
                isolate_documents=recipe.data.isolate_documents)


def _parametrization(settings: Parametrization) -> Parametrization:
    """A base of half the width, so that factors on products and rates stand in the shrunk model too.

    Matrices that start at zero, or next to it, would keep gradients from others in the first step, which is compared.
    """
    init = settings.init.model_copy(update={"relative_std": {}})
    base = {} if settings.base_d_model is None else {"base_d_model": D_MODEL // 2, "base_model": {}}
    return settings.model_copy(update={"init": init} | base)


def _optim(optim: Optim) -> Optim:
    """A constant rate from the first step on, so that a few steps move every weight."""
    return optim.model_copy(update={
        "lr": LEARNING_RATE, "eps": EPS, "schedule": "constant", "warmup_steps": 0,
        "clip_norm": optim.clip_norm and min(optim.clip_norm, MAX_CLIP_NORM),
    })


def _require_independence(structure: Architecture, layout: Layout) -> None:
    """Two settings make the loss itself depend on which sequences run together, and a pipeline runs few at a time."""
    if layout.parallel.pp == 1:
        return
    for settings in (sublayer.settings for sublayer in structure.sublayers() if sublayer.kind == "moe"):
        if settings.router == "expert_choice" and settings.choice_group == "position":
            field = "choice_group: position"
        elif settings.load_balance_over == "forward" and settings.load_balance_weight:
            field = "load_balance_over: forward"
        else:
            continue
        raise UserError(f"layout {layout.name}: with moe.{field} the loss depends on the micro-batches that pp cuts a "
                        "step into; allowed: layouts without pp")
