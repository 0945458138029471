"""Several processes that train one model together, as torchrun starts them. One process alone is the usual case.

Every process has the whole model and draws batches of its own. The gradients of an objective are summed over all
processes before the optimiser moves the weights, so that every process takes the same step: what `accumulate` does in
one process after the other. PyTorch's DistributedDataParallel does not fit: it expects one forward and one backward
pass over all parameters in a step, and a step here has several objectives, each over modules of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from acclimate.errors import OptionError, ProcessLostError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

PATIENCE = timedelta(minutes=10)  # with a process that does not answer; one that ends is noticed at once

POLL = 0.05  # seconds between two looks at what others have left

FAILED = "failed"  # counts the processes that failed


class World:
    """The processes that train together, as one of them sees them.

    Args:
        rank: The number of this process, from 0.
        size: How many there are.
        store: Where they leave messages for each other; None where there is one alone.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Store | None = None) -> None:
        self.rank = rank
        self.size = size
        self._store = store
        self._messages = 0
        self._connected = False
        self._speaks: bool | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and talks to the user."""
        return self.rank == 0

    def speaks_up(self) -> bool:
        """Whether this process, which has failed, is the first that did: it alone says why."""
        if self._speaks is None:
            try:
                self._speaks = self._store is None or self._store.add(FAILED, 1) == 1
            except RuntimeError:  # the process that kept the store has ended
                self._speaks = True
        return self._speaks

    def take_gpu(self, device: str) -> None:
        """Give this process the GPU of its number on its machine, if a device of this name is one.

        Raises:
            OptionError: There is none for it.
        """
        if self.size == 1 or device == "cpu" or not torch.cuda.is_available():
            return
        if device not in ("auto", "cuda"):
            raise OptionError(f"Each of {self.size} processes takes a GPU of its own: use --device cuda, not {device}.")
        local, gpus = int(os.environ.get("LOCAL_RANK", self.rank)), torch.cuda.device_count()
        if local >= gpus:
            raise OptionError(f"There are more processes than the {gpus} GPUs here: use --nproc-per-node {gpus}.")
        torch.cuda.set_device(local)

    def told(self, message: str) -> str:
        """What the leading process says, in all of them, once all have come to ask, however long it takes.

        It leaves when all have heard it, since the messages may end with it.

        Raises:
            ProcessLostError: Another process has failed.
        """
        if self._store is None:
            return message
        self._messages += 1
        says = f"{self._messages} says"
        come, heard = ([f"{self._messages} {what} {rank}" for rank in range(self.size)] for what in ("come", "heard"))
        with self._exchange():
            self._store.set(come[self.rank], "")
            if self.leads:
                self._wait(come)
                self._store.set(says, message)
                self._wait(heard[1:])
                return message
            self._wait([says])
            said: bytes = self._store.get(says)
            self._store.set(heard[self.rank], "")
        return said.decode()

    def _wait(self, keys: list[str]) -> None:
        assert self._store is not None
        while not self._store.check(keys):
            if self._store.check([FAILED]):
                raise self._lost()
            time.sleep(POLL)

    @contextmanager
    def together(self, device: torch.device) -> Iterator[None]:
        """Within it the processes exchange tensors. It begins when all of them are there.

        Raises:
            ProcessLostError: Another process has failed or ended.
        """
        if self._store is None:
            yield
            return
        from torch.distributed.distributed_c10d import PrefixStore

        self.told("begin")
        with self._exchange():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=PrefixStore(f"group {self._messages}", self._store),
                rank=self.rank,
                world_size=self.size,
                timeout=PATIENCE,
            )
        self._connected = True
        try:
            yield
        except BaseException:
            self.speaks_up()  # settled before the connections close, which the others notice
            raise
        finally:
            self._connected = False
            dist.destroy_process_group()

    def shared_out(self, count: int) -> range:
        """Which of `count` pieces of work this process does for all: of those that exchange tensors, every W-th."""
        return range(self.rank, count, self.size) if self._connected else range(count)

    def gathered(self, own: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
        """What all processes made of pieces of work that were shared out, in the pieces' order.

        Args:
            own: What this process made of its pieces, (B_i, ...) each.
            rows: B_i of all pieces.
        """
        if not self._connected:
            return list(own)
        form: list[tuple[torch.Size, torch.dtype, str] | None]
        form = [(own[0].shape[1:], own[0].dtype, own[0].device.type) if self.leads else None]  # of the first piece
        turns = -(-len(rows) // self.size)
        with self._exchange():
            dist.broadcast_object_list(form, device=torch.device("cpu"))
            assert form[0] is not None
            shape, dtype, device = form[0]
            mine = torch.zeros(turns, max(rows), *shape, dtype=dtype, device=device)
            for turn, piece in enumerate(own):
                mine[turn, : len(piece)] = piece
            everybodys = [torch.empty_like(mine) for _ in range(self.size)]
            dist.all_gather(everybodys, mine)
        return [everybodys[number % self.size][number // self.size, :n] for number, n in enumerate(rows)]

    def any_of(self, flags: list[bool]) -> list[bool]:
        """For each of some flags, whether it is set in any process."""
        with self._exchange():
            anywhere = torch.tensor(flags, dtype=torch.uint8)  # on the CPU: no GPU has to be waited for
            dist.all_reduce(anywhere, dist.ReduceOp.MAX)
        return [bool(flag) for flag in anywhere.tolist()]

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all processes of x (n,), added up in the order of their numbers.

        So it has the bits that one process gets which adds up one after the other, however many they are; a library's
        own reduction adds in an order that depends on their number and on how they are connected.
        """
        n = len(x)
        part = -(-n // self.size)
        parts = torch.cat([x, x.new_zeros(part * self.size - n)])
        with self._exchange():
            theirs = torch.empty_like(parts)
            dist.all_to_all_single(theirs, parts)
            first, *others = theirs.view(self.size, part)  # this process's part of x, of each process
            total = first.clone()
            for other in others:
                total += other
            dist.all_gather([*parts.view(self.size, part)], total)
        return parts[:n]

    def first(self, x: Tensor) -> Tensor:
        """The x (n,) of the first process."""
        with self._exchange():
            dist.broadcast(x, 0)
        return x

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # as PyTorch tells of a connection that broke
            raise self._lost() from error

    def _lost(self) -> ProcessLostError:
        return ProcessLostError(
            f"One of the {self.size} processes has failed or ended: the same command goes on from the last checkpoint."
        )


_world = World()


def world() -> World:
    """The processes that train together with this one: itself alone, unless it has joined others."""
    return _world


def join() -> World:
    """Join the other processes that torchrun has started, until this one ends.

    Only who owns the process may do so: the command line does, the library never.
    """
    global _world
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://"))
    if size > 1:
        _world = World(rank, size, PrefixStore("acclimate", store))
    return _world


class Replicas:
    """One module in every process, whose parameters and buffers stay equal. In one process alone nothing happens.

    Args:
        module: That of this process.
        among: The processes.
    """

    def __init__(self, module: nn.Module, among: World) -> None:
        self.module = module
        self.among = among
        self.rank, self.size = among.rank, among.size
        self._known: dict[str, tuple[Tensor, int]] = {}

    def seed(self, seed: int, step: int) -> None:
        """Let each process draw random numbers of its own in a step; the first draws on as it would alone.

        They are a function of seed, rank and step, so that the checkpoint of the first process is that of all.
        """
        if self.rank:
            state = np.random.SeedSequence((seed, self.rank, step)).generate_state(1, np.uint64)
            torch.manual_seed(int(state[0]))

    def copy_first(self) -> None:
        """Give the module of every process the parameters and buffers of the first."""
        if self.size == 1:
            return
        with torch.no_grad():
            for tensors in _by_type([*self.module.parameters(), *self.module.buffers()]):
                _put(self.among.first(_flat(tensors)), tensors)
        self._known = _versions(self.module)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients of these parameters over all processes. One that has none in any process still has none."""
        if self.size == 1:
            return
        anywhere = self.among.any_of([p.grad is not None for p in parameters])
        moved = [p for p, has_gradient in zip(parameters, anywhere, strict=True) if has_gradient]
        for p in moved:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        for gradients in _by_type([p.grad for p in moved if p.grad is not None]):
            _put(self.among.sum(_flat(gradients)), gradients)

    def average_buffers(self) -> None:
        """Average the buffers that a step has changed in any process; of those that hold no floats, take the first's.

        That goes for a method's centroids as for BatchNorm's running statistics. An average of them after every step is
        what one process would have whose batches each moved them at once, and leaves no time at which they differ.
        """
        if self.size == 1:
            return
        buffers = _versions(self.module)
        changed = [_differs(now, self._known.get(name)) for name, now in buffers.items()]
        anywhere = self.among.any_of(changed) if changed else []
        tensors = [tensor for (tensor, _), flag in zip(buffers.values(), anywhere, strict=True) if flag]
        with torch.no_grad():
            for of_type in _by_type(tensors):
                x = _flat(of_type)
                _put(self.among.sum(x) / self.size if x.is_floating_point() else self.among.first(x), of_type)
        self._known = _versions(self.module)


def _versions(module: nn.Module) -> dict[str, tuple[Tensor, int]]:
    """Each buffer by name, and how often it was changed in place."""
    return {name: (b, 0 if b.is_inference() else b._version) for name, b in module.named_buffers()}


def _differs(now: tuple[Tensor, int], before: tuple[Tensor, int] | None) -> bool:
    return before is None or now[0] is not before[0] or now[1] != before[1]


def _by_type(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors that can lie in one, together."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return list(groups.values())


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _put(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Write back into tensors what `_flat` made of them."""
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    for values, tensor in zip(parts, tensors, strict=True):
        tensor.detach().copy_(values.view(tensor.shape))
