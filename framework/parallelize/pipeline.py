"""Pipeline parallelism: each rank holds the layers of its stages; activations go from one to the next.

B batch, S sequence, D model width.
"""

import logging
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from framework.model.context import Context
from framework.model.language_model import LanguageModel
from framework.parallelize.context import own_context
from parallel import Mesh
from parallel.context import own_part
from parallel.pipeline import Pipeline, group_of_ends, stages_of

log = logging.getLogger(__name__)


class Stage(nn.Module):
    """Consecutive layers of a language model; the first stage also embeds tokens, the last also computes the loss.

    The modules are the model's own. dtype: of activations. num_sequences: as in `Context`, of the step under way.
    """

    def __init__(
        self, model: LanguageModel, layers: range, number: int, num_stages: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        is_first, is_last = number == 0, number == num_stages - 1
        self.embedding = model.embedding if is_first else None
        self.layers = nn.ModuleDict({str(index): model.layers[str(index)] for index in layers})
        self.final_norm = model.final_norm if is_last else None
        self.unembedding = model.unembedding if is_last else None
        self.num_stages, self.dtype = num_stages, dtype
        self.num_sequences = 1.0

    def forward(
        self, x: Tensor, targets_BS: Tensor | None = None, document_BS: Tensor | None = None,
        position_BS: Tensor | None = None,
    ) -> Tensor:
        """x: int64 tokens [B, S] on the first stage, else activations [B, S, D], which all but the last return.

        The last returns what the model does for targets_BS: the sum of cross entropies.
        """
        context = Context(position_BS, document_BS, self.num_sequences)
        x_BSD = x if self.embedding is None else self.embedding(x)
        for layer in self.layers.values():
            x_BSD = layer(x_BSD, context)
        return x_BSD if self.unembedding is None else self.unembedding(self.final_norm(x_BSD), targets_BS)


def cut_into_stages(model: LanguageModel, mesh: Mesh, stages: Sequence[range]) -> None:
    """Leave in the model only what this rank's stages hold, under the names of the whole model.

    stages: the layers of each stage, from the first to the last; their number is a multiple of pp. The last stage of a
    model with tied embeddings keeps the one matrix too, under the embedding's name.
    """
    num_ranks = mesh.pp.size()
    mine = stages_of(mesh.pp.get_local_rank(), num_ranks, len(stages))
    held = [str(index) for number in mine for index in stages[number]]
    model.layers = nn.ModuleDict({name: model.layers[name] for name in held})
    if len(stages) - 1 not in mine:
        model.final_norm = model.unembedding = None
    elif model.tied:
        model.unembedding.declarations = model.embedding.declarations
        model.embedding = model.unembedding
    if 0 not in mine and not (model.tied and model.unembedding is not None):
        model.embedding = None
    layers = ", ".join(f"{stages[number].start}-{stages[number].stop - 1}" for number in mine)
    log.info("pipeline parallel: %d stages over %d ranks, here layers %s", len(stages), num_ranks, layers)


def make_stages(model: LanguageModel, mesh: Mesh, stages: Sequence[range], dtype: torch.dtype) -> None:
    """Set `model.stages`, by number. Apply when the model's layers are what they will be, before `fully_shard`."""
    mine = stages_of(mesh.pp.get_local_rank(), mesh.pp.size(), len(stages))
    model.stages = {number: Stage(model, stages[number], number, len(stages), dtype) for number in mine}


class LanguageModelPipeline:
    """Trains and evaluates a model that was cut into stages. Every method is collective over the ranks of `mesh`.

    model: from `parallelize`, with its weights on their device. schedule: 1f1b, interleaved or zero_bubble.
    split_backward: false where the model recomputes activations or has compiled blocks.
    """

    def __init__(self, model: LanguageModel, mesh: Mesh, schedule: str, split_backward: bool = True) -> None:
        self.model, self.mesh = model, mesh
        stage = next(iter(model.stages.values()))
        self.pipeline = Pipeline(
            model.stages, stage.num_stages, mesh, schedule, stage.dtype, model.d_model, split_backward
        )
        self._ends = group_of_ends(mesh) if model.tied else None

    @property
    def bubble_share(self) -> float:
        """The share of the time for which ranks wait in the schedule of the last step."""
        return self.pipeline.bubble_share

    def counted_parameters(self) -> list[nn.Parameter]:
        """This rank's parameters but for copies: a tied matrix stands on the first and the last stage."""
        copy = self.model.embedding.weight if self._ends and self.pipeline.holds_last else None
        return [parameter for parameter in self.model.parameters() if parameter is not copy]

    def train(
        self, tokens_BS: Tensor, context: Context, targets_BS: Tensor, num_micro_batches: int, num_tokens: int
    ) -> Tensor:
        """Back-propagate this rank's share of a step's loss, in equal micro-batches of its B sequences.

        Returns the share, without auxiliary losses: float64, zero but on the last stage.
        """
        share = self.pipeline.train(num_micro_batches=num_micro_batches, num_tokens=num_tokens,
                                    **self._inputs(tokens_BS, context, targets_BS))
        if self._ends is not None:
            dist.all_reduce(self.model.embedding.weight.grad.to_local(), group=self._ends)
        return share

    def evaluate(self, tokens_BS: Tensor, context: Context, targets_BS: Tensor) -> Tensor:
        """The sum of this rank's cross entropies, in as many micro-batches as ranks: zero but on the last stage.

        B must be a multiple of the number of ranks.
        """
        with torch.no_grad():
            return self.pipeline.evaluate(num_micro_batches=self.mesh.pp.size(),
                                          **self._inputs(tokens_BS, context, targets_BS))

    def _inputs(self, tokens_BS: Tensor, context: Context, targets_BS: Tensor) -> dict[str, Tensor]:
        """What the stages are given: tensors alone, each with a row for every sequence, of this rank's part."""
        for stage in self.model.stages.values():
            stage.num_sequences = context.num_sequences
        if self.mesh.cp.size() > 1:
            context = own_context(context, tokens_BS.shape[1], self.mesh, tokens_BS.device)
            tokens_BS, targets_BS = own_part(tokens_BS, self.mesh.cp), own_part(targets_BS, self.mesh.cp)
        position_BS = context.position_BS
        if position_BS is not None:
            position_BS = position_BS.expand(len(tokens_BS), -1)
        inputs = dict(tokens_BS=tokens_BS, targets_BS=targets_BS, document_BS=context.document_BS,
                      position_BS=position_BS)
        return {name: tensor for name, tensor in inputs.items() if tensor is not None}
