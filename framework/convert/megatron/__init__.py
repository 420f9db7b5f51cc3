"""Checkpoints to and from Megatron-Core: weights in the layout that Megatron-LM calls `torch_dist`.

`tables` has the names of its tensors beside ours, `target` what its two models (GPTModel and MambaModel) can express,
`arguments` the entries of its argument list; both directions read these. `write` makes a folder (`state_files` writes
its tensors). `read` makes a run of one: `folder` finds the files, `common_file` reads what is pickled without letting
it run, `names` sees one set of names in each layout that Megatron-Core writes, and `shapes` tells the
sizes.
`verify` loads what was written in Megatron-Core's own modules, in a process of its own (`peer`, `cpu`, `build`).
"""

from parallel.lazy import lazily

_HOMES = {
    "Options": "write",
    "from_megatron": "read",
    "to_megatron": "write",
}
__all__ = list(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
