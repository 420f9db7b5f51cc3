"""Imports run downward only. What is imported within functions counts, what only type checkers read does not."""

from graphlib import TopologicalSorter

import grimp
import pytest

FLOORS = ("framework.cli", "slurm", "framework", "parallel", "kernels")
"""From the roof down; a module stands on the first whose name it begins with."""


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    graph = grimp.build_graph(
        "framework", "parallel", "kernels", "slurm", exclude_type_checking_imports=True, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def floor(module: str) -> int:
    return next(number for number, name in enumerate(FLOORS) if f"{module}.".startswith(f"{name}."))


def test_no_floor_imports_one_above_it(imports):
    assert {floor(module) for module in imports} == set(range(len(FLOORS)))
    upward = [f"{module} -> {other}" for module, others in imports.items() for other in others
              if floor(other) < floor(module)]
    assert not upward


def test_no_module_is_imported_by_what_it_imports(imports):
    assert len(list(TopologicalSorter(imports).static_order())) == len(imports)
