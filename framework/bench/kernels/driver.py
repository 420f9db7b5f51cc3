"""A driver for Triton of a GPU that is not there: enough of one to compile, nothing to run."""

import triton
from triton.backends.compiler import GPUTarget

SHARED_BYTES = 227 * 1024
"""Of a program, on sm_90."""


class NoGPU:
    """What Triton asks of its driver on the way to machine code for sm_90."""

    class utils:
        @staticmethod
        def get_device_properties(device: int) -> dict[str, int]:
            return {"max_shared_mem": SHARED_BYTES, "max_num_regs": 65536, "multiprocessor_count": 132, "warpSize": 32}

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        assert device == 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


def pretend() -> None:
    """From here on this process compiles for sm_90."""
    triton.runtime.driver.set_active(NoGPU())
