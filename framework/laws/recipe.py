"""A recipe of a law's optimum: its shape rounded to a model that can be, its tokens, its learning rate if known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from framework.errors import UserError
from framework.files import write_atomically
from framework.laws.ask import Answer, optimum, predict_with
from framework.laws.coefficients import choose
from framework.laws.fine_grained_shape import flops_per_token
from framework.laws.joint_shape import VOCABULARY, d_model_of, num_params_active
from framework.laws.learning_rate import learning_rate
from framework.laws.registry import find_law
from framework.laws.values import Values
from framework.recipe.files import new_recipe

HEAD = 64
RAMP_ENDS, WARMUP_TOKENS = 1_000_000_000, 130e6
"""Of the joint law's runs: tokens after which a batch is whole, and those of the warm-up."""

LAWS = ("fine_grained", "fine_grained_dense", "joint", "chinchilla")


def write_recipe(answer: Answer, given: Values, path: Path, base: str | None = None,
                 coefficients: str | None = None) -> Path:
    """Write a recipe of the best model. base: a recipe for all that the law does not say (corpus, optimizer, ...);
    without one, the paper's settings on base/transformer's corpus. Returns `path`.

    d_model and blocks follow d_model = 64 blocks, heads being 64 wide: the width is rounded to a multiple of 64 (down,
    where memory is limited), and tokens are what the FLOPs then allow.
    Raises UserError for a law without such a model, and for a file that cannot be a recipe.
    """
    law = answer.law
    if law.name not in LAWS:
        raise UserError(f"{law.name}: no recipe of its optimum; allowed: {', '.join(LAWS)}")
    vocab_size = vocabulary(given, base)
    width = answer.values["d_model"]
    if law.name == "chinchilla":
        width = d_model_of(answer.values["num_params"], vocab_size)
    blocks = width / HEAD
    blocks = max(1, math.floor(blocks + 1e-9) if "memory_bytes" in given else round(blocks))
    point = _rounded(law.name, answer.values, given, HEAD * blocks, vocab_size)
    loss = predict_with(law, point, *choose(law, coefficients)).values["loss"]
    content = _content(law.name, answer.values, width, blocks, point["tokens"], given["flops"])
    if base is None:
        content["model"]["vocab_size"] = int(vocab_size)
        _paper_settings(law.name, content, point)
    else:
        content["extends"] = str(Path(base).resolve()) if Path(base).suffix else base
    head = (f"# {law.name} law, {', '.join(f'{name}={value:g}' for name, value in given.items())}\n"
            f"# Best width {width:.1f}, loss {answer.values['loss']:.4f}; "
            f"here d_model {HEAD * blocks}, {blocks} blocks, predicted loss {loss:.4f}\n")
    with new_recipe(path, "--recipe"):
        write_atomically(path, head + yaml.safe_dump(content, sort_keys=False, width=120))
    return path


def best(law_name: str, given: Values, coefficients: str | None, base: str | None) -> tuple[Answer, Values]:
    """The optimum, and the numbers that it was asked with: with the base's vocabulary where the law has one."""
    if base is not None and "vocab_size" in {variable.name for variable in find_law(law_name).budget}:
        given = {"vocab_size": vocabulary(given, base)} | given
    return optimum(law_name, given, coefficients), given


def vocabulary(given: Values, base: str | None) -> float:
    """The vocabulary given, else that of the base, else the joint law's."""
    if "vocab_size" in given or base is None:
        return given.get("vocab_size", VOCABULARY)
    from framework.recipe import load_recipe

    return load_recipe(base).recipe.model.vocab_size


def _rounded(name: str, best: Values, given: Values, width: int, vocab_size: float) -> Values:
    """Numbers of a prediction for the rounded model, trained for the same FLOPs."""
    flops = given["flops"]
    if name == "joint":
        size = num_params_active(width, vocab_size)
        tokens = flops / (6 * size) - given.get("inference_tokens", 0) / 3
        return {"num_params_active": size, "tokens": _whole(name, tokens), "num_experts": best["num_experts"],
                "vocab_size": vocab_size}
    if name == "chinchilla":
        size = num_params_active(width, vocab_size)
        return {"num_params": size, "tokens": _whole(name, flops / (6 * size))}
    size = 12 * width**2 * (width / HEAD)
    if name == "fine_grained_dense":
        return {"num_params_total": size, "tokens": _whole(name, flops / (6 * size))}
    rate, granularity = best["expansion_rate"], best["granularity"]
    tokens = flops / flops_per_token(size, granularity, rate)
    return {"num_params_active": size, "tokens": _whole(name, tokens), "granularity": granularity,
            "expansion_rate": rate}


def _whole(name: str, tokens: float) -> float:
    if tokens < 1:
        raise UserError(f"{name}: the FLOPs do not train the smallest model, d_model {HEAD}, on one token; "
                        "allowed: more")
    return float(math.floor(tokens))


def _content(name: str, best: Values, width: float, blocks: int, tokens: float, flops: float) -> dict[str, Any]:
    """What the law says of the model, on base/transformer."""
    experts = name == "fine_grained" or best.get("num_experts", 1) > 1
    wide = name in ("joint", "chinchilla")
    model: dict[str, Any] = {
        "pattern": f"(*{'E' if experts else '-'})x{blocks}",
        "d_model": HEAD * blocks,
        "attention": {"num_heads": blocks, "head_dim": HEAD, "num_kv_heads": blocks},
        "ffn": {"multiplier": 3 if wide else 4, "activation": "swiglu" if wide else "relu"},
    }
    if experts:
        model["moe"] = {
            "expansion_rate": int(best["expansion_rate"] if name == "fine_grained" else best["num_experts"]),
            "granularity": int(best.get("granularity", 1)),
            "activation": model["ffn"]["activation"],
        }
    return {
        "description": f"Optimum of the {name} law for {flops:.3g} FLOPs, width {width:.0f} rounded to {HEAD * blocks}",
        "extends": "base/transformer",
        "model": model,
        "training": {"tokens": int(tokens)},
    }


def _paper_settings(name: str, found: dict[str, Any], point: Values) -> None:
    """Data and optimizer of the law's own runs, as far as they are known; Chinchilla's take the base's."""
    model, experts = found["model"], "moe" in found["model"]
    if name in ("fine_grained", "fine_grained_dense"):
        if experts:
            model["moe"] |= {"router": "expert_choice", "choice_group": "position", "output_norm": True,
                             "normalize_top_k": False}
        found["data"] = {"seq_len": 256, "batch_size": 2048}
        steps = point["tokens"] / (256 * 2048)
        found["optim"] = {"lr": 2e-4, "schedule": "cosine", "final_lr_fraction": 0.1, "weight_decay": 0.1,
                          "warmup_steps": math.ceil(steps / 100)}
    elif name == "joint":
        if experts:
            model["moe"] |= {"capacity_factor": 1.0, "normalize_top_k": False, "load_balance_weight": 0.01,
                             "z_loss_weight": 0.001}
        found["data"] = {"seq_len": 512, "batch_size": 512}
        if point["tokens"] > RAMP_ENDS:
            found["data"]["batch_ramp"] = {RAMP_ENDS // 2: 128, RAMP_ENDS: 256}
        rate = learning_rate(point["num_params_active"], point["num_experts"])
        warmup = min(WARMUP_TOKENS, point["tokens"] / 10) / (512 * (128 if "batch_ramp" in found["data"] else 512))
        found["optim"] = {"lr": float(f"{rate:.4g}"), "betas": [0.9, 0.999], "schedule": "trapezoid",
                          "warmup_steps": math.ceil(warmup), "decay_fraction": 0.2, "final_lr_fraction": 0.0,
                          "clip_norm": 0.1}
