"""The loop, its callbacks, metrics, checkpoints and run folders."""

from parallel.lazy import lazily

_HOMES = {
    "Admission": "run_folder",
    "LoadedRun": "load",
    "TrainingFailure": "trainer",
    "admit": "run_folder",
    "admit_parts": "parts",
    "choose_step": "load",
    "evaluate": "evaluation",
    "list_slides": "slides",
    "load_run": "load",
    "meet": "start",
    "parts_of": "parts",
    "slide_recipe": "slides",
    "train": "start",
    "train_parts": "start",
    "under_way": "parts",
}
__all__ = list(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
