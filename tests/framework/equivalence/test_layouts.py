"""Names of layouts: what they stand for, and what is told of a wrong one."""

import pytest

from framework.equivalence import DEFAULT_LAYOUTS, parse_layout
from framework.errors import UserError

MEANINGS = {
    "tp2": (2, {"tp": 2}),
    "dp_shard2xtp2xep4": (4, {"dp_shard": 2, "tp": 2, "ep": 4}),
    "ep2": (2, {"dp_shard": 2, "ep": 2}),
    "tp2xep2": (2, {"tp": 2, "ep": 2}),
    "pp2xep2": (4, {"pp": 2, "dp_shard": 2, "ep": 2}),
    "tp2xep8": (8, {"dp_shard": 4, "tp": 2, "ep": 8}),
    "tp4xep6": (12, {"dp_shard": 3, "tp": 4, "ep": 6}),
    "dp_shard2xep4": (4, {"dp_shard": 4, "ep": 4}),
    "ep2xdp_replicate2": (4, {"dp_replicate": 2, "dp_shard": 2, "ep": 2}),
    "pp4-interleaved": (4, {"pp": 4, "pp_schedule": "interleaved"}),
    "pp2-zb": (2, {"pp": 2, "pp_schedule": "zero_bubble"}),
    "dp_shard2-zero1": (2, {"dp_shard": 2, "engine": "deepspeed", "zero_stage": 1}),
    "cp2xtp2xpp2": (8, {"cp": 2, "tp": 2, "pp": 2}),
    "tp1": (1, {}),
}


@pytest.mark.parametrize("name", MEANINGS)
def test_a_name_stands_for_degrees_schedule_and_engine(name):
    layout = parse_layout(name)
    num_ranks, stated = MEANINGS[name]
    assert layout.name == name
    assert layout.num_ranks == num_ranks
    assert layout.parallel.model_dump(exclude_defaults=True) == stated


def test_the_list_has_every_axis_once_alone_and_in_company():
    layouts = [parse_layout(name) for name in DEFAULT_LAYOUTS]
    assert len({layout.parallel.model_dump_json() for layout in layouts}) == len(DEFAULT_LAYOUTS) >= 24
    assert max(layout.num_ranks for layout in layouts) == 8
    for axis in ("dp_replicate", "dp_shard", "cp", "tp", "pp", "ep"):
        assert sum(getattr(layout.parallel, axis) > 1 for layout in layouts) >= 3, axis


@pytest.mark.parametrize(("name", "told"), {
    "dp2": "no axis 'dp'; nearest: dp_replicate, dp_shard; allowed: dp_replicate, dp_shard, cp, tp, pp, ep",
    "tq2": "no axis 'tq'; nearest: tp",
    "dp_shrad2": "no axis 'dp_shrad'; nearest: dp_shard",
    "TP2": "no axis 'TP'; allowed",
    "": "no axis ''; allowed",
    "tp2,": "no axis 'tp2,'",
    "tp2x": "no axis ''",
    "2": "no axis ''",
    "tp": "'tp' has no degree; allowed: a number of at least 1, as tp2",
    "tp0": "'tp0' has no degree",
    "tp2xtp4": "tp stands twice",
    "pp2-zbb": "no suffix 'zbb'; nearest: zb; allowed: interleaved, zb, zero1, zero2, zero3",
    "pp2-": "no suffix ''",
    "pp2-zb-interleaved": "-interleaved after another of its kind",
    "dp_shard2-zero1-zero2": "-zero2 after another of its kind",
    "tp2-zb": "a schedule without pipeline stages",
    "pp1-interleaved": "a schedule without pipeline stages",
    "dp_shard65": "65 ranks; allowed: up to 64",
    "tp\n2": "no axis",
}.items())
def test_a_wrong_name_is_told_in_one_line(name, told):
    with pytest.raises(UserError) as error:
        parse_layout(name)
    assert told in str(error.value)
    assert str(error.value).startswith("layout ")
    assert "\n" not in str(error.value)
