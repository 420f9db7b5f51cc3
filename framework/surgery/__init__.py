"""From model to model: weights of one recipe turned into those of another.

Upcycling makes mixtures of experts of dense feed-forward blocks. Each method is a function of tensors in a file of
its own: `copying` (which hidden units an expert takes), `scaling`, `drop`, `noise`, `routers`. `split` lays hidden
units out over experts, `match` finds which sublayer becomes which, `plan` says what every parameter is made of (by
`rules`), `fill` makes it so on the ranks of the target's layout, `promise` tells which plans leave the model's function
as it was, `difference` measures it, and `run` does it all into a new run folder. Most of what must be refused is
found without torch.
"""

from parallel.lazy import lazily

_HOMES = {
    "Options": "options",
    "Source": "source",
    "Upcycling": "task",
    "find_source": "source",
    "prepare": "task",
    "upcycle": "run",
}
__all__ = list(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
