"""Checkpoints to and from Hugging Face transformers, tensor by tensor, from and to any layout, without a GPU.

`architectures/` has one file for each of theirs: conditions on a recipe, entries of config.json and a table of names,
which both directions read. `transforms`, `table`, `fields`, `layers`, `rope` and `conditions` are what such a file is
written in; `target` reads it, `choose` finds the one that fits. `write_hf` writes a folder (`weights`, `factors`,
`shards`, `tokenizer`, and `verify` beside transformers itself); `read_hf` makes a run of one (`hf_folder`,
`our_weights`, `imported`, `same_model`, `first_checkpoint`). `megatron/` has tables of Megatron-Core, both ways;
`research/` reads checkpoints of llm-random and nano. Both read what others saved with torch.distributed.checkpoint by
`distributed_folder` (`foreign_metadata`). `errors` is for all of them.
"""

from parallel.lazy import lazily

_HOMES = {
    "DTYPES": "write_hf",
    "Options": "write_hf",
    "from_hf": "read_hf",
    "to_hf": "write_hf",
}
__all__ = list(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
