"""`kernels` is also the name of a Hugging Face package that transformers looks for: ours must not be taken for it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import kernels, torch, transformers
from transformers.utils import import_utils

assert kernels.__file__.startswith({root!r}), kernels.__file__
assert not import_utils.is_kernels_available(), "transformers takes our package for the hub's"

small = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
             head_dim=8, vocab_size=32)
experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8)
for name, fields in (("Llama", small), ("Qwen3Moe", small | experts)):
    model = getattr(transformers, name + "ForCausalLM")(getattr(transformers, name + "Config")(**fields))
    tokens = torch.arange(12).view(2, 6)
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    assert torch.isfinite(loss)
    code = [type(module).__module__ for module in model.modules()]
    assert not any(home == "kernels" or home.startswith("kernels.") for home in code), code
print("beside each other")
"""


def test_transformers_builds_and_trains_its_models_beside_our_kernels():
    """In a fresh interpreter with our package imported first, as a program that uses both would have it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", PROBE.format(root=str(ROOT))], env=environment,
                            capture_output=True, text=True, timeout=120)
    assert result.stdout == "beside each other\n", result.stderr
