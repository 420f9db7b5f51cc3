"""How a module is split over ranks. Knows torch.distributed and kernels; knows no recipe and no model class."""
