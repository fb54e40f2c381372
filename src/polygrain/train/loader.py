"""Views cut out of encoded images, ahead of time, by worker processes.

All random numbers are drawn before, so pixels do not depend on number or timing of the workers. A job is split into
chunks; a worker writes a chunk's pixels into a slot of shared memory. The memory is anonymous and workers are forks: no
pixels go through pipes, no name remains in /dev/shm, and a worker ends when its parent's end closes its pipe.
"""

import gc
import mmap
import multiprocessing
import os
import signal
import traceback
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np
import torch
from torch import Tensor

from polygrain.data.encoded import CHANNELS, EncodedData
from polygrain.provenance.errors import UserError
from polygrain.train.cut import CutJob, cut_job

CHUNK = 32  # images that a worker cuts at once; fewer if their views do not fit into a slot
SLOT_BYTES = 16 * 2**20
_STOP_SECONDS = 5.0


class Loader:
    """Cuts the views of jobs, in their order, with `workers` processes or in this one (0).

    batch: images of a usual job, which decides the memory. pin: page-locked tensors, for copies that do not block.
    """

    def __init__(self, data: EncodedData, workers: int, batch: int, *, pin: bool = False) -> None:
        self.data, self.pin = data, pin
        self.pool = Pool(data, workers, slots=2 * workers + -(-batch // CHUNK)) if workers else None

    def stream(self, jobs: Iterable[CutJob]) -> Iterator[list[Tensor]]:
        """Yield the views of each job, uint8 [B, 3, size, size] per cut; several streams may be open at once.

        Jobs are taken ahead into free slots. Raises UserError on a damaged image in its turn, and when a worker dies.
        """
        chunks = _chunks(jobs)
        waiting: deque[tuple[_Chunk, _Ticket]] = deque()
        views: list[Tensor] = []
        try:
            while True:
                self._submit(chunks, waiting)
                chunk, ticket = waiting.popleft() if waiting else (next(chunks, None), None)
                if chunk is None:
                    return
                if chunk.start == 0:
                    views = self._empty(chunk.job)
                self._collect(chunk, ticket, [view[chunk.start : chunk.stop] for view in views])
                if chunk.stop == len(chunk.job.positions):
                    yield views
        finally:
            for _, ticket in waiting:
                assert self.pool is not None
                with suppress(UserError):
                    self.pool.wait(ticket, None)

    def _submit(self, chunks: "Iterator[_Chunk]", waiting: "deque[tuple[_Chunk, _Ticket]]") -> None:
        while self.pool is not None and self.pool.free:
            chunk = next(chunks, None)
            if chunk is None:
                return
            waiting.append((chunk, self.pool.submit(chunk.work)))

    def _collect(self, chunk: "_Chunk", ticket: "_Ticket | None", views: Sequence[Tensor]) -> None:
        """Copy a chunk's pixels into place; without a ticket (other streams use all slots) cut it here."""
        if ticket is None:
            cut_job(self.data, chunk.work, views)
            return
        assert self.pool is not None
        for view, done in zip(views, self.pool.wait(ticket, chunk.work), strict=True):
            view.copy_(done)

    def _empty(self, job: CutJob) -> list[Tensor]:
        shapes = [(len(job.positions), CHANNELS, one.size, one.size) for one in job.cuts]
        return [torch.empty(shape, dtype=torch.uint8, pin_memory=self.pin) for shape in shapes]


@dataclass(frozen=True)
class _Chunk:
    """Images `start` to `stop` of a job, with `work` to do for them."""

    job: CutJob
    start: int
    stop: int
    work: CutJob


@dataclass(frozen=True)
class _Ticket:
    number: int
    worker: int
    slot: int


def _chunks(jobs: Iterable[CutJob]) -> Iterator[_Chunk]:
    for job in jobs:
        step = max(1, min(CHUNK, SLOT_BYTES // job.image_bytes))
        for start in range(0, len(job.positions), step):
            stop = min(start + step, len(job.positions))
            yield _Chunk(job, start, stop, job.part(start, stop))


class Pool:
    """Worker processes with a pipe each, to which chunks go in turn, and slots of shared memory that they fill."""

    def __init__(self, data: EncodedData, workers: int, slots: int) -> None:
        memory = mmap.mmap(-1, slots * SLOT_BYTES)
        self.memory = torch.frombuffer(memory, dtype=torch.uint8).view(slots, SLOT_BYTES)
        self.free = list(range(slots))
        self.connections: list[Connection] = []
        self.processes: list[BaseProcess] = []
        self._sent = 0
        self._answers: dict[int, str | None] = {}
        context = multiprocessing.get_context("fork")
        for number in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(data, self.memory, theirs), name=f"loader-{number}", daemon=True
            )
            process.start()
            theirs.close()
            self.connections.append(ours)
            self.processes.append(process)
        self.close = weakref.finalize(self, _stop, os.getpid(), self.connections, self.processes)

    def submit(self, work: CutJob) -> _Ticket:
        """Have a chunk cut into a free slot. Raises UserError when the next worker has died."""
        worker = self._sent % len(self.processes)
        ticket = _Ticket(self._sent, worker, self.free.pop())
        self._sent += 1
        try:
            self.connections[worker].send((ticket.number, ticket.slot, work))
        except OSError:
            raise self._dead(worker) from None
        return ticket

    def wait(self, ticket: _Ticket, work: CutJob | None) -> list[Tensor]:
        """The pixels of a chunk, valid until the next `submit`. Raises UserError on a damaged image, a dead worker."""
        self.free.append(ticket.slot)
        while ticket.number not in self._answers:
            try:
                number, fault = self.connections[ticket.worker].recv()
            except (EOFError, OSError):
                raise self._dead(ticket.worker) from None
            self._answers[number] = fault
        fault = self._answers.pop(ticket.number)
        if fault is not None:
            raise UserError(fault)
        return _carve(self.memory[ticket.slot], work) if work else []

    def _dead(self, worker: int) -> UserError:
        process = self.processes[worker]
        process.join(_STOP_SECONDS)
        return UserError(
            f"{process.name}: this worker process ended with code {process.exitcode}, probably for lack of memory;"
            " lower pretrain.workers or pretrain.batch and run the same command again"
        )


def _carve(slot: Tensor, work: CutJob) -> list[Tensor]:
    views, start = [], 0
    for one in work.cuts:
        shape = (len(work.positions), CHANNELS, one.size, one.size)
        count = int(np.prod(shape))
        views.append(slot[start : start + count].view(shape))
        start += count
    return views


def _stop(owner: int, connections: Sequence[Connection], processes: Sequence[BaseProcess]) -> None:
    """Close the pipes, which ends the workers; does nothing in a fork that inherited this object."""
    if os.getpid() != owner:
        return
    for connection in connections:
        connection.close()
    for process in processes:
        process.join(_STOP_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()


def _work(data: EncodedData, memory: Tensor, connection: Connection) -> None:
    """What a worker does until its pipe closes. Its parent handles interrupts and then closes the pipe."""
    gc.freeze()  # never collect the parent's objects here: their files would be closed twice
    _close_inherited(connection.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            number, slot, work = connection.recv()
            connection.send((number, _cut_or_fault(data, work, memory[slot])))


def _cut_or_fault(data: EncodedData, work: CutJob, slot: Tensor) -> str | None:
    """Cut a chunk into its slot; return the error in one line, or None."""
    try:
        cut_job(data, work, _carve(slot, work))
    except UserError as error:
        return str(error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{place.filename}:{place.lineno}: {type(error).__name__} in a loader worker: {error}"
    return None


def _close_inherited(kept: int) -> None:
    """Close every inherited file but the standard ones and `kept`: a run's lock must end with a killed parent."""
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
