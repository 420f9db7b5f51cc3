"""ZeRO (https://arxiv.org/abs/1910.02054) by DeepSpeed, in the convention of shares and sums.

Every rank's loss is its share of the whole batch's, and gradients are summed over ranks; DeepSpeed averages them. Its
stages 1 and 2 can be told to sum. For stage 3 its loss scale is 1 / R on R ranks, and it is handed R times the share:
autograd then sees the share itself, with any loss that is attached inside the model as it is, and gradients are scaled
by R once they are averaged.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
BUCKET = 500_000_000  # elements that DeepSpeed reduces at a time, unless one parameter has more


@dataclass(frozen=True)
class ZeroOptions:
    """stage: 1 splits optimizer state over ranks, 2 gradients too, 3 parameters too.

    offload: float32 weights, optimizer state and the update are in host memory; in stage 3, parameters too.
    dtype: float32, or bfloat16 for parameters and activations beside float32 weights in the optimizer.
    clip_norm: largest norm of the whole gradient. None: any.
    """

    stage: int
    offload: bool = False
    dtype: torch.dtype = torch.float32
    clip_norm: float | None = None


class Zero:
    """Trains a model whose state is split over all ranks of the world. Every method is collective.

    model: plain float32 parameters, whole and equal on every rank; it needs room for that much when it begins.
    optimizer: AdamW over them, whose state is made anew; learning rates are set in its `param_groups`.
    mesh: all ranks of the world in one dimension. Raises ValueError for parameters that are not float32.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.AdamW, mesh: DeviceMesh, options: ZeroOptions) -> None:
        parameters = list(model.parameters())
        if others := {parameter.dtype for parameter in parameters} - {torch.float32}:
            raise ValueError(f"DeepSpeed keeps weights in float32, not in {', '.join(map(str, others))}")
        self.optimizer, self.mesh, self.options = optimizer, mesh, options
        optimizer.state.clear()
        self._loss_factor = mesh.size() if options.stage == 3 else 1
        exact = {parameter: self._shard(parameter) for parameter in parameters if options.dtype != torch.float32}
        deepspeed = _import_deepspeed(mesh.device_type)
        with contextlib.redirect_stdout(None):  # it prints how much memory there is
            self._engine, *_ = deepspeed.initialize(
                args=SimpleNamespace(device_rank=_device_index(mesh.device_type)), model=model, optimizer=optimizer,
                config=_config(options, parameters, mesh.device_type), dist_init_required=False,
            )
        if options.stage == 3:
            self._engine.optimizer.override_loss_scale(1 / mesh.size())
        self._create_state()
        # DeepSpeed has taken the optimizer's weights from parameters that it had rounded.
        for parameter, weight in exact.items():
            self._fill(parameter, weight)
        if exact:
            self.show_weights()

    def forward(self, *inputs: Any) -> Any:
        """The model's output in training, for `backward`."""
        return self._engine(*inputs)

    def backward(self, share: Tensor, last: bool) -> None:
        """Add the gradients of this rank's share of the loss, a scalar; `last`: of a step's micro-batches.

        A share that is not finite makes the gradients so.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        poison = torch.where(share.detach().isfinite(), self._loss_factor, torch.nan)
        self._engine.backward(share * poison, scale_wrt_gas=False)

    def step(self) -> tuple[Tensor, bool]:
        """Clip and update, unless a gradient holds NaN or Inf on any rank; forget the gradients.

        Returns the norm of the whole gradient before clipping (a float64 scalar on the CPU, infinite where it is not
        finite), the same on every rank, and whether weights were updated.
        """
        self._engine.step()
        updated = self._engine.was_step_applied()
        if not updated and self.options.stage < 3:
            # With offload its stages 1 and 2 would go on adding to the bad sums of bfloat16 gradients.
            getattr(self._engine.optimizer, "averaged_gradients", {}).clear()
        return torch.tensor(float(self._engine.get_global_grad_norm()), dtype=torch.float64), updated

    def gradient(self, parameter: nn.Parameter) -> Tensor:
        """The whole gradient, summed over ranks: between a step's last `backward` and `step`. Float32."""
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(parameter).float() * self._loss_factor

    def weight(self, parameter: nn.Parameter) -> Tensor:
        """The whole float32 weight."""
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter)

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """`weight` and AdamW's `exp_avg`, `exp_avg_sq`: copies as float32 DTensors in host memory, sharded over dim 0.

        And `step`, a scalar. Of whole tensors a rank holds one at a time.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        moments = {key: self._shard(safe_get_full_optimizer_state(parameter, key)) for key in MOMENTS}
        step = next(iter(self.optimizer.state.values()))["step"]
        return {"weight": self._shard(self.weight(parameter)), **moments, "step": step.detach().cpu().clone()}

    def load(self, states: Iterable[tuple[nn.Parameter, dict[str, Tensor]]]) -> None:
        """Take over what `state` gave, in this layout or another, of every parameter.

        Raises ValueError where the parameters have taken different numbers of steps.
        """
        steps = set()
        for parameter, state in states:
            self._fill(parameter, state["weight"])
            for key in MOMENTS:
                self._fill(parameter, state[key], key)
            steps.add(state["step"].item())
        if len(steps) > 1:
            raise ValueError(f"DeepSpeed counts one step for all parameters, but they have taken {sorted(steps)}")
        for state in self.optimizer.state.values():
            state["step"].fill_(*steps)
        self.show_weights()

    @torch.no_grad()
    def show_weights(self) -> None:
        """Let forwards see the optimizer's weights, as after an update."""
        zero = self._engine.optimizer
        if self.options.stage < 3:
            return zero.update_lp_params()
        zero._partition_all_parameters()
        for index in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(index)
        zero.checkpoint_event_epilogue()  # gathers the small parameters that it keeps whole

    def _create_state(self) -> None:
        """AdamW's state, which would else exist from the first step on, and a checkpoint fill before."""
        zero = self._engine.optimizer
        flat = zero.fp32_partitioned_groups_flat if self.options.stage == 3 else [
            parameter for group in self.optimizer.param_groups for parameter in group["params"]
        ]
        for partition in flat:
            moments = {key: torch.zeros_like(partition, requires_grad=False) for key in MOMENTS}
            step = torch.zeros((), dtype=torch.float32, device=partition.device)
            self.optimizer.state[partition] = {"step": step, **moments}
        if self.options.stage < 3:
            zero._lazy_init_hp_params_optimizer_state()

    def _shard(self, whole: Tensor) -> DTensor:
        placement = Shard(0) if whole.ndim else Replicate()
        # On the CPU even where it was there: a view would keep the whole tensor.
        return distribute_tensor(whole.detach(), self.mesh, [placement], src_data_rank=None).to("cpu", copy=True)

    def _fill(self, parameter: nn.Parameter, shard: DTensor, moment: str | None = None) -> None:
        """Set what DeepSpeed holds of a weight, or of a moment of it."""
        from deepspeed import utils

        value, kind = shard.to(self.mesh.device_type).full_tensor(), "full"
        if self.options.stage == 3:
            value, kind = self._equal_part(value), "local"  # its setter of whole tensors does not take a shorter end
        if moment is None:
            getattr(utils, f"safe_set_{kind}_fp32_param")(parameter, value)
        else:
            getattr(utils, f"safe_set_{kind}_optimizer_state")(parameter, value, moment)

    def _equal_part(self, whole: Tensor) -> Tensor:
        """This rank's part of a tensor as stage 3 cuts it: flat, in equal parts, the last one filled up with zeros."""
        size = -(-whole.numel() // self.mesh.size())
        part = whole.flatten()[self.mesh.get_local_rank() * size :][:size]
        return nn.functional.pad(part, (0, size - part.numel()))


def _import_deepspeed(device_type: str) -> ModuleType:
    """DeepSpeed, quiet, without what it would compile on first use, and as if no world had been before."""
    os.environ["DS_ACCELERATOR"] = device_type  # else it guesses, and says so
    os.environ["LOCAL_RANK"] = str(_device_index(device_type))  # to it, the number of the device
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=r"`torch.distributed.\w+_tensor` is deprecated", category=FutureWarning)
    # Its all-reduce through shared memory takes a minute to compile.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _forget_earlier_worlds()
    return deepspeed


def _forget_earlier_worlds() -> None:
    """Its process group, and its numbers of modules and parameters, which it wants alike on all ranks.

    Ranks that live on from world to world have not all been in the same ones.
    """
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
    from deepspeed.runtime.zero.partition_parameters import Init
    from deepspeed.utils import groups

    groups._WORLD_GROUP = None
    Init.param_id = 0
    DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][:] = [0]


def _device_index(device_type: str) -> int:
    return torch.cuda.current_device() if device_type == "cuda" else 0


def _config(options: ZeroOptions, parameters: list[nn.Parameter], device_type: str) -> dict[str, Any]:
    sizes = [parameter.numel() for parameter in parameters]
    zero: dict[str, Any] = {"stage": options.stage, "reduce_bucket_size": min(sum(sizes), max(BUCKET, *sizes))}
    if options.offload:
        host = {"device": "cpu", "pin_memory": device_type == "cuda"}
        zero |= {"offload_optimizer": host, **({"offload_param": host} if options.stage == 3 else {})}
    return {
        "train_micro_batch_size_per_gpu": 1,  # it must be said, and is only counted
        "gradient_clipping": options.clip_norm or 0.0,
        "gradient_allreduce_op": "mean" if options.stage == 3 else "sum",
        "bf16": {"enabled": options.dtype == torch.bfloat16, "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32",
        # torch's fused AdamW, on either device, for every layout; DeepSpeed's own would have to be compiled.
        "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
