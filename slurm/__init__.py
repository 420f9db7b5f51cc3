"""Renders, submits and follows jobs and sweeps. Imports the recipe and the plan, never torch."""
