"""What a recipe takes on a cluster, before a job is queued: memory, traffic and time by formulas, without PyTorch.

`rehearsal`, which needs PyTorch, takes a real step of one rank without memory and without the other ranks.
"""

from framework.plan.machine import MACHINES, Cluster, Machine, read_cluster
from framework.plan.plan import Plan, make_plan

__all__ = ["MACHINES", "Cluster", "Machine", "Plan", "make_plan", "read_cluster"]
