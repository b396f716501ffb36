"""A test double of a GPU: memory, streams and events on the CPU. It is no GPU and shows nothing of one's speed.

Work is kept until somebody waits for it, so that a result that nobody waited for is not there. Every access is
checked where it is given to a stream:

    memory      inside one allocation that was not freed
    order       after every earlier access it conflicts with, by stream order, events or the host's waiting
                (vector clocks: a race is an error even where it would have gone well)
    the host    reads pinned memory only when the copy to it is over, and changes it only when the copy from it is
    context     current on the calling thread
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

POISON = 0xFF  # nan, as float32 and as float16
BASE, GAP = 1 << 36, 4096  # of addresses, which are no addresses of the host

Clock = dict[int, int]  # stream -> how many of its works are known to be over
Range = tuple[int, int]  # address, bytes


class Fault(AssertionError):
    """What a GPU would not have told: it would have computed something, or something else."""


@dataclass
class Access:
    start: int
    stop: int
    writes: bool
    stream: int
    count: int
    what: str


@dataclass
class Allocation:
    start: int
    size: int
    data: np.ndarray
    freed: bool = False
    accesses: list[Access] = field(default_factory=list)


@dataclass
class Work:
    what: str
    reads: Sequence[Range]
    writes: Sequence[Range]
    run: Callable[[], None]


class Machine:
    def __init__(self) -> None:
        self._starts: list[int] = []
        self._allocations: list[Allocation] = []
        self._next = BASE
        self._clocks: dict[int, Clock] = {}
        self._host: Clock = {}
        self._pending: list[tuple[int, int, Work]] = []
        self._captures: dict[int, list[Work]] = {}
        self._contexts = threading.local()
        self._lock = threading.RLock()
        self.done: list[tuple[int, str]] = []  # (stream, what), in the order it was carried out
        self.waits = 0  # of the host

    # ---- context ----------------------------------------------------------------------------------------

    def push(self) -> None:
        self._contexts.depth = getattr(self._contexts, "depth", 0) + 1

    def pop(self) -> None:
        self._contexts.depth -= 1

    def need_context(self) -> None:
        if getattr(self._contexts, "depth", 0) < 1:
            raise Fault("no context is current on this thread")

    # ---- memory -----------------------------------------------------------------------------------------

    def allocate(self, size: int) -> int:
        self.need_context()
        start = self._next
        self._next += -(-size // GAP) * GAP + GAP
        self._starts.append(start)
        self._allocations.append(Allocation(start, size, np.full(size, POISON, np.uint8)))
        return start

    def free(self, start: int) -> None:
        """Waits for everything, as the driver does."""
        self.wait(dict.fromkeys(self._clocks, 1 << 60))
        allocation = self._find(start)
        allocation.freed, allocation.data = True, np.zeros(0, np.uint8)

    def view(self, start: int, size: int) -> np.ndarray:
        """The bytes of a range."""
        allocation = self._find(start)
        offset = start - allocation.start
        if allocation.freed:
            raise Fault(f"{size} bytes at freed memory")
        if offset + size > allocation.size:
            raise Fault(f"{size} bytes at byte {offset} of {allocation.size}")
        return allocation.data[offset : offset + size]

    def _find(self, address: int) -> Allocation:
        place = bisect.bisect_right(self._starts, address) - 1
        if place < 0 or address > self._allocations[place].start + self._allocations[place].size:
            raise Fault(f"address {address:#x} is in no allocation")
        return self._allocations[place]

    def rest(self, address: int) -> Range:
        """From an address to the end of its allocation."""
        allocation = self._find(address)
        return address, allocation.start + allocation.size - address

    # ---- streams ----------------------------------------------------------------------------------------

    def new_stream(self) -> int:
        self.need_context()
        stream = len(self._clocks) + 1
        self._clocks[stream] = {stream: 0}
        return stream

    def enqueue(self, stream: int, work: Work) -> tuple[int, int]:
        """Give work to a stream. Returns (stream, number of the work)."""
        self.need_context()
        if stream in self._captures:
            self._captures[stream].append(work)
            return stream, 0
        with self._lock:
            clock = self._clocks[stream]
            _merge(clock, self._host)
            clock[stream] += 1
            for ranges, writes in ((work.reads, False), (work.writes, True)):
                for start, size in ranges:
                    self.view(start, size)
                    self._check_order(stream, start, size, writes, work.what)
            self._pending.append((stream, clock[stream], work))
            return stream, clock[stream]

    def _check_order(self, stream: int, start: int, size: int, writes: bool, what: str) -> None:
        clock, allocation = self._clocks[stream], self._find(start)
        for access in allocation.accesses:
            overlaps = access.start < start + size and start < access.stop
            if overlaps and (writes or access.writes) and clock.get(access.stream, 0) < access.count:
                raise Fault(
                    f"{what} on stream {stream} does not wait for {access.what} on stream {access.stream}"
                )
        here = Access(start, start + size, writes, stream, clock[stream], what)
        same = (here.start, here.stop, here.writes, here.stream)
        allocation.accesses = [
            a for a in allocation.accesses if (a.start, a.stop, a.writes, a.stream) != same
        ] + [here]

    def record(self, stream: int) -> Clock:
        """What is over when an event recorded now has come."""
        self._not_capturing(stream)
        return dict(self._clocks[stream])

    def wait_on(self, stream: int, clock: Clock) -> None:
        """The stream's later work comes after an event."""
        self._not_capturing(stream)
        _merge(self._clocks[stream], clock)

    def wait(self, clock: Clock) -> None:
        """The host waits for an event, or for a stream (its own clock)."""
        with self._lock:
            self.waits += 1
            _merge(self._host, {s: min(n, self._clocks[s][s]) for s, n in clock.items()})
            left = []
            for stream, count, work in self._pending:
                if self._host.get(stream, 0) >= count:
                    work.run()
                    self.done.append((stream, work.what))
                else:
                    left.append((stream, count, work))
            self._pending = left

    def is_over(self, at: tuple[int, int]) -> bool:
        return self._host.get(at[0], 0) >= at[1]

    # ---- capture ----------------------------------------------------------------------------------------

    def begin_capture(self, stream: int) -> None:
        self._captures[stream] = []

    def end_capture(self, stream: int) -> list[Work]:
        return self._captures.pop(stream)

    def is_capturing(self, stream: int) -> bool:
        return stream in self._captures

    def _not_capturing(self, stream: int) -> None:
        self.need_context()
        if stream in self._captures:
            raise Fault("an event on a stream that captures")


def _merge(into: Clock, other: Clock) -> None:
    for stream, count in other.items():
        into[stream] = max(into.get(stream, 0), count)


class Pinned:
    """Pinned host memory, as much of an array as the runtime uses of it. Views share what is under way."""

    def __init__(self, machine: Machine, data: np.ndarray, under_way: list[Any] | None = None) -> None:
        self.machine, self.data = machine, data
        # (first address, last, is it written, work): copies that may not be over
        self.under_way: list[tuple[int, int, bool, tuple[int, int]]] = [] if under_way is None else under_way

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, part: Any) -> Pinned:
        return Pinned(self.machine, self.data[part], self.under_way)

    def view(self, of: Any) -> Pinned:
        return Pinned(self.machine, self.data.view(of), self.under_way)

    def reshape(self, shape: Any) -> Pinned:
        return Pinned(self.machine, self.data.reshape(shape), self.under_way)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if any(written for written in self._copies()):
            raise Fault("pinned memory is read before the copy to it is over")
        return np.array(self.data, dtype)

    def __setitem__(self, part: Any, value: Any) -> None:
        if self[part]._copies():
            raise Fault("pinned memory is changed before the copy from it is over")
        self.data[part] = value

    def copied(self, written: bool, work: tuple[int, int]) -> None:
        self.under_way.append((*self._bounds(), written, work))

    def _bounds(self) -> tuple[int, int]:
        start = self.data.ctypes.data
        return start, start + self.data.nbytes

    def _copies(self) -> list[bool]:
        self.under_way[:] = [copy for copy in self.under_way if not self.machine.is_over(copy[3])]
        start, stop = self._bounds()
        return [written for low, high, written, _ in self.under_way if low < stop and start < high]
