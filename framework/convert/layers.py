"""How sublayers of a pattern make the layers of another model, and how its config.json says which is which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from framework.convert.fields import Config, Mismatch
from framework.recipe.architecture import LETTERS

if TYPE_CHECKING:
    from framework.recipe import Architecture

KIND_LETTERS = {kind: letter for letter, kind in LETTERS.items()}


@dataclass(frozen=True)
class Layers:
    """Every layer is alike: one sublayer, or a mixer and what follows it.

    kinds: which kinds of sublayer may stand at each place of a layer. per_layer: how many places there are.
    """

    kinds: tuple[tuple[str, ...], ...]

    @property
    def per_layer(self) -> int:
        return len(self.kinds)

    def letters(self, architecture: Architecture) -> list[str]:
        """What each layer of theirs is made of, as "*E". Raises Mismatch where the sublayers do not make layers."""
        sublayers = []
        for number, layer in enumerate(architecture.layers, start=1):
            if len(layer.branches) > 1:
                raise Mismatch(f"residual {number} of {len(architecture.layers)} has parallel branches; "
                               "allowed: one sublayer under each")
            sublayers.append(layer.branches[0])
        for index, sublayer in enumerate(sublayers):
            if sublayer.kind not in self.kinds[index % self.per_layer]:
                raise Mismatch(f"sublayer {index + 1} of {len(sublayers)} is {KIND_LETTERS[sublayer.kind]}; "
                               f"allowed: {self}")
        if len(sublayers) % self.per_layer:
            raise Mismatch(f"the pattern ends in half a layer; allowed: {self}")
        spelled = "".join(KIND_LETTERS[sublayer.kind] for sublayer in sublayers)
        layers = [spelled[start : start + self.per_layer] for start in range(0, len(spelled), self.per_layer)]
        self.require(layers)
        return layers

    def require(self, layers: list[str]) -> None:
        """Raise Mismatch where the config has no words for these layers."""

    def write(self, layers: list[str]) -> dict[str, Any]:
        """Keys of the config that say what the layers are."""
        return {"num_hidden_layers": len(layers)}

    def read(self, config: Config) -> list[str]:
        """The layers that a config means."""
        layer = "".join(KIND_LETTERS[kinds[0]] for kinds in self.kinds)
        return [layer] * self.count(config)

    def count(self, config: Config) -> int:
        """num_hidden_layers of a config."""
        number = config.get("num_hidden_layers")
        if not isinstance(number, int) or isinstance(number, bool) or not 0 < number <= 10_000:
            raise Mismatch(f"num_hidden_layers is {number!r}; allowed: a number of layers")
        return number

    def __str__(self) -> str:
        return ", then ".join(" or ".join(KIND_LETTERS[kind] for kind in kinds) for kinds in self.kinds)


class SomeDense(Layers):
    """Mixtures of experts in all layers but those of mlp_only_layers, or in every decoder_sparse_step-th."""

    def write(self, layers: list[str]) -> dict[str, Any]:
        dense = [index for index, layer in enumerate(layers) if layer.endswith("-")]
        return {**super().write(layers), "decoder_sparse_step": 1, "mlp_only_layers": dense}

    def read(self, config: Config) -> list[str]:
        dense, step = config.get("mlp_only_layers") or [], config.get("decoder_sparse_step", 1)
        sparse = [index not in dense and (index + 1) % step == 0 for index in range(self.count(config))]
        return ["*E" if each else "*-" for each in sparse]


class DenseFirst(Layers):
    """Some dense layers, then mixtures of experts to the end. default: of first_k_dense_replace, the class's."""

    default = 0

    def require(self, layers: list[str]) -> None:
        if "*E*-" in "".join(layers):
            raise Mismatch("a dense layer follows a mixture of experts; allowed: dense layers first")

    def write(self, layers: list[str]) -> dict[str, Any]:
        return {**super().write(layers), "first_k_dense_replace": layers.count("*-")}

    def read(self, config: Config) -> list[str]:
        num_layers, dense = self.count(config), config.get("first_k_dense_replace", self.default)
        return ["*-" if index < dense else "*E" for index in range(num_layers)]


def spell(layers: list[str]) -> str:
    """The pattern of a model, its shortest repeat in brackets."""
    letters = "".join(layers)
    for length in range(1, len(letters)):
        times, rest = divmod(len(letters), length)
        if rest == 0 and letters == letters[:length] * times:
            return f"({letters[:length]})x{times}"
    return letters
