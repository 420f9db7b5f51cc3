"""Mixture of experts: router, routing, dispatch, experts, and what keeps their loads even."""

from framework.model.moe.assignment import Assignment
from framework.model.moe.balance import AttachLoss
from framework.model.moe.block import MixtureOfExperts
from framework.model.moe.dispatch import Dispatcher, LocalDispatcher
from framework.model.moe.experts import Experts
from framework.model.moe.parts import Parts, TokenParts
from framework.model.moe.router import Router

__all__ = [
    "Assignment", "AttachLoss", "Dispatcher", "Experts", "LocalDispatcher", "MixtureOfExperts", "Parts",
    "Router", "TokenParts",
]
