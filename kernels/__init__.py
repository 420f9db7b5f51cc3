"""Functions of local tensors. Knows no model and no process group."""
