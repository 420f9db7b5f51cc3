"""Numbers from the host to a device, in order with the device's work, which the host does not wait for.

A copy out of ordinary memory waits until the device has done all that it was given before; a GPU is then idle until the
host has launched what comes next.
"""

import numpy as np
import torch
from torch import Tensor


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor there; on the CPU of the same memory."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def filled(number: float, device: torch.device) -> Tensor:
    """[1], float64, of a number that the host knows."""
    return torch.full((1,), number, dtype=torch.float64, device=device)
