"""Every stage of ZeRO on two ranks takes one rank's steps."""

import itertools
from contextlib import closing

import pytest
import torch
from torch import Tensor, nn

from parallel import RankPool
from parallel.zero import Zero, ZeroOptions

pytest.importorskip("deepspeed", reason="ZeRO needs the extra `zero`")

STEPS, SAVED_AFTER, BATCH = 5, 2, 8
RATES = [0.01, 0.008, 0.02, 0.01, 0.005]
MODES = list(itertools.product((1, 2, 3), (False, True)))


class AttachLoss(torch.autograd.Function):
    """An auxiliary loss attached inside the model: the backward adds its gradient once, however losses are scaled."""

    @staticmethod
    def forward(ctx, y: Tensor, loss: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient.new_ones(())


class Model(nn.Module):
    """Sizes that two ranks do not divide; one weight that the last batch leaves without any effect."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(7, 33), nn.Linear(33, 33, bias=False), nn.Linear(33, 5)
        self.scale = nn.Parameter(torch.ones(3, 11))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.to(self.first.weight.dtype)).tanh()
        x = AttachLoss.apply(x, x.float().square().sum() / BATCH)
        return self.last((self.second(x) * self.scale.flatten()).tanh()).float()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 7, generator=generator), 3 * torch.randn(BATCH, 5, generator=generator)


def adamw(model: nn.Module) -> torch.optim.AdamW:
    """Two groups; the second learns at half the rate of the first."""
    decayed = [p for p in model.parameters() if p.ndim > 1 and p is not model.scale]
    others = [p for p in model.parameters() if p.ndim == 1 or p is model.scale]
    groups = [{"params": decayed, "factor": 1.0, "weight_decay": 0.1},
              {"params": others, "factor": 0.5, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), fused=True)


def set_rates(optimizer: torch.optim.AdamW, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = RATES[step] * group["factor"]


@pytest.fixture(scope="module")
def ranks():
    """Of this file alone: DeepSpeed's engines keep their groups, whose threads would slow the tests after these."""
    with closing(RankPool()) as pool:
        yield pool


@pytest.fixture(scope="module")
def reference() -> dict:
    """What one process does without DeepSpeed."""
    model = Model()
    optimizer, losses, norms = adamw(model), [], []
    for step in range(STEPS):
        set_rates(optimizer, step)
        x, y = batch(step)
        loss = (model(x) - y).square().sum() / BATCH
        loss.backward()
        if step == 0:
            gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return {"losses": losses, "norms": norms, "gradients": gradients, "weights": weights}


def train(zero: Zero, named: dict[str, nn.Parameter], steps: range, saved: dict | None = None) -> dict:
    """Steps of two micro-batches on this rank's share; what each measured, and how the first one changed weights."""
    from parallel.collectives import all_sum

    rank, count = zero.mesh.get_local_rank(), zero.mesh.size()
    result = {"losses": [], "norms": [], "saved": saved}
    for step in steps:
        set_rates(zero.optimizer, step)
        total = torch.zeros(())
        parts = [part.chunk(count)[rank].chunk(2) for part in batch(step)]
        for last, (x, y) in enumerate(zip(*parts, strict=True)):
            share = (zero.forward(x) - y).square().sum() / BATCH
            zero.backward(share, last == 1)
            total += share.detach()
        if step == 0:
            result["gradients"] = {name: zero.gradient(p) for name, p in named.items()}
        norm, updated = zero.step()
        assert updated
        result["norms"].append(norm.item())
        result["losses"].append(all_sum(total, zero.mesh.get_group()).item())
        if step == 0:
            result["weights"] = {name: zero.weight(p) for name, p in named.items()}
        if step == SAVED_AFTER:
            result["saved"] = {name: zero.state(p) for name, p in named.items()}
    return result


def make(stage: int, offload: bool, dtype: torch.dtype = torch.float32) -> tuple[Zero, dict[str, nn.Parameter]]:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    model = Model()
    zero = Zero(model, adamw(model), init_device_mesh("cpu", (dist.get_world_size(),)),
                ZeroOptions(stage, offload, dtype, clip_norm=1.0))
    return zero, dict(model.named_parameters())


def all_modes() -> dict:
    """Each mode from its start, and from where another mode was after SAVED_AFTER."""
    results, saved = {}, None
    for mode in MODES:
        whole = train(*make(*mode), range(STEPS))
        resumed, named = make(*mode)
        resumed.load((p, (saved or whole["saved"])[name]) for name, p in named.items())
        saved = whole.pop("saved")
        results[mode] = whole | {"resumed": train(resumed, named, range(SAVED_AFTER + 1, STEPS))["losses"]}
    return results


@pytest.fixture(scope="module")
def trained(ranks):
    """By mode, on two ranks and then on one, whose world DeepSpeed must not take for the first."""
    return {2: ranks.run(2, all_modes, timeout=300)[1], 1: ranks.run(1, all_modes, timeout=300)[0]}


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_steps_are_one_ranks(trained, reference, num_ranks, mode):
    got = trained[num_ranks][mode]
    assert got["losses"] == pytest.approx(reference["losses"], rel=1e-5)
    assert got["norms"] == pytest.approx(reference["norms"], rel=1e-5)
    assert max(reference["norms"]) > 1.5  # so that clipping has something to do
    for kind in ("gradients", "weights"):
        for name, expected in reference[kind].items():
            torch.testing.assert_close(got[kind][name], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_state_goes_from_one_mode_to_another(trained, reference, num_ranks, mode):
    assert trained[num_ranks][mode]["resumed"] == pytest.approx(reference["losses"][SAVED_AFTER + 1 :], rel=1e-5)


def bfloat16_modes() -> dict:
    results = {}
    for mode in MODES:
        zero, named = make(*mode, torch.bfloat16)
        start = {name: zero.weight(p) for name, p in named.items()}
        results[mode] = train(zero, named, range(STEPS)) | {"start": start, "saved": None}
    return results


def test_bfloat16_begins_with_the_exact_weights_and_stays_near_float32(ranks, reference):
    exact = dict(Model().named_parameters())
    for mode, got in ranks.run(2, bfloat16_modes, timeout=300)[0].items():
        assert all(torch.equal(got["start"][name], exact[name]) for name in exact), mode
        assert got["losses"] != pytest.approx(reference["losses"], rel=1e-5)
        assert got["losses"] == pytest.approx(reference["losses"], rel=0.01)
        assert got["norms"] == pytest.approx(reference["norms"], rel=0.02)


def poisoned(dtype: torch.dtype) -> dict:
    """A share that is not finite on one rank, which no gradient would show; then the steps from the first on."""
    results = {}
    for mode in MODES:
        zero, named = make(*mode, dtype)
        before = {name: zero.weight(p) for name, p in named.items()}
        share = zero.forward(batch(0)[0][:4]).square().sum()
        zero.backward(share + (torch.inf if zero.mesh.get_local_rank() == 1 else 0.0), last=True)
        norm, updated = zero.step()
        assert not updated and norm.isinf(), mode
        assert all(torch.equal(zero.weight(p), before[name]) for name, p in named.items()), mode
        results[mode] = train(zero, named, range(STEPS))["losses"]
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_on_one_rank_updates_nothing_on_any(ranks, reference, dtype):
    for results in ranks.run(2, poisoned, dtype, timeout=300):
        for losses in results.values():
            assert losses == pytest.approx(reference["losses"], rel=1e-5 if dtype == torch.float32 else 0.01)


def refused() -> list[str]:
    from torch.distributed.device_mesh import init_device_mesh

    said, mesh = [], init_device_mesh("cpu", (1,))
    with pytest.raises(ValueError) as caught:
        wide = Model().double()
        Zero(wide, adamw(wide), mesh, ZeroOptions(1))
    said.append(str(caught.value))
    zero, named = make(2, False)
    states = {name: zero.state(p) for name, p in named.items()}
    states["scale"]["step"] += 3
    with pytest.raises(ValueError) as caught:
        zero.load((p, states[name]) for name, p in named.items())
    return [*said, str(caught.value)]


def test_what_deepspeed_cannot_hold_is_refused(ranks):
    wide, uneven = ranks.run(1, refused)[0]
    assert "float64" in wide and "[0.0, 3.0]" in uneven


def printed(folder) -> list[str]:
    """What reaches the terminal of a rank from below Python too."""
    import os
    import sys

    kept = os.dup(1), os.dup(2)
    with open(folder / f"said{os.getpid()}", "w+") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        try:
            for stage in (1, 2, 3):
                for dtype in (torch.float32, torch.bfloat16):
                    train(*make(stage, False, dtype), range(1))
            sys.stdout.flush(), sys.stderr.flush()
        finally:
            os.dup2(kept[0], 1), os.dup2(kept[1], 2)
        file.seek(0)
        return file.read().splitlines()


def test_deepspeed_is_quiet(ranks, tmp_path):
    assert ranks.run(2, printed, tmp_path, timeout=300) == [[], []]
