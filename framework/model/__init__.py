"""Blocks and the language model: single-device code, no process group in sight."""
