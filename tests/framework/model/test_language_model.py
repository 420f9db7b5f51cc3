"""Properties that hold for every kind of sublayer: causality, isolation of documents, caches, and the loss."""

import pytest
import torch
import torch.nn.functional as F

from framework.errors import UserError
from framework.model import Context, generate
from framework.model.generate import generate_batch, sample

SEQ_LEN = 13
SMALL = dict(
    attention=dict(num_heads=4, num_kv_heads=2), ffn=dict(d_ff=24),
    moe=dict(num_experts=4, top_k=2, d_expert=12), mamba=dict(d_state=4, head_dim=16, chunk_size=4),
)
KINDS = {
    "attention": dict(pattern="*"),
    "attention_window": dict(pattern="W", sublayers=dict(W=dict(kind="attention", window=4, qk_norm="full"))),
    "attention_no_positions": dict(pattern="N", sublayers=dict(N=dict(kind="attention", rope=False, qk_norm="head"))),
    "ffn": dict(pattern="-"),
    "transformer": dict(pattern="(*-)x2", tie_embeddings=True),
    "parallel": dict(pattern="[*-]x2", norm="layernorm", multipliers=dict(residual=0.5, logits=2.0, embedding=3.0)),
    "moe": dict(pattern="*E"),
    "moe_sigmoid_shared": dict(pattern="*E", moe=dict(
        num_experts=4, top_k=2, d_expert=12, router="sigmoid", selection_bias_rate=0.1, num_shared_experts=2,
        shared_expert_router=True, output_norm=True, capacity_factor=1.0,
    )),
    "mamba1": dict(pattern="m"),
    "mamba2": dict(pattern="M"),
    "hybrid": dict(pattern="[mE]*ME-"),
}


@pytest.fixture(params=KINDS)
def model(request, random_model):
    """A float64 model of each kind, in evaluation mode."""
    return random_model(dtype=torch.float64, **(SMALL | KINDS[request.param])).eval()


def tokens(batch_size: int = 2, length: int = SEQ_LEN, seed: int = 5) -> torch.Tensor:
    return torch.randint(0, 61, (batch_size, length), generator=torch.Generator().manual_seed(seed))


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_later_tokens_do_not_reach_earlier_outputs(model):
    tokens_BS = tokens()
    logits_BSV = model(tokens_BS, Context())
    for place in (0, 5, SEQ_LEN - 1):
        changed_BS = tokens_BS.clone()
        changed_BS[:, place] = (changed_BS[:, place] + 1) % 61
        changed_BSV = model(changed_BS, Context())
        close(changed_BSV[:, :place], logits_BSV[:, :place])
        assert (changed_BSV[:, place] - logits_BSV[:, place]).abs().max() > 1e-3


def test_packed_documents_equal_separate_ones(model):
    lengths = (3, 1, 9)
    tokens_BS = tokens()
    document_BS = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)).expand(2, -1)
    position_BS = torch.cat([torch.arange(length) for length in lengths]).expand(2, -1)
    packed_BSV = model(tokens_BS, Context(position_BS, document_BS))
    parts = [model(part, Context()) for part in tokens_BS.split(lengths, dim=1)]
    close(packed_BSV, torch.cat(parts, dim=1))
    # Rotary positions are relative, so that counting on over documents changes nothing.
    close(model(tokens_BS, Context(document_BS=document_BS)), packed_BSV)


@pytest.mark.parametrize("pieces", [(SEQ_LEN,), (4, 9), (1,) * SEQ_LEN, (6, 1, 1, 3, 2)])
def test_cached_pieces_equal_one_forward(model, pieces):
    tokens_BS = tokens()
    cache = model.new_cache(2, SEQ_LEN, torch.device("cpu"), torch.float64)
    parts = [model(part, Context(), cache=cache) for part in tokens_BS.split(pieces, dim=1)]
    close(torch.cat(parts, dim=1), model(tokens_BS, Context()))


def test_greedy_generation_equals_recomputing_everything(model):
    prompt_BS = tokens(length=4)
    produced_BS = torch.stack(list(generate_batch(model, prompt_BS, 7, temperature=0)), dim=1)
    expected_BS = prompt_BS
    for _ in range(7):
        next_B1 = model(expected_BS, Context())[:, -1:].argmax(-1)
        expected_BS = torch.cat((expected_BS, next_B1), dim=1)
    assert torch.equal(produced_BS, expected_BS[:, 4:])


def test_loss_is_the_sum_over_targets(model):
    tokens_BS, targets_BS = tokens(), tokens(seed=6)
    targets_BS[0, 3:5] = -100
    loss = model(tokens_BS, Context(), targets_BS)
    logits_BSV = model(tokens_BS, Context())
    assert loss.dtype == logits_BSV.dtype == torch.float64 and loss.shape == ()
    close(loss, F.cross_entropy(logits_BSV.flatten(0, 1), targets_BS.flatten(), reduction="sum"))


def test_every_parameter_gets_a_gradient(model):
    model.train()
    model(tokens(), Context(num_sequences=2.0), tokens(seed=6)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_bfloat16_is_near_and_gives_a_float32_loss(random_model):
    fields = SMALL | KINDS["hybrid"]
    model = random_model(**fields)
    exact = model(tokens(), Context(), tokens(seed=6))
    # Every block takes its dtype from the embedding's.
    model.embedding.bfloat16()
    rough = model(tokens(), Context(), tokens(seed=6))
    assert rough.dtype == torch.float32
    assert abs(rough - exact) / exact < 0.02


def test_generation_stops_and_repeats_itself(random_model):
    model = random_model(pattern="*-", **SMALL).eval()
    free = list(generate(model, [1, 2, 3], 12, seed=4))
    assert len(free) == 12 and free == list(generate(model, [1, 2, 3], 12, seed=4))
    assert free != list(generate(model, [1, 2, 3], 12, seed=5))
    stopped = list(generate(model, [1, 2, 3], 12, seed=4, stop=free[5]))
    assert stopped == free[: free.index(free[5])]


def test_generation_refuses_training_mode(random_model):
    with pytest.raises(AssertionError, match="eval"):
        next(generate(random_model(pattern="-", **SMALL), [1], 1))


@pytest.mark.parametrize("wrong", [
    dict(prompt_ids=[]), dict(max_new_tokens=-1), dict(temperature=-1.0), dict(temperature=float("nan")), dict(top_k=0),
    dict(top_p=0.0), dict(top_p=1.5),
])
def test_options_out_of_range(random_model, wrong):
    model = random_model(pattern="-", **SMALL).eval()
    with pytest.raises(UserError, match="allowed"):
        generate(model, **({"prompt_ids": [1], "max_new_tokens": 1} | wrong))  # before the first token is asked for


def test_sampling_follows_the_probabilities():
    logits_V = torch.tensor([0.1, 0.5, 0.05, 0.35]).log()

    def shares(**options) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        options = {"temperature": 1.0, "top_k": None, "top_p": None} | options
        drawn = sample(logits_V.expand(20_000, -1), generator=generator, **options)
        return torch.bincount(drawn, minlength=4) / 20_000

    cases = [
        (dict(), [0.1, 0.5, 0.05, 0.35]),
        (dict(top_k=2), [0, 0.5 / 0.85, 0, 0.35 / 0.85]),
        (dict(top_k=9), [0.1, 0.5, 0.05, 0.35]),
        (dict(top_p=0.6), [0, 0.5 / 0.85, 0, 0.35 / 0.85]),
        (dict(top_p=0.4), [0, 1, 0, 0]),
        (dict(top_p=1e-9), [0, 1, 0, 0]),
        (dict(temperature=0.5), [0.01 / 0.385, 0.25 / 0.385, 0.0025 / 0.385, 0.1225 / 0.385]),
        *((dict(temperature=cold), [0, 1, 0, 0]) for cold in (0, 1e-320, 1e-45, 2e-38, 1e-30)),
    ]
    for options, expected in cases:
        expected = torch.tensor(expected, dtype=torch.float32)
        torch.testing.assert_close(shares(**options), expected, rtol=0, atol=0.015, msg=str(options))
