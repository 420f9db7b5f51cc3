"""Chains: runs and other commands that wait for each other, such as train, upcycle, train, evaluate.

    chain:
      - {name: dense, train: upcycling/laptop_dense, set: {training.steps: 200}}
      - {name: copies, run: upcycle runs/dense --recipe upcycling/laptop_copy --name moe, ranks: 2}
      - {name: moe, train: upcycling/laptop_copy}
      - {name: compare, run: report runs/dense runs/moe, after: [dense, moe]}
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from framework.errors import UserError
from framework.files import is_plain_name
from framework.recipe import load_recipe
from framework.recipe.errors import Origin, RecipeError, shorten
from framework.recipe.files import SUFFIXES, display, read_text
from framework.recipe.schema.base import Section
from framework.recipe.tree import flatten, walk
from framework.recipe.validate import validate
from framework.recipe.yaml_reader import Entry, plain, read_yaml
from slurm.jobs import Command, Job, Submission
from slurm.plan import run_jobs
from slurm.shape import shape_of

KEY = "chain"


def _words(text: str) -> str:
    try:
        shlex.split(text)
    except ValueError as error:
        raise ValueError(f"a command that a shell can split ({error})") from None
    return text


def _plain_name(text: str) -> str:
    if not is_plain_name(text):
        raise ValueError("a plain name for a folder, without '/'")
    return text


class Step(Section):
    """One step: `train` a recipe, or `run` any other command of upmix.

    name: of the step, and of the run that it trains. set: fields that the recipe changes. ranks: GPUs of a `run`.
    after: names of steps that must have ended well; the step before where it is not given.
    """

    name: Annotated[str, AfterValidator(_plain_name)]
    train: str | None = None
    set: dict[str, Any] = {}
    run: Annotated[str, AfterValidator(_words)] | None = None
    ranks: Annotated[int, Field(ge=1)] = 1
    after: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Step:
        if (self.train is None) == (self.run is None):
            raise ValueError("either `train` or `run`")
        return self


class Chain(Section):
    """A chain's file."""

    name: Annotated[str, AfterValidator(_plain_name)] | None = None
    chain: Annotated[tuple[Step, ...], Field(min_length=1)]


def is_chain(source: str) -> bool:
    """Whether a source is a chain's file: YAML with `chain` at its top."""
    path = Path(source)
    if path.suffix not in SUFFIXES or not path.is_file():
        return False
    tree = read_yaml(read_text(path), display(path), 0)
    return isinstance(tree.value, dict) and KEY in tree.value


def plan_chain(source: str, name: str | None, gpus_per_node: int) -> Submission:
    """The jobs of a chain. name: of the submission; None: the file's own, else its stem. Raises UserError."""
    path = Path(source)
    place, tree = display(path), read_yaml(read_text(path), display(path), 0)
    try:
        chain = validate(Chain, plain(tree))
        jobs = _jobs(chain, gpus_per_node, path.parent)
    except RecipeError as error:
        raise error.located(_origins(tree), Origin(place)) from None
    return Submission(name or chain.name or path.stem, jobs)


def _origins(tree: Entry) -> dict[str, Origin]:
    return {key: entry.origin for key, entry in walk(tree)}


def _jobs(chain: Chain, gpus_per_node: int, folder: Path) -> tuple[Job, ...]:
    jobs: list[Job] = []
    last_of: dict[str, str] = {}  # the job that a step's followers wait for
    before: tuple[str, ...] = ()
    for index, step in enumerate(chain.chain):
        if step.name in last_of:
            raise RecipeError(KEY, f"step {index + 1} is named {step.name!r} as an earlier one; allowed: a name once")
        after = before if step.after is None else tuple(_earlier(step, name, last_of) for name in step.after)
        jobs += _step_jobs(step, gpus_per_node, folder, after)
        last_of[step.name] = jobs[-1].name
        before = (jobs[-1].name,)
    return tuple(jobs)


def _earlier(step: Step, name: str, last_of: dict[str, str]) -> str:
    if name not in last_of:
        raise RecipeError(KEY, f"{step.name} comes after {shorten(name)}; allowed: earlier steps "
                          f"({', '.join(last_of)})")
    return last_of[name]


def _step_jobs(step: Step, gpus_per_node: int, folder: Path, after: tuple[str, ...]) -> tuple[Job, ...]:
    if step.run is not None:
        return (Job(step.name, Command(tuple(shlex.split(step.run))), shape_of(step.ranks, gpus_per_node, step.name),
                    after=after),)
    overrides = [f"{key}={json.dumps(value)}" for key, value in flatten(step.set).items()]
    recipe = step.train if Path(step.train).suffix not in SUFFIXES else str(folder / step.train)
    try:
        loaded = load_recipe(recipe, overrides)
    except UserError as error:
        raise UserError(f"{step.name}: {error}") from None
    return run_jobs(loaded, step.name, gpus_per_node, after=after)
