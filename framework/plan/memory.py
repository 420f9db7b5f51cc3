"""The most memory that a step takes on a rank: a walk through its forwards and backwards.

Between steps a rank keeps weights, and two moments of Adam, in float32. A forward adds what each layer keeps for the
backward, which takes it away again and leaves a gradient. On the way there are weights gathered for use, buffers of
gradients that are summed over ranks, and what a layer or the loss works with. The peak is where all together is most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from framework.plan.activations import kept_by_layer, make_forward
from framework.plan.holdings import EMBEDDING, HEAD, Unit, units_on
from framework.plan.schedule import micro_batches_of, most_in_flight

if TYPE_CHECKING:
    from framework.plan.outline import Outline

CHUNK_LOGITS, TILE = 2**29, 128
"""Logits that exist at one time on a GPU, and of how many tokens chunks are multiples (`kernels.cross_entropy`)."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank of pp, the first of all that stand on it.

    parameters, gradients, optimizer: what it keeps of them, gradients from backward to update. At the peak: partial,
    the gradients that are there by then, whole ones where they wait to be summed; activations, kept for the backward;
    gathered: weights for use, and buffers of what is summed; working: what the layer or the loss under way holds;
    pipeline: what was or will be received. peak: these with parameters and optimizer. moment: of it, in words.
    """

    pipeline_rank: int
    parameters: int
    gradients: int
    optimizer: int
    partial: int
    activations: int
    gathered: int
    working: int
    pipeline: int
    peak: int
    moment: str


@dataclass(frozen=True)
class _Moment:
    name: str
    gradients: int
    activations: int
    gathered: int
    working: int

    @property
    def total(self) -> int:
        return self.gradients + self.activations + self.gathered + self.working


def memory_on(outline: Outline, pipeline_rank: int) -> Memory:
    """Of a rank of pp."""
    units = units_on(outline, pipeline_rank)
    kept = sum(unit.kept for unit in units)
    walk = _Walk(outline, pipeline_rank, units)
    peak = max(walk.moments(), key=lambda moment: moment.total)
    pipeline = walk.received()
    return Memory(
        pipeline_rank, 4 * kept, 4 * kept, 8 * kept, peak.gradients, peak.activations, peak.gathered, peak.working,
        pipeline, 12 * kept + pipeline + peak.total, peak.name,
    )


class _Walk:
    """Through the largest forward and its backward, after as many other forwards as a pipeline has in flight."""

    def __init__(self, outline: Outline, pipeline_rank: int, units: list[Unit]) -> None:
        recipe = outline.recipe
        self.outline, self.rank, self.sizes = outline, pipeline_rank, outline.sizes
        self.forward, self.layers = make_forward(outline), outline.layers_on(pipeline_rank)
        self.units = {place: [unit for unit in units if unit.layer == place]
                      for place in (EMBEDDING, *self.layers, HEAD)}
        self.recompute, self.num_forwards = recipe.training.recompute, micro_batches_of(recipe)
        kept = {layer: kept_by_layer(outline, layer, self.forward) for layer in self.layers}
        self.kept = {layer: self._kept(kept[layer].everything, kept[layer].selective) for layer in self.layers}
        self.working = {layer: kept[layer].working for layer in self.layers}
        self.repeated = {layer: self._repeated(kept[layer].everything, kept[layer].selective) for layer in self.layers}
        # Stages' gradients and, with several forwards, everyone's wait whole for the last backward.
        self.waits = self.sizes.pp > 1 or self.num_forwards > 1

    def moments(self) -> list[_Moment]:
        before = self._other_forwards()
        found = [self._loss(before)] if self.units[HEAD] or self.rank == self.sizes.pp - 1 else []
        activations = before + sum(self.kept.values()) + 8 * self.forward.gathered_tokens
        for place in reversed(self.layers):
            found.append(self._backward(place, activations))
            activations -= self.kept[place]
        return found

    def received(self) -> int:
        """Activations and gradients of neighbours' stages: a place for each forward, there from the beginning."""
        if self.sizes.pp == 1:
            return 0
        stages = self.outline.stages_on(self.rank)
        last = len(self.outline.architecture.layers)
        places = sum((stage.start > 0) + (stage.stop < last) for stage in stages)
        return places * self.num_forwards * self.forward.stream

    def _kept(self, everything: int, selective: int) -> int:
        if self.recompute == "none":
            return everything
        return self.forward.stream + (selective if self.recompute == "selective" else 0)

    def _repeated(self, everything: int, selective: int) -> int:
        """What the repetition of a layer's forward makes again."""
        if self.recompute == "selective":
            # Results that only the next layer sees are kept, but are none of what this layer's backward needs.
            return max(0, everything - selective + 2 * self.forward.gathered)
        return everything if self.recompute == "full" else 0

    def _other_forwards(self) -> int:
        """What earlier forwards of a pipeline keep while this one runs."""
        num_stages = len(self.outline.stages_on(self.rank))
        others = most_in_flight(self.outline.recipe, self.rank, self.num_forwards) - num_stages
        return max(0, others) * (sum(self.kept.values()) + self.forward.stream) // num_stages

    def _loss(self, before: int) -> _Moment:
        """`kernels.cross_entropy`: a chunk of logits, the gradients of its input and, in float32, of its weight."""
        forward, model = self.forward, self.outline.recipe.model
        rows = -(-model.vocab_size // self.sizes.tp)
        chunk = min(forward.gathered_tokens, max(TILE, CHUNK_LOGITS // rows // TILE * TILE))
        numbers = rows * model.d_model
        product = 0 if forward.itemsize == 4 else forward.itemsize * numbers
        working = forward.itemsize * chunk * rows + 4 * numbers + product + forward.gathered
        norm = 4 * forward.tokens * model.d_model + forward.gathered + (forward.stream if forward.itemsize == 2 else 0)
        kept = before + sum(self.kept.values()) + norm
        arriving = sum(unit.itemsize * unit.size for unit in self.units[HEAD] if not unit.in_place)
        return _Moment("loss", self._gradients([]), kept, self._at_rest() + arriving, working)

    def _backward(self, layer: int, activations: int) -> _Moment:
        done = [other for other in self.layers if other > layer]
        working = self.working[layer] + self.repeated[layer] + 2 * self.forward.stream
        gathered = self._at_rest(backward=True) + self._under_way(layer)
        return _Moment(f"backward of layer {layer}", self._gradients(done), activations, gathered, working)

    def _gradients(self, done: list[int]) -> int:
        """Of the layers that a backward has gone through; where gradients wait, of all, from an earlier backward."""
        if self.waits:
            return sum(4 * unit.size for units in self.units.values() for unit in units)
        return sum(4 * unit.kept for place in (*done, HEAD) for unit in self.units[place]) if done else 0

    def _at_rest(self, backward: bool = False) -> int:
        """Weights that stay gathered: of a pipeline's stages, of the head until its backward is over; one rank's own
        copies in bfloat16."""
        total = 0
        for unit in (unit for units in self.units.values() for unit in units):
            if backward and unit.layer == HEAD and self.sizes.pp == 1:
                continue
            if unit.in_place:
                total += 0 if unit.itemsize == 4 else unit.itemsize * unit.size
            elif not unit.is_freed:
                total += unit.itemsize * unit.size
        return total

    def _under_way(self, layer: int) -> int:
        """Around a layer's backward: its weights, those of the one before in a buffer, its gradients, and in float32
        what the one after sends to be summed."""
        index = self.layers.index(layer)
        own = self._sizes(layer)
        before = self._sizes(self.layers[index - 1]) if index else 0
        after = self._sizes(self.layers[index + 1] if index + 1 < len(self.layers) else HEAD, 4)
        return 2 * own + before + (0 if self.waits else after)

    def _sizes(self, layer: int | str, itemsize: int | None = None) -> int:
        return sum((itemsize or unit.itemsize) * unit.size for unit in self.units[layer]
                   if not unit.in_place and (unit.is_freed or unit.layer == HEAD))
