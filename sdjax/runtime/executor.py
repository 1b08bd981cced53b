"""Executors: what runs a program. A program says where its pictures are (see `core.jit`); an executor needs no more.

    Compiled    each program on JAX's default device, compiled when its shapes are first seen
    Sharded     the same on many devices, each with its share of every parameter
    Spread      on many devices, each with its share of the pictures, or one half of their guidance (`spread`)
    Exported    programs that another process compiled ahead of time (`exported`)

A new network is a new program, and needs no edit in any of them.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from sdjax.core.devices import Devices, cut_channels
from sdjax.core.jit import Program


class Executor(Protocol):
    """Runs programs, and lays out what several of them share."""

    def run(self, program: Program, *args: Any) -> Any:
        """What the program gives for its static arguments and its data, in its own order."""

    def shard_inputs(self, tree: Any, axis: int, parts: int | None = None) -> Any:
        """Arguments that are the same at every call (KEPT), where those calls want them.

        tree: of arrays, or None. axis: of the b pictures in every leaf; with `parts` they stand there as `(parts b)`,
        the parts being what a network is asked for each picture. Raises ValueError for parts it cannot share out.
        """

    def place(self, params: Any) -> Any:
        """Parameters (PARAMS), from the host or not, where programs want them that run on every device."""


@dataclass(frozen=True)
class Compiled:
    """On JAX's default device: nothing has to be moved."""

    def run(self, program: Program, *args: Any) -> Any:
        """The program itself."""
        return program(*args)

    def shard_inputs(self, tree: Any, axis: int, parts: int | None = None) -> Any:
        """The tree as it is."""
        return tree

    def place(self, params: Any) -> Any:
        """On JAX's default device."""
        return jax.tree.map(jnp.asarray, params)


@dataclass(frozen=True)
class Sharded(Compiled):
    """Parameters cut over these devices along their channels; XLA exchanges what a program then needs."""

    devices: Devices

    def place(self, params: Any) -> Any:
        """Each device's share."""
        return jax.tree.map(lambda leaf: cut_channels(leaf, self.devices), params)
