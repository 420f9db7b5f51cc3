"""Which kernels a function launches, and with what, seen without running any of them."""

import hashlib
import io
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton import JITFunction, KernelInterface
from triton.language import constexpr
from triton.runtime.jit import MockTensor

OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg", "debug")


class Pointer(MockTensor):
    """A tensor as the compiler knows it: what it holds, and whether its address is a multiple of 16."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor.dtype)
        self.offset = tensor.storage_offset() * tensor.element_size()

    def data_ptr(self) -> int:
        return self.offset


@dataclass(frozen=True)
class Launch:
    """A kernel with its arguments by name, tensors as pointers. config: who launched it first."""

    kernel: JITFunction
    config: str
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    @property
    def constants(self) -> str:
        """What distinguishes this compilation of the kernel for a reader: its constants and warps."""
        named = [f"{name}={_constant(self.arguments[name])}" for name in self._constexprs if name in self.arguments]
        return " ".join(named + [f"{name}={value}" for name, value in sorted(self.options.items())])

    @property
    def kinds(self) -> dict[str, str]:
        """What the compiler sees of the arguments that are no constants."""
        unspecialized = {parameter.name for parameter in self.kernel.params if parameter.do_not_specialize}
        return {name: _kind(value, name not in unspecialized) for name, value in sorted(self.arguments.items())
                if name not in self._constexprs}

    @property
    def signature(self) -> str:
        """Of all arguments and options; equal ones are compiled once."""
        return " ".join(f"{name}:{kind}" for name, kind in self.kinds.items()) + " " + self.constants

    @property
    def fingerprint(self) -> str:
        """Changes with the code of the kernel, or of functions and constants it uses, and with its signature."""
        code = [source for _, source in sorted(sources(self.kernel).items())]
        return hashlib.sha256("\n".join([*code, self.signature]).encode()).hexdigest()[:10]

    @property
    def _constexprs(self) -> list[str]:
        return [parameter.name for parameter in self.kernel.params if parameter.is_constexpr]


@contextmanager
def recorded(config: str) -> Iterator[list[Launch]]:
    """Within it kernels do not run; afterwards the list holds each launch."""
    launches: list[Launch] = []

    def launch(kernel: JITFunction, *positional: Any, **named: Any) -> None:
        options = {name: value for name, value in named.items() if name in OPTIONS}
        given = dict(zip(kernel.arg_names, positional, strict=False)) | {
            name: value for name, value in named.items() if name not in OPTIONS}
        launches.append(Launch(kernel, config, {name: _kept(value) for name, value in given.items()}, options))

    before = KernelInterface.__getitem__
    KernelInterface.__getitem__ = lambda kernel, grid: lambda *given, **named: launch(kernel, *given, **named)
    try:
        yield launches
    finally:
        KernelInterface.__getitem__ = before


def distinct(launches: list[Launch]) -> list[Launch]:
    """One of each that compile to the same code, in the order of their names and configurations."""
    found = {}
    for launch in launches:
        found.setdefault((launch.kernel, launch.signature), launch)
    return sorted(found.values(), key=lambda launch: (launch.name, launch.config, launch.signature))


def titles(launches: Sequence[Launch]) -> list[str]:
    """Of each: who launched it first, its constants, and kinds of arguments where these alone tell it from others."""
    plain = [f"{launch.config}: {launch.constants}" for launch in launches]
    alike = defaultdict(list)
    for launch, title in zip(launches, plain, strict=True):
        alike[launch.name, title].append(launch.kinds)
    found = []
    for launch, title in zip(launches, plain, strict=True):
        group = alike[launch.name, title]
        differing = [name for name in launch.kinds if len({kinds[name] for kinds in group}) > 1]
        found.append(" ".join([title, *(f"{name}:{launch.kinds[name]}" for name in differing)]))
    return found


def sources(kernel: JITFunction, seen: dict[str, str] | None = None) -> dict[str, str]:
    """The code of a kernel, of the functions that it calls, and the constants that they name, each by its name."""
    seen = {} if seen is None else seen
    name = f"{kernel.fn.__module__}.{kernel.fn.__name__}"
    if name not in seen:
        seen[name] = _code(kernel.src)
        for used in kernel.fn.__code__.co_names:
            value = kernel.fn.__globals__.get(used)
            if isinstance(value, JITFunction):
                sources(value, seen)
            elif isinstance(value, constexpr):
                seen[used] = f"{used} = {value.value}"
    return seen


def _code(source: str) -> str:
    """Without comments, docstrings and the shape of lines, as none of these changes what is compiled."""
    marks = {tokenize.NEWLINE: ";", tokenize.INDENT: "{", tokenize.DEDENT: "}"}
    words, starts_statement = [";"], True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL) or (token.type == tokenize.STRING and starts_statement):
            continue
        starts_statement = token.type in marks
        word = marks.get(token.type, token.string)
        if not (word == words[-1] == ";" or (word, words[-1]) == (";", "{")):
            words.append(word)
    return " ".join(words)


def _kept(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_kept(part) for part in value)
    return Pointer(value) if isinstance(value, Tensor) else value


def _kind(value: Any, specialized: bool = True) -> str:
    """As finely as Triton specialises: pointers and integers by whether they divide by 16, and ones by their value."""
    if isinstance(value, tuple):
        return f"({' '.join(_kind(part, specialized) for part in value)})"
    if isinstance(value, Pointer):
        return f"*{str(value.dtype).removeprefix('torch.')}{'/16' if value.offset % 16 == 0 else ''}"
    if isinstance(value, bool) or value is None:
        return str(type(value).__name__)
    if isinstance(value, int):
        wide = "i32" if -2**31 <= value < 2**31 else "i64" if value < 2**63 else "u64"
        if not specialized:
            return wide
        return "1" if value == 1 else f"{wide}{'/16' if value % 16 == 0 else ''}"
    return type(value).__name__


def _constant(value: Any) -> str:
    if isinstance(value, JITFunction):
        return value.fn.__name__
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else str(value)
