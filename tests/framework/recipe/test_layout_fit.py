"""The sizes that tensor parallelism and sequences cannot be split by, and that the check needs no torch."""

import subprocess
import sys

import pytest

from framework.recipe.architecture import architecture
from framework.recipe.layout_fit import context_misfits, sequence_misfits, tensor_misfits
from framework.recipe.schema import Model

MOE = dict(num_experts=4, top_k=2, d_expert=6)


def misfits(tp: int, **fields) -> list[str]:
    return tensor_misfits(architecture(Model(**dict(d_model=16, vocab_size=43) | fields)), tp)


@pytest.mark.parametrize(("fields", "lines"), [
    (dict(pattern="*", attention=dict(num_heads=4, num_kv_heads=1)), []),
    (dict(pattern="*", attention=dict(num_heads=2)), ["tp=4 must divide the 2 query heads"]),
    (dict(pattern="--", ffn=dict(d_ff=30)), ["tp=4 must divide the 30 feed-forward channels"]),
    (dict(pattern="E", moe=MOE), []),
    (dict(pattern="E", moe=MOE | dict(num_shared_experts=1)), ["tp=4 must divide the 6 channels of shared experts"]),
    (dict(pattern="E", moe=MOE | dict(num_shared_experts=2)), []),
    (dict(pattern="m", mamba=dict(expand=1.125)), ["tp=4 must divide the 18 Mamba-1 channels"]),
    (dict(pattern="m", mamba=dict(head_dim=32)), []),
    (dict(pattern="M", mamba=dict(head_dim=16)), ["tp=4 must divide the 2 Mamba-2 heads"]),
    (dict(pattern="M", mamba=dict(head_dim=8, num_groups=1)), []),
    (dict(pattern="-", vocab_size=9), ["tp=4: the 9 vocabulary rows fill fewer parts of 3"]),
    (dict(pattern="[mW]", sublayers=dict(W=dict(kind="attention", num_heads=2)), vocab_size=2),
     ["tp=4 must divide the 2 query heads", "tp=4: the 2 vocabulary rows fill fewer parts of 1"]),
])
def test_tensor_parallelism_names_each_size_once(fields, lines):
    assert misfits(4, **fields) == lines
    assert misfits(1, **fields) == []


def test_a_sequence_is_split_over_both_axes():
    assert sequence_misfits(16, cp=2, tp=4) == []
    assert sequence_misfits(12, cp=2, tp=4) == ["cp*tp=2*4 must divide the 12 tokens of a sequence"]


@pytest.mark.parametrize(("pattern", "seq_len", "cp", "tp", "lines"), [
    ("*mM", 12, 4, 1, []),
    ("*mM", 8, 1, 4, []),
    ("*mM", 12, 2, 4, ["cp*tp=2*4 must divide the 12 tokens of a sequence"]),
    ("*-", 8, 4, 2, []),
    ("*mM", 8, 4, 2, ["cp=4 leaves 2 of 8 tokens a rank, fewer than the 3 that a convolution looks back"]),
])
def test_parts_of_a_sequence_hold_what_a_convolution_looks_back(pattern, seq_len, cp, tp, lines):
    sizes = architecture(Model(pattern=pattern, d_model=16, vocab_size=43, mamba=dict(head_dim=8)))
    assert context_misfits(sizes, cp, tp, seq_len) == lines


def test_torch_is_not_imported():
    code = "import sys, framework.recipe.layout_fit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
