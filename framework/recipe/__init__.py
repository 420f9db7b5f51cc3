"""The typed schema of recipes, their loading, overrides, and where each value came from. Never imports torch."""
