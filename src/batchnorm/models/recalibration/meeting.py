"""All batches at once, one thread each: they wait for one another at every batch norm layer."""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from batchnorm.models.recalibration.batch_moments import Part, part_of, sample_summaries
from batchnorm.models.recalibration.forwards import Caller, Enough, Visits
from batchnorm.models.recalibration.targets import Target

Resolve = Callable[[str, dict[int, Part]], None]


class TooManyThreads(Exception):
    """The system does not start that many."""


class _Abort(BaseException):
    """Unwinds a thread of a meeting that has failed elsewhere."""


@dataclass
class Attendee:
    """One batch: the layers it reached in order, and what it waits with."""

    number: int
    batch: Any
    names: list[str] = field(default_factory=list)
    summaries: dict[str, Tensor] = field(default_factory=dict)
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


@dataclass
class Meeting:
    """Runs every batch up to the next layer, has `resolve` settle that layer's statistics, and goes on.

    The calling thread decides who runs: at most `slots` batches compute at a time, in the order of
    their numbers, and `resolve(name, parts)` is called in the calling thread when nobody can go on.
    A batch that has ended its forward, or never reaches a layer, keeps no other waiting. Batches
    that wait at different layers are settled one layer after the other, in the order of `names`.
    """

    caller: Caller
    visits: Visits
    names: list[str]
    resolve: Resolve
    # A batch that has come through exactly these layers has nothing left to report.
    expected: tuple[str, ...] | None = None
    slots: int = 1
    _inbox: queue.SimpleQueue[tuple[int, str, Any]] = field(default_factory=queue.SimpleQueue)
    _stop: bool = False

    def run(self, batches: list[tuple[int, Any]]) -> list[Attendee]:
        """Every batch to its end, or through the layers expected; the first error is raised after all have stopped."""
        attendees = {number: Attendee(number, batch) for number, batch in batches}
        carried = _Carried()
        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(self._attend, a, carried), daemon=True)
            for a in attendees.values()
        ]
        try:
            with _one_core_each(self.slots):
                _start(threads)
                self._preside(attendees)
        finally:
            self._stop = True
            for attendee in attendees.values():
                attendee.go.release()
            for thread in threads:
                _join(thread)
        return list(attendees.values())

    def _preside(self, attendees: dict[int, Attendee]) -> None:
        ready = deque(attendees)
        waiting: dict[int, tuple[str, Part]] = {}
        running = 0
        while True:
            while ready and running < self.slots:
                attendees[ready.popleft()].go.release()
                running += 1
            if running:
                number, event, value = self._inbox.get()
                running -= 1
                if event == "failed":
                    raise value
                if event == "waits":
                    waiting[number] = value
                continue
            if not waiting:
                return
            name = min((name for name, _ in waiting.values()), key=self.names.index)
            here = sorted(number for number, (at, _) in waiting.items() if at == name)
            self.resolve(name, {number: waiting.pop(number)[1] for number in here})
            ready.extend(here)

    def _attend(self, attendee: Attendee, carried: _Carried) -> None:
        try:
            self._wait(attendee)
            with carried.over(), self.visits.by(_Visit(self, attendee), threads=True):
                batch, attendee.batch = attendee.batch, None
                self.caller(batch, attendee.number)
        except Enough:
            pass
        except _Abort:
            return
        except BaseException as error:
            self._inbox.put((attendee.number, "failed", error))
            return
        self._inbox.put((attendee.number, "done", None))

    def _wait(self, attendee: Attendee) -> None:
        attendee.go.acquire()
        if self._stop:
            raise _Abort


@dataclass
class _Visit:
    meeting: Meeting
    attendee: Attendee

    def arrive(self, target: Target, x: Tensor, weight: Tensor | None) -> None:
        if x.numel() == 0:
            return
        attendee, meeting = self.attendee, self.meeting
        if weight is None and x.shape[0] > 1:
            attendee.summaries = {**dict(list(attendee.summaries.items())[:1]), target.name: sample_summaries(x).cpu()}
        attendee.names.append(target.name)
        part = part_of(x, weight)
        meeting._inbox.put((attendee.number, "waits", (target.name, part)))
        meeting._wait(attendee)
        if tuple(attendee.names) == meeting.expected:
            raise Enough


def _start(threads: list[threading.Thread]) -> None:
    for thread in threads:
        try:
            thread.start()
        except RuntimeError as error:
            raise TooManyThreads(f"{len(threads)} threads could not be started") from error


def _join(thread: threading.Thread) -> None:
    """Wait for a thread to end; one whose start was interrupted may be running without being known as started."""
    while thread.ident is not None:
        try:
            thread.join()
            return
        except RuntimeError:
            time.sleep(0.001)


@contextmanager
def _one_core_each(slots: int) -> Iterator[None]:
    """Several batches at a time compute on their share of the cores; threads started within see the setting."""
    cores = torch.get_num_threads()
    torch.set_num_threads(max(1, cores // slots))
    try:
        yield
    finally:
        torch.set_num_threads(cores)


class _Carried:
    """What torch keeps per thread, taken from the thread that made this."""

    def __init__(self) -> None:
        self.grad = torch.is_grad_enabled()
        self.inference = torch.is_inference_mode_enabled()
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        self.casts = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]
        self.cache = torch.is_autocast_cache_enabled()
        self.device = torch.empty(0).device
        self.stream = torch.cuda.current_stream() if torch.cuda.is_available() and torch.cuda.is_initialized() else None

    @contextmanager
    def over(self) -> Iterator[None]:
        """The same in this thread."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(self.inference))
            stack.enter_context(torch.set_grad_enabled(self.grad))
            for device, enabled, dtype in self.casts:
                stack.enter_context(torch.autocast(device, dtype, enabled, self.cache))
            if self.device.type != "cpu":
                stack.enter_context(self.device)
            if self.stream is not None:
                stack.enter_context(torch.cuda.device(self.stream.device))
                stack.enter_context(torch.cuda.stream(self.stream))
            yield
