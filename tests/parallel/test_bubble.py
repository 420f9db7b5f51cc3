"""The bubble of a schedule, from its order of work alone."""

import pytest

from parallel.bubble import Action, bubble_share, one_forward_one_backward, read_actions


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("extra", [0, 1, 4, 13])
def test_1f1b_waits_as_the_formula_says(ranks, extra):
    micro_batches = ranks + extra
    share = bubble_share(one_forward_one_backward(ranks, micro_batches))
    assert share == pytest.approx((ranks - 1) / (micro_batches + ranks - 1))


def test_one_rank_never_waits():
    assert bubble_share(one_forward_one_backward(1, 3)) == 0


def test_halved_backwards_shorten_the_wait():
    """By hand: two ranks, two micro-batches; the first rank's weight gradients fill its waiting."""
    order = {
        0: read_actions("0F0 0F1 0I0 0W0 0I1 0W1".split()),
        1: read_actions("1F0 1I0 1F1 1I1 1W0 1W1".split()),
    }
    # Rank 1: F0 1-2, I0 2-3, F1 3-4, I1 4-5, W 5-7. Rank 0: F0 F1 0-2, I0 3-4, W0 4-5, I1 5-6, W1 6-7.
    assert bubble_share(order) == pytest.approx(1 - 12 / 14)


def test_only_computations_count():
    assert read_actions([None, "0F0", "0UNSHARD", "10I12", "0REDUCE_GRAD", "0SEND_F0"]) == [
        Action(0, "F", 0), Action(10, "I", 12)
    ]


def test_an_order_that_cannot_go_on_is_refused():
    with pytest.raises(ValueError, match="wait for ever after 1"):
        bubble_share({0: read_actions(["0F0", "0B0"]), 1: read_actions(["1B0", "1F0"])})
