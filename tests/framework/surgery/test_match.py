"""Which sublayers and sizes upcycling refuses, in one line that names both sides."""

import pytest

from framework.errors import UserError
from framework.surgery.plan import make_plan
from tests.helpers.upcycling import task

MTP = ["parametrization.kind=mup", "parametrization.base_d_model=8"]


@pytest.mark.parametrize(("dense", "target", "said"), [
    ([], ["model.pattern=*-"], r"the target '\*-' has no experts; allowed: E where the dense run's '\*-' has -"),
    (["model.pattern=*E"], ["model.pattern=*E"], "nothing of the run's"),
    ([], ["model.pattern=*E*E"], r"'\*-' and the target's '\*E\*E' have 2 and 4 layers"),
    (["model.pattern=[*-]-"], ["model.pattern=*E"], "or other branches"),
    ([], ["model.pattern=ME"], r"layer 0 \(M\) is Mamba-2 in the target, attention \(\*\) in the dense run"),
    (["model.pattern=*E-"], ["model.pattern=*-E"], r"layer 1 \(-\) is FFN in the target, MoE \(E\) in the dense run"),
    ([], ["model.d_model=32"], "model.d_model is 32 in the target, 16 in the dense run"),
    ([], ["model.vocab_size=44"], "model.vocab_size"), ([], ["model.tie_embeddings=true"], "model.tie_embeddings"),
    ([], ["model.norm=layernorm"], "model.norm is layernorm in the target, rmsnorm"),
    ([], ["model.norm_eps=1e-6"], "model.norm_eps"), ([], ["model.multipliers.residual=0.5"], "multipliers.residual"),
    ([], ["model.attention.num_heads=4"], r"layer 0 \(\*\): model.attention.num_heads is 4 in the target, 2"),
    ([], ["model.attention.qkv_bias=true"], "model.attention.qkv_bias"),
    (["model.pattern=*--"], ["model.pattern=*-E", "model.ffn.d_ff=64"], r"layer 1 \(-\): model.ffn.d_ff is 64"),
    (["model.pattern=*E-"], ["model.pattern=*EE", "model.moe.top_k=1"], r"layer 1 \(E\): model.moe.top_k is 1"),
    ([], ["model.moe.activation=relu"], "moe.activation is relu in the target, ffn.activation swiglu"),
    ([], ["model.moe.d_expert=12"], "moe.d_expert=12 must divide the dense run's 32 hidden units"),
    ([], ["model.moe.d_expert=8"], "d_expert 8; allowed: moe.d_expert=32, or --method granular"),
    ([], ["model.moe.num_shared_experts=1"], "must divide the dense run's 32 hidden units less 32 of shared experts"),
])
def test_what_does_not_fit_is_named(tmp_path, dense, target, said):
    if not any(field.startswith("model.pattern") for field in target):
        target = ["model.pattern=*E", *target]
    with pytest.raises(UserError, match=said) as refused:
        task(tmp_path, dense, target)
    assert "allowed" in str(refused.value) and "\n" not in str(refused.value)


def test_shards_that_do_not_fill_the_experts_are_refused(tmp_path):
    with pytest.raises(UserError, match="moe.num_experts=6 is no multiple of the 4 shards"):
        task(tmp_path, [], ["model.pattern=*E", "model.moe.d_expert=8", "model.moe.num_experts=6"], method="granular")


@pytest.mark.parametrize(("fields", "after", "said"), [
    ([], MTP, r"its factor on q.k is \* 0.7"),
    (["model.tie_embeddings=true"], [*MTP, "parametrization.attention_scale=inverse_sqrt"], "logits' factor"),
])
def test_a_parametrization_that_weights_cannot_make_up_for_is_refused(tmp_path, fields, after, said):
    with pytest.raises(UserError, match=said):
        make_plan(task(tmp_path, fields, ["model.pattern=*E", *fields, *after]))


def test_what_only_training_sees_may_differ(tmp_path):
    task(tmp_path, ["model.pattern=*E-"], ["model.pattern=*EE", "model.moe.load_balance_weight=0.1", "optim.lr=0.5",
                                           "model.moe.capacity_factor=2", "training.dtype=bfloat16"])
