"""Checkpoints of the research code of llm-random (`lizrd`) and of its successor nano, as runs of ours.

A file says where a layout keeps what (`llm_random`, `nano`); `layout` is what such a file is written in, and
`transforms` its rearrangements. `weights_file` reads what torch.save wrote, `weights_folder` a distributed checkpoint,
neither letting anything run. `recipe` makes a recipe of names, shapes and what the user states beside them, `rotary`
checks it against buffers of rotary positions where there are any, and `read` makes the run.
"""

from parallel.lazy import lazily

_HOMES = {"from_llm_random": "read", "from_nano": "read"}
__all__ = list(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
