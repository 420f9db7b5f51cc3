"""Every number that the papers and the fact sheets derived from them print, within the tolerance stated there."""

import pytest

from framework.errors import UserError
from framework.laws import LAWS, optimum, predict
from framework.laws.fine_grained_shape import flops_per_token
from framework.laws.joint_formula import PUBLISHED, TABLE_4
from framework.laws.joint_shape import d_model_of, num_params_active


def loss(law, **values):
    return predict(law, values).values["loss"]


@pytest.mark.parametrize(("active", "tokens", "granularity", "flops", "printed", "derived"), [
    (100e6, 4.37e9, 8, 2.95e18, 3.133, 3.112), (1e9, 28.94e9, 16, 1.93e20, 2.491, 2.473),
    (7e9, 137.60e9, 32, 6.46e21, 2.076, 2.062), (300e9, 2.96e12, 64, 5.69e24, 1.503, 1.492),
])
def test_fine_grained_optima(active, tokens, granularity, flops, printed, derived):
    at = loss("fine_grained", num_params_active=active, tokens=tokens, granularity=granularity)
    assert at == pytest.approx(derived, abs=0.002) and at == pytest.approx(printed, abs=0.025)
    assert flops_per_token(active, granularity, 64) * tokens == pytest.approx(flops, rel=0.005)
    best = optimum("fine_grained", {"flops": flops}).values
    assert best["granularity"] == granularity and best["expansion_rate"] == 64
    assert best["num_params_active"] == pytest.approx(active, rel=0.04)
    assert best["num_params_total"] == pytest.approx(43 * active, rel=0.04)
    assert best["tokens"] == pytest.approx(tokens, rel=0.04)
    assert best["flops"] == pytest.approx(flops, rel=1e-9)


def test_total_and_active_parameters_are_one_model():
    by_total = predict("fine_grained", {"num_params_total": 4.3e9, "tokens": 4.37e9, "granularity": 8}).values
    by_active = predict("fine_grained", {"num_params_active": 1e8, "tokens": 4.37e9, "granularity": 8}).values
    assert by_total == pytest.approx(by_active) and by_total["loss"] == pytest.approx(3.112, abs=0.002)
    of_16 = predict("fine_grained", {"num_params_active": 1e8, "tokens": 1e10, "granularity": 8, "expansion_rate": 16})
    assert of_16.values["num_params_total"] == pytest.approx(1.1e9)
    assert of_16.values["loss"] == pytest.approx(0.472 + (1.18 / 8**0.986 + 19.64) / 1.1e9**0.124 + 57.07 / 1e10**0.169)


@pytest.mark.parametrize(("active", "low", "high", "granularities"), [
    (100e6, 10.29e9, 17.73e9, (8, 16)), (1e9, 53.74e9, 103.54e9, (16, 32)), (3e9, 106.22e9, 261.04e9, (16, 32)),
    (7e9, 177.65e9, 511.43e9, (16, 32)), (70e9, 721.6e9, 3.22e12, (32, 64)), (300e9, 1.73e12, 10.69e12, (32, 64)),
])
def test_optima_of_expansion_rate_16_lie_in_the_papers_intervals(active, low, high, granularities):
    """Table 9: the FLOPs at which the size is the best one are searched for."""
    from framework.laws.search import crossing

    def excess(log):
        best = optimum("fine_grained", {"flops": 10**log, "expansion_rate": 16}).values
        return best["num_params_active"] - active

    best = optimum("fine_grained", {"flops": 10 ** crossing(excess, 17, 27), "expansion_rate": 16}).values
    assert low <= best["tokens"] <= high and granularities[0] <= best["granularity"] <= granularities[1]


@pytest.mark.parametrize(("num_experts", "flops", "size", "tokens", "derived"), [
    (1, 1e20, 1.7e9, 9.7e9, 2.5897), (1, 1e21, 5.7e9, 29.3e9, 2.3501), (1, 1e22, 18.8e9, 88.6e9, 2.1574),
    (4, 1e20, 1.2e9, 13.9e9, 2.5545), (4, 1e21, 4.4e9, 38e9, 2.3167), (4, 1e22, 15.8e9, 105.4e9, 2.1265),
    (16, 1e20, 810e6, 20.7e9, 2.5019), (16, 1e21, 3.3e9, 51.2e9, 2.2718), (16, 1e22, 13.2e9, 126.5e9, 2.0882),
])
def test_joint_optima(num_experts, flops, size, tokens, derived):
    best = optimum("joint", {"flops": flops, "num_experts": num_experts}).values
    assert best["loss"] == pytest.approx(derived, rel=0.0005)
    assert best["num_params_active"] == pytest.approx(size, rel=0.02)
    assert best["tokens"] == pytest.approx(tokens, rel=0.015)
    assert 6 * best["num_params_active"] * best["tokens"] == pytest.approx(flops)


@pytest.mark.parametrize("num_experts", TABLE_4)
def test_table_3_reduces_to_table_4(num_experts):
    joint, reduced = PUBLISHED["table_3"].of_experts(num_experts), TABLE_4[num_experts]
    for name in ("m", "mu", "n", "nu", "c"):
        assert getattr(joint, name) == pytest.approx(getattr(reduced, name), rel=0.004)
    at = {"num_params_active": 5e8, "tokens": 2e10, "num_experts": num_experts}
    assert predict("joint", at).values["loss"] == reduced.loss(5e8, 2e10)
    assert predict("joint", at, "table_3").values["loss"] == pytest.approx(reduced.loss(5e8, 2e10), abs=0.0015)


def test_effective_experts():
    of = PUBLISHED["table_3"]
    for num_experts, effective in ((1, 2.0732), (2, 3.0556), (8, 8.8124), (32, 29.7042)):
        assert of.effective_experts(num_experts) == pytest.approx(effective, abs=1e-4)


def test_joint_sizes():
    """Appendix E: active parameters of its models, and the total of the largest."""
    for width, active in ((512, 79e6), (640, 118e6), (768, 169e6), (1024, 321e6), (1152, 426e6), (1664, 1.1e9)):
        assert num_params_active(width) == pytest.approx(active, rel=0.01)
        assert d_model_of(num_params_active(width)) == pytest.approx(width, rel=1e-12)
    at = {"num_params_active": num_params_active(1024), "tokens": 1e10, "num_experts": 32}
    assert predict("joint", at).values["num_params_total"] == pytest.approx(5.0e9, rel=0.02)


@pytest.mark.parametrize(("flops", "memory", "num_experts"), [
    (1e21, 80e9, 32), (1e21, 640e9, 32), (1e22, 24e9, 4), (1e22, 80e9, 16), (1e22, 640e9, 32), (1e23, 24e9, 1),
    (1e23, 640e9, 32), (1e24, 24e9, 1), (1e24, 80e9, 1),
])
def test_best_number_of_experts_in_memory(flops, memory, num_experts):
    """Nine cells of Table 2. Its other three come out one power of two away, whatever the reading: docs/laws.md."""
    asked = {"flops": flops, "memory_bytes": memory, "kv_cache_tokens": 16384}
    assert optimum("joint", asked).values["num_experts"] == num_experts


def test_memory_and_inference_bind():
    asked = {"flops": 1e22, "num_experts": 4}
    free = optimum("joint", asked).values
    parameters = optimum("joint", asked | {"memory_bytes": 24e9}).values
    assert 2 * parameters["num_params_total"] == pytest.approx(24e9)
    cached = optimum("joint", asked | {"memory_bytes": 24e9, "kv_cache_tokens": 16384}).values
    cache = 2 * 2 * 16384 * cached["d_model"] ** 2 / 64
    assert 2 * cached["num_params_total"] + cache == pytest.approx(24e9)
    assert free["loss"] < parameters["loss"] < cached["loss"]
    one_byte = optimum("joint", asked | {"memory_bytes": 24e9, "bytes_per_parameter": 1}).values
    assert one_byte["num_params_total"] == pytest.approx(24e9)
    assert optimum("joint", asked | {"memory_bytes": 1e12}).values == free
    served = optimum("joint", asked | {"inference_tokens": 1e12}).values
    assert served["num_params_active"] < free["num_params_active"]
    assert served["flops"] + served["inference_flops"] == pytest.approx(1e22)
    nearby = [optimum("joint", {"flops": 6 * n * (1e22 / (6 * n) - 1e12 / 3), "num_experts": 4}).values["loss"]
              for n in (served["num_params_active"],)]
    assert served["loss"] > nearby[0]
    for factor in (0.98, 1.02):
        size = served["num_params_active"] * factor
        other = loss("joint", num_params_active=size, tokens=1e22 / (6 * size) - 1e12 / 3, num_experts=4)
        assert other > served["loss"]


@pytest.mark.parametrize(("size", "rates"), [
    (79e6, (1.70e-3, 1.01e-3, 7.1e-4)), (169e6, (9.1e-4, 5.4e-4, 3.8e-4)), (321e6, (5.4e-4, 3.23e-4, 2.3e-4)),
    (1.1e9, (2.0e-4, 1.2e-4, 8.4e-5)), (2.7e9, (9.6e-5, 5.7e-5, 4.0e-5)),
])
def test_learning_rates(size, rates):
    for num_experts, rate in zip((1, 8, 32), rates, strict=True):
        found = predict("learning_rate", {"num_params_active": size, "num_experts": num_experts}).values
        assert found["learning_rate"] == pytest.approx(rate, rel=0.02)


def test_upcycling():
    assert loss("upcycling_dense", num_params=1e9, tokens=74e9) == pytest.approx(2.253, abs=0.001)
    assert loss("upcycling_moe", num_params=1e9, tokens=37e9) == pytest.approx(2.145, abs=0.001)
    answer = predict("upcycling", {"num_params": 1e9, "tokens": 37e9, "dense_tokens": 74e9})
    assert answer.values["loss"] == pytest.approx(2.144, abs=0.001)
    assert any("unverified" in line for line in answer.warnings)


@pytest.mark.parametrize(("size", "dense_tokens", "even"), [
    (1e8, 10e9, 13e9), (1e8, 50e9, 70e9), (1e8, 100e9, 198e9), (1e9, 10e9, 7.1e9), (1e9, 50e9, 26e9),
    (1e9, 100e9, 50e9),
    (1e9, 500e9, 456e9), (7e9, 100e9, 19e9), (7e9, 500e9, 76e9), (7e9, 1e12, 157e9), (1e8, 500e9, None),
])
def test_upcycling_breaks_even(size, dense_tokens, even):
    found = predict("upcycling", {"num_params": size, "tokens": 1e10, "dense_tokens": dense_tokens}).values
    assert found.get("break_even_tokens") == (None if even is None else pytest.approx(even, rel=0.03))


def test_kaplan():
    for size, expected in ((1e8, 2.830), (1e9, 2.376), (1e10, 1.994)):
        assert loss("kaplan", num_params=size) == pytest.approx(expected, abs=0.001)
    assert loss("kaplan", num_params=1e9, tokens=1e30) == pytest.approx(loss("kaplan", num_params=1e9))
    assert loss("kaplan", num_params=1e30, tokens=1e10) == pytest.approx(loss("kaplan", tokens=1e10), rel=1e-3)
    assert loss("kaplan", flops=3.1e8 * 8.64e19) == pytest.approx(1)


def test_chinchilla_and_its_optimum():
    assert loss("chinchilla", num_params=70e9, tokens=1.4e12) == pytest.approx(1.69 + 406.4 / 70e9**0.34
                                                                               + 410.7 / 1.4e12**0.28)
    best = optimum("chinchilla", {"flops": 1e21}).values
    for factor in (0.95, 1.05):
        size = best["num_params"] * factor
        assert loss("chinchilla", num_params=size, tokens=1e21 / (6 * size)) > best["loss"]


def test_diloco():
    apart = [loss("diloco", num_params=2.4e9, num_replicas=replicas) for replicas in (0, 1, 2, 4, 8)]
    assert apart == pytest.approx([2.314, 2.304, 2.315, 2.319, 2.335], abs=0.001)
    measured = (2.326, 2.317, 2.323, 2.332, 2.351)
    assert all(abs(found / seen - 1) < 0.008 for found, seen in zip(apart, measured, strict=True))
    eight = predict("diloco", {"num_params": 335e6, "num_replicas": 8}).values
    assert eight["outer_learning_rate"] == 0.8 and eight["tokens"] == 20 * 335e6
    assert eight["joint_loss"] == pytest.approx(19.226 * 335e6**-0.0985 * 8**0.0116)
    assert eight["learning_rate"] == pytest.approx(22256 * 335e6**-0.8827 * 8**0.2929)
    three = predict("diloco", {"num_params": 335e6, "num_replicas": 3}).values
    assert three["loss"] == three["joint_loss"] and "outer_learning_rate" not in three


@pytest.mark.parametrize(("law", "values"), [
    ("fine_grained", {"num_params_total": 1e9, "tokens": 1e10}),
    ("fine_grained", {"num_params_total": 1e9, "tokens": 1e10, "granularity": 0.5}),
    ("fine_grained", {"num_params_total": 1e9, "tokens": 1e10, "granularity": 8, "expansion_rate": 32}),
    ("fine_grained", {"num_params_total": 1e9, "num_params_active": 1e8, "tokens": 1e10, "granularity": 8}),
    ("fine_grained", {"tokens": 1e10, "granularity": 8}),
    ("joint", {"num_params_active": 1e9, "tokens": 1e10, "num_experts": 0}),
    ("joint", {"num_params_active": 1e9, "tokens": 1e10, "num_experts": 2.5}),
    ("joint", {"num_params_active": 1e9, "tokens": float("nan"), "num_experts": 2}),
    ("joint", {"num_params_active": -1e9, "tokens": 1e9, "num_experts": 2}),
    ("joint", {"num_params_active": 1e9, "tokens": 1e300, "num_experts": 2}),
    ("kaplan", {"flops": 1e20, "tokens": 1e9}), ("kaplan", {}), ("diloco", {"num_params": 1e9, "tokens": 1e9}),
    ("upcycling", {"num_params": 1e9, "tokens": 1e9, "dense_tokens": 0}), ("chinchila", {}),
])
def test_what_is_impossible_is_refused(law, values):
    with pytest.raises(UserError, match="allowed"):
        predict(law, values)


@pytest.mark.parametrize(("law", "values"), [
    ("kaplan", {"flops": 1e20}), ("fine_grained", {}), ("joint", {"flops": 1e20, "memory_bytes": 10, "num_experts": 2}),
    ("joint", {"flops": 1e20, "memory_bytes": 10}), ("joint", {"flops": 10}),
    ("joint", {"flops": 1e20, "inference_tokens": 1e19}), ("fine_grained", {"flops": 1e20, "tokens": 1e9}),
])
def test_impossible_optima_are_refused(law, values):
    with pytest.raises(UserError, match="allowed"):
        optimum(law, values)


@pytest.mark.parametrize(("law", "inside", "outside"), [
    ("fine_grained", {"num_params_active": 49e6, "tokens": 33e9, "granularity": 8}, {"granularity": 64}),
    ("fine_grained", {"num_params_active": 49e6, "tokens": 9e9, "granularity": 8, "expansion_rate": 16},
     {"tokens": 130e9}),
    ("joint", {"num_params_active": 321e6, "tokens": 8e9, "num_experts": 32}, {"num_experts": 64}),
    ("joint", {"num_params_active": 321e6, "tokens": 8e9, "num_experts": 32}, {"num_params_active": 2e10}),
    ("learning_rate", {"num_params_active": 321e6, "num_experts": 8}, {"num_params_active": 1e10}),
    ("kaplan", {"num_params": 1e8}, {"num_params": 1e10}), ("diloco", {"num_params": 1e9}, {"num_params": 4e9}),
    ("chinchilla", {"num_params": 1e9, "tokens": 2e10}, {"tokens": 1e12}),
    ("fine_grained_dense", {"num_params_total": 25e6, "tokens": 33e9}, {"num_params_total": 1e9}),
])
def test_extrapolation_is_told(law, inside, outside):
    assert predict(law, inside).warnings == ()
    warning = predict(law, inside | outside).warnings[0]
    assert "extrapolated" in warning and next(iter(outside)) in " ".join(predict(law, inside | outside).warnings)


def test_every_law_states_itself():
    for law in LAWS.values():
        assert law.source and law.formula and law.definitions and law.sets
        assert all(variable.meaning for variable in (*law.variables, *law.budget))


def test_coefficients_without_an_optimum_are_refused():
    from framework.laws.power_sum import PowerSum

    with pytest.raises(UserError, match="no optimum"):
        PowerSum(30, -0.1, 50, 0.2, 1).optimum(1e20)
