"""How many sequences each step takes and how many steps there are: pure functions of the recipe.

The position in the data is one integer, the samples consumed before a step, and follows from the step alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from framework.recipe.schema import Data, Training


@dataclass(frozen=True)
class Phase:
    """Steps of one batch size. `first_step` counts from 1; `samples_before` are the sequences seen by then."""

    first_step: int
    batch_size: int
    samples_before: int


@dataclass(frozen=True)
class Budget:
    """The batch sizes of a run over its steps 1..num_steps. Sizes in sequences of `seq_len` tokens."""

    phases: tuple[Phase, ...]
    num_steps: int
    seq_len: int

    def batch_size(self, step: int) -> int:
        """Sequences of a step over all ranks."""
        return self._phase(step).batch_size

    def samples_before(self, step: int) -> int:
        """Sequences consumed before a step; also the index of the step's first sample."""
        phase = self._phase(step)
        return phase.samples_before + (step - phase.first_step) * phase.batch_size

    def tokens_after(self, step: int) -> int:
        """Tokens seen when a step is over."""
        return (self.samples_before(step) + self.batch_size(step)) * self.seq_len

    def _phase(self, step: int) -> Phase:
        assert step >= 1, "steps count from 1"
        return [phase for phase in self.phases if phase.first_step <= step][-1]


def make_budget(data: Data, training: Training) -> Budget:
    """The budget of `training.steps` or `training.tokens`, whichever the recipe gives.

    A token budget is met by the first step that reaches it. A phase of `data.batch_ramp` lasts until the first step
    that reaches its threshold.
    """
    phases = _phases(data)
    if training.steps is not None:
        return Budget(phases, training.steps, data.seq_len)
    samples = -(-training.tokens // data.seq_len)
    last = [phase for phase in phases if phase.samples_before < samples][-1]
    num_steps = last.first_step - 1 + -(-(samples - last.samples_before) // last.batch_size)
    return Budget(phases, num_steps, data.seq_len)


def _phases(data: Data) -> tuple[Phase, ...]:
    phases, first_step, samples = [], 1, 0
    for threshold, batch_size in sorted(data.batch_ramp.items()):
        num_steps = -(-(threshold - samples * data.seq_len) // (batch_size * data.seq_len))
        if num_steps > 0:
            phases.append(Phase(first_step, batch_size, samples))
            first_step, samples = first_step + num_steps, samples + num_steps * batch_size
    return (*phases, Phase(first_step, data.batch_size, samples))
