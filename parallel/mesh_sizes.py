"""How many ranks each axis of a mesh has. Imports no torch: a command that only starts ranks does so at once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MeshSizes:
    """Degree of each axis. The world has pp * dp_replicate * dp_shard * cp * tp ranks.

    Raises ValueError where a degree is below one or ep does not divide dp_shard * cp * tp.
    """

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    pp: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        for axis, degree in vars(self).items():
            if degree < 1:
                raise ValueError(f"{axis}={degree}, but a degree is at least 1")
        if self.one_copy % self.ep:
            raise ValueError(f"ep={self.ep} must divide dp_shard*cp*tp={self.dp_shard}*{self.cp}*{self.tp}")

    @property
    def one_copy(self) -> int:
        """Ranks that together hold one copy of a pipeline stage."""
        return self.dp_shard * self.cp * self.tp

    @property
    def expert_dp(self) -> int:
        """Ranks of one copy that hold the same experts."""
        return self.one_copy // self.ep

    @property
    def batch(self) -> int:
        """Equal shares that a step's sequences are cut into."""
        return self.dp_replicate * self.dp_shard

    @property
    def world(self) -> int:
        """Ranks in all."""
        return self.pp * self.dp_replicate * self.one_copy
