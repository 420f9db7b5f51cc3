"""Blocks and the language model: single-device code, no process group in sight."""

from framework.model.build import build_language_model
from framework.model.context import Context
from framework.model.generate import generate
from framework.model.language_model import LanguageModel

__all__ = ["Context", "LanguageModel", "build_language_model", "generate"]
