"""Groups of parameters, their rates and their decay."""

import copy

import torch

from framework.model import build_language_model
from framework.optim import build_adamw, learning_rate, set_learning_rates
from framework.parametrization import initialize
from framework.parametrization.roles import declarations
from framework.recipe import architecture
from framework.recipe.schema import Init, Model, Optim, RelativeLR

OPTIM = Optim(lr=0.02, warmup_steps=2, weight_decay=0.3,
              relative_lr={"expert": RelativeLR(start=0.5, end=3.0), "router": RelativeLR(start=2.0)})


def small_model() -> torch.nn.Module:
    model = build_language_model(architecture(Model(
        pattern="*Em", d_model=16, vocab_size=32, attention={"num_heads": 2, "qkv_bias": True}, ffn={"d_ff": 16},
        moe={"expansion_rate": 4, "granularity": 2}, mamba={"d_state": 4})))
    initialize(model, Init(), 0)
    return model


def roles(model) -> dict[int, str]:
    return {id(module.get_parameter(name)): str(declaration.role)
            for _, module, name, declaration in declarations(model)}


def test_every_parameter_is_in_one_group_with_the_decay_of_its_role():
    model = small_model()
    role_of, optimizer = roles(model), build_adamw(model, OPTIM)
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(role_of)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            expected = 0.0 if role_of[id(parameter)] in ("norm", "bias", "ssm_A", "ssm_D") else 0.3
            assert group["weight_decay"] == expected, role_of[id(parameter)]


def test_rates_follow_the_factors_of_the_role():
    model = small_model()
    role_of, optimizer = roles(model), build_adamw(model, OPTIM)
    for step in (1, 5, 10):
        base = set_learning_rates(optimizer, OPTIM, step, 10)
        assert base == learning_rate(OPTIM, step, 10)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                family = role_of[id(parameter)].split("_")[0]
                factors = {"expert": (0.5, 3.0), "router": (2.0, 1.0)}.get(family, (1.0, 1.0))
                assert group["lr"] == learning_rate(OPTIM, step, 10, *factors)


def test_updates_equal_those_of_one_plain_adamw_per_parameter():
    model = small_model()
    plain = copy.deepcopy(model)
    optimizer = build_adamw(model, OPTIM)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    theirs = [torch.optim.AdamW([q], lr=1.0, betas=OPTIM.betas, eps=OPTIM.eps, foreach=False, fused=False,
                                weight_decay=group_of[id(p)]["weight_decay"])
              for p, q in zip(model.parameters(), plain.parameters(), strict=True)]
    generator = torch.Generator().manual_seed(0)
    for step, divisor in ((1, None), (2, 2.5), (3, 1.0)):
        set_learning_rates(optimizer, OPTIM, step, 10)
        for p, q, other in zip(model.parameters(), plain.parameters(), theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad / (divisor or 1.0)
            other.param_groups[0]["lr"] = group_of[id(p)]["lr"]
            other.step()
        optimizer.step(None if divisor is None else torch.tensor(divisor), torch.tensor(True))
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_a_step_that_is_not_to_be_taken_leaves_weights_and_state():
    model = small_model()
    optimizer = build_adamw(model, OPTIM)
    set_learning_rates(optimizer, OPTIM, 1, 10)
    for taken in (True, False, False):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.5 if taken else torch.nan)
        before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
        optimizer.step(torch.tensor(1.0 if taken else torch.nan), torch.tensor(taken))
        after = model.state_dict(), optimizer.state_dict()["state"]
        if taken:
            assert all(state["step"] == 1 for state in after[1].values())
            continue
        torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_the_state_is_complete_before_the_first_step():
    model = small_model()
    optimizer = build_adamw(model, OPTIM)
    before = {name: list(optimizer.state[p]) for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert before == {name: list(optimizer.state[p]) for name, p in model.named_parameters()}
    assert all(state["step"] == 1 for state in optimizer.state.values())


def test_a_rule_may_name_a_role_that_another_rank_holds():
    """A rank of a pipeline has some layers only."""
    optimizer = build_adamw(small_model(), Optim(relative_lr={"ffn_up": RelativeLR(start=2.0)}))
    assert {(group["start"], group["end"]) for group in optimizer.param_groups} == {(1.0, 1.0)}
