"""A pool of live ranks for tests: a call on N ranks costs milliseconds, not N interpreters that import torch."""

import atexit
import ctypes
import datetime
import gc
import importlib.util
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from types import FunctionType
from typing import Any

PRELOADED = (
    "torch", "numpy", "torch.distributed.tensor", "torch.distributed.fsdp", "torch.distributed.checkpoint",
    "torch.distributed.checkpoint.state_dict", "torch.distributed.tensor.debug",
    "torch._dynamo",  # which fully_shard's hooks import at their first call
)
PR_SET_PDEATHSIG = 1
SECONDS_TO_FOLLOW = 1.0  # for the other ranks to end, once one has failed


class RankError(RuntimeError):
    """A rank raised, died or did not end in time; the message holds its number and traceback."""


class RankPool:
    """Live gloo ranks on the CPU, one thread each; every call gets a fresh world of as many as it asks for.

    Ranks are started when first needed, all anew after a failure, and closed with the pool. If this process
    is killed they end when their call does.
    """

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(PRELOADED))
        self._folder = tempfile.mkdtemp(prefix="rank_pool_")
        self._ranks: list[tuple[multiprocessing.Process, Connection]] = []
        self._calls = itertools.count()
        atexit.register(self.close)

    def run(self, num_ranks: int, function: FunctionType, *args: object, timeout: float = 60.0) -> list:
        """Run function(*args) on each of `num_ranks` ranks of a new process group; their results in order of rank.

        function: of a module's top level, imported by file on the ranks. args and results are pickled.
        Raises RankError with the first failing rank's traceback; `timeout` is in seconds.
        """
        self._grow(num_ranks)
        message = (next(self._calls), num_ranks, function.__module__, function.__code__.co_filename,
                   function.__qualname__, args)
        try:
            for _, connection in self._ranks[:num_ranks]:
                connection.send(message)
            return self._collect(num_ranks, timeout)
        except BaseException:
            self._kill()
            raise

    def close(self) -> None:
        """End the ranks."""
        self._kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _grow(self, num_ranks: int) -> None:
        store = os.path.join(self._folder, "store")
        for rank in range(len(self._ranks), num_ranks):
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(rank, store, theirs), daemon=True)
            process.start()
            theirs.close()
            self._ranks.append((process, ours))

    def _collect(self, num_ranks: int, timeout: float) -> list:
        deadline = time.monotonic() + timeout
        results, failures = {}, []
        while len(results) + len(failures) < num_ranks:
            missing = [self._ranks[r][1] for r in range(num_ranks) if r not in results and r not in dict(failures)]
            ready = wait(missing, max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for rank in (r for r in range(num_ranks) if self._ranks[r][1] in ready):
                good, value = _receive(self._ranks[rank][1])
                if good:
                    results[rank] = value
                else:
                    failures.append((rank, value))
                    deadline = min(deadline, time.monotonic() + SECONDS_TO_FOLLOW)
        if failures:
            rank, (_, report) = min(failures, key=lambda failure: failure[1][0])
            raise RankError(f"rank {rank} failed first:\n{report}")
        if len(results) < num_ranks:
            silent = sorted(set(range(num_ranks)) - set(results))
            raise RankError(f"ranks {silent} did not end within {timeout:g} s")
        return [results[rank] for rank in range(num_ranks)]

    def _kill(self) -> None:
        for process, connection in self._ranks:
            process.kill()
            process.join()
            connection.close()
        self._ranks.clear()


def _receive(connection: Connection) -> tuple[bool, object]:
    try:
        return connection.recv()
    except (EOFError, ConnectionResetError):
        return False, (0.0, "it died without a word")


def _serve(rank: int, store_file: str, connection: Connection) -> None:
    """A rank's life: run what comes, until the pool closes or something raises."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    gc.freeze()  # what was imported before is never garbage, and not worth looking at after each call
    store = dist.FileStore(store_file)
    while True:
        try:
            call, num_ranks, module, file, name, args = connection.recv()
        except EOFError:
            return
        try:
            _enter_world(dist.PrefixStore(f"call{call}", store), rank, num_ranks)
            connection.send((True, _find(module, file, name)(*args)))
            _leave_world()
        except BaseException:
            # Leaving is what makes the others' collectives fail instead of waiting for ever.
            connection.send((False, (time.monotonic(), traceback.format_exc())))
            os._exit(1)


def _enter_world(store, rank: int, num_ranks: int) -> None:
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=num_ranks, timeout=datetime.timedelta(minutes=10)
    )


def _leave_world() -> None:
    import torch.distributed as dist
    from torch.distributed.tensor._redistribute import clear_redistribute_planner_cache
    from torch.distributed.tensor.debug import _clear_sharding_prop_cache

    dist.barrier()  # a group that one rank takes down is broken for one that is still connecting to it
    dist.destroy_process_group()
    # Cached shardings name process groups, and meshes of the next world compare equal to those of this one.
    _clear_sharding_prop_cache()
    clear_redistribute_planner_cache()
    for wrapper in _memoized("torch.distributed.tensor"):
        wrapper.cache_clear()
    # Models and meshes are cycles, and hold groups of three threads each, which never sleep for long.
    gc.collect()


def _memoized(package: str) -> Iterator[Any]:
    """The functions of a package's modules, and the static ones of its classes, that `functools.cache` wraps."""
    modules = [module for name, module in sys.modules.items() if f"{name}.".startswith(f"{package}.")]
    for value in {id(value): value for module in modules for value in vars(module).values()}.values():
        members = vars(value).values() if isinstance(value, type) else [value]
        for member in (getattr(member, "__func__", member) for member in members):
            if hasattr(member, "cache_clear"):
                yield member


def _find(module_name: str, file: str, qualified_name: str) -> Callable:
    """The function by its file: test modules are imported from their paths and are on no search path."""
    module = sys.modules.get(module_name)
    if module is None or getattr(module, "__file__", None) != file:
        spec = importlib.util.spec_from_file_location(module_name, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
    for part in qualified_name.split("."):
        module = getattr(module, part)
    return module
