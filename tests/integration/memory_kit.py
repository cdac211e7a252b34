"""The memory of another process: find keys in it, and say who owns the bytes around them.

Linux and CPython on x86-64 or ARM64. The process is stopped while it is read, and named owners are
read off its own structures: the pools of Python's allocator say exactly which blocks are in use,
the headers of `bytes` and `bytearray` what is in them, stack pointers how much of a stack is alive.
In the C library's heap (glibc's) a block is looked for that something points to, and that the block
behind it says is in use.
"""

from __future__ import annotations

import base64
import math
import os
import re
import signal
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

_MASK = (1 << 64) - 1
_POOL = 1 << 14
_POOL_HEADER = 48
_BYTES_HEADER = 32
_LIBRARIES = re.compile(r"\.so[.\d]*$")
# Far more than any block in which a key was ever seen.
_NEAR = 4096


class Owner(StrEnum):
    """Whose bytes they are."""

    OURS = "a live Python object"
    LIBRARY = "a block of the C heap in use"
    FREED_PYTHON = "a freed block of Python's allocator"
    FREED = "freed memory of the C heap"
    STACK = "a stack, in use"
    OLD_STACK = "a stack, below its end"
    STATIC = "static data of a library"


@dataclass(frozen=True, slots=True)
class Hit:
    """A key that was found: under which name, at which address, whose, and what is known of it."""

    key: str
    address: int
    owner: Owner
    about: str

    def __str__(self) -> str:
        return f"{self.key} at {self.address:#x}: {self.owner.value} ({self.about})"


@dataclass(frozen=True, slots=True)
class _Region:
    start: int
    data: bytes
    name: str

    @property
    def end(self) -> int:
        return self.start + len(self.data)


def forms(key: bytes) -> dict[str, bytes]:
    """Return the forms of a key that are as good as the key, by their names."""
    return {
        "itself": key,
        "hex": key.hex().encode(),
        "base64": base64.b64encode(key)[:40],
        **{f"HMAC {pad}": state for pad, state in _hmac_states(key).items()},
    }


def _hmac_states(key: bytes) -> dict[str, bytes]:
    """Return what HMAC-SHA-512 makes of a key: its padded forms, and the hash's state after each.

    The states are as OpenSSL holds them, in words of this machine.
    """
    found = {}
    for name, pad in (("inner", 0x36), ("outer", 0x5C)):
        block = bytes(byte ^ pad for byte in key.ljust(128, b"\0"))
        found[f"{name} pad"] = block[: len(key)]
        found[f"{name} state"] = struct.pack("=8Q", *_sha512_block(block))
    return found


def _sha512_block(block: bytes) -> list[int]:
    """Return the state of SHA-512 after its first block (FIPS 180-4, 6.4)."""
    primes = [n for n in range(2, 410) if all(n % p for p in range(2, math.isqrt(n) + 1))]
    start = [math.isqrt(p << 128) & _MASK for p in primes[:8]]
    words = list(struct.unpack(">16Q", block))
    for t in range(16, 80):
        one, two = words[t - 15], words[t - 2]
        small = _rotate(one, 1) ^ _rotate(one, 8) ^ one >> 7
        large = _rotate(two, 19) ^ _rotate(two, 61) ^ two >> 6
        words.append((words[t - 16] + small + words[t - 7] + large) & _MASK)
    a, b, c, d, e, f, g, h = start
    for prime, word in zip(primes, words, strict=True):
        first = h + (_rotate(e, 14) ^ _rotate(e, 18) ^ _rotate(e, 41)) + (e & f ^ ~e & g)
        first += (_cube_root(prime << 192) & _MASK) + word
        second = (_rotate(a, 28) ^ _rotate(a, 34) ^ _rotate(a, 39)) + (a & b ^ a & c ^ b & c)
        a, b, c, d, e, f, g, h = (first + second) & _MASK, a, b, c, (d + first) & _MASK, e, f, g
    return [(x + y) & _MASK for x, y in zip(start, (a, b, c, d, e, f, g, h), strict=True)]


def _rotate(word: int, by: int) -> int:
    return (word >> by | word << 64 - by) & _MASK


def _cube_root(number: int) -> int:
    low, high = 0, 1 << (number.bit_length() // 3 + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**3 <= number else (low, middle - 1)
    return low


def readable() -> bool:
    """Whether this process may read the memory of others."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return False
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    cap_sys_ptrace = 1 << 19
    return found is not None and bool(int(found[1], 16) & cap_sys_ptrace)


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 120
        while any(state not in "Tt" for state in _states(pid)):
            assert time.monotonic() < deadline, "the process does not stop"
            time.sleep(0.001)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _states(pid: int) -> list[str]:
    states = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        # A thread may end while the others are asked.
        with suppress(FileNotFoundError, ProcessLookupError):
            states.append((task / "stat").read_text().rpartition(") ")[2][0])
    return states


class Image:
    """All that a process could write to, as it was at one moment."""

    def __init__(self, pid: int) -> None:
        """Read it. Raises OSError: not allowed to."""
        self._regions: list[_Region] = []
        self._libraries: dict[str, int] = {}
        with _stopped(pid):
            memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
            try:
                for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                    self._read(memory, line)
            finally:
                os.close(memory)
            self._stack_pointers = sorted(_stack_pointers(pid))
        own = _mappings()
        self._bytes, self._bytearray = (self._address_of_type(own, t) for t in (bytes, bytearray))
        self._freed_mark = self._find_freed_mark()
        self.size = sum(len(region.data) for region in self._regions)

    def _read(self, memory: int, line: str) -> None:
        span, permissions, _, _, _, *rest = line.split(maxsplit=5)
        start, end = (int(number, 16) for number in span.split("-"))
        name = rest[0] if rest else ""
        self._libraries.setdefault(name, start)
        if permissions.startswith("rw"):
            self._regions.append(_Region(start, os.pread(memory, end - start, start), name))

    def _address_of_type(self, own: Mapping[str, tuple[int, int]], what: type) -> int:
        """Where that process has a type of Python's: it runs the same files as we do."""
        address = id(what)
        name, start = next(
            (name, start) for name, (start, end) in own.items() if start <= address < end and name
        )
        return address - start + self._libraries[name]

    def _find_freed_mark(self) -> int | None:
        """Return the word that glibc writes into each block of its caches of freed ones.

        The first block of the heap is the main thread's cache: 64 counts, 64 lists.
        """
        heap = next((region for region in self._regions if region.name == "[heap]"), None)
        if heap is None:
            return None
        for first in struct.unpack_from("<64Q", heap.data, 16 + 128):
            if heap.start <= first < heap.end:
                return self._u64(first + 8)
        return None

    def find(self, keys: Mapping[str, bytes]) -> list[Hit]:
        """Return every place where one of these keys is."""
        hits = []
        for name, key in keys.items():
            assert len(key) >= 16
            for region in self._regions:
                at = region.data.find(key)
                while at >= 0:
                    hits.append(Hit(name, region.start + at, *self._owner(region, at)))
                    at = region.data.find(key, at + 1)
        return hits

    def _owner(self, region: _Region, at: int) -> tuple[Owner, str]:
        address = region.start + at
        if _LIBRARIES.search(region.name):
            return Owner.STATIC, Path(region.name).name
        if (stack := self._stack(region, address)) is not None:
            return stack
        if (block := self._block(region, at)) is not None:
            start, size, used = block
            about = f"{self._python_object(start, address)} in a block of {size} bytes"
            return (Owner.OURS if used else Owner.FREED_PYTHON), about
        return self._outside_pools(region, address)

    def _stack(self, region: _Region, address: int) -> tuple[Owner, str] | None:
        pointers = [sp for sp in self._stack_pointers if region.start <= sp < region.end]
        if not pointers:
            return None
        # Stacks of threads that lie side by side may be one region: the next pointer below counts.
        below = [sp for sp in pointers if sp <= address]
        if below:
            return Owner.STACK, f"{address - below[-1]} bytes above its pointer"
        return Owner.OLD_STACK, f"{pointers[0] - address} bytes below its pointer"

    def _block(self, region: _Region, at: int) -> tuple[int, int, bool] | None:
        """Find the block of Python's allocator: address, size, whether it is in use."""
        base = (region.start + at) // _POOL * _POOL - region.start
        if base < 0 or base + _POOL > len(region.data):
            return None
        count, free, _, _, _, size_class, fresh, last = struct.unpack_from(
            "<IxxxxQQQIIII", region.data, base
        )
        size = (size_class + 1) * 16
        if size_class >= 32 or last != _POOL - size or not 0 < count <= _POOL // size:
            return None
        number = (at - base - _POOL_HEADER) // size
        start = base + _POOL_HEADER + number * size
        seen = set()
        while free and free not in seen:
            seen.add(free)
            inside = free - region.start
            if not base <= inside < base + _POOL:
                return None
            [free] = struct.unpack_from("<Q", region.data, inside)
        address = region.start + start
        return address, size, address not in seen and start - base < fresh

    def _python_object(self, start: int, address: int) -> str:
        """Say what is in a block of Python's allocator."""
        if self._u64(start + 8) == self._bytes:
            return f"bytes of {self._u64(start + 16)}"
        pointers = self._pointers(start, address)
        return self._bytearray_over(address, pointers) or "neither bytes nor bytearray"

    def _outside_pools(self, region: _Region, address: int) -> tuple[Owner, str]:
        """Say what is in a block of the C heap, which large objects of Python are in, too."""
        where = region.name or "anonymous"
        pointers = self._pointers(max(region.start, address - _NEAR), address)
        if about := self._bytearray_over(address, pointers):
            return Owner.OURS, f"{about}, {where}"
        for start in {to for _, to in pointers}:
            size = self._u64(start + 16)
            if self._u64(start + 8) == self._bytes and address < start + _BYTES_HEADER + size:
                return Owner.OURS, f"bytes of {size}, {where}"
        for start in sorted({to for _, to in pointers}, reverse=True):
            size = self._u64(start - 8) & ~7
            if size % 16 == 0 and address < start - 16 + size <= region.end - 16:
                # The next block knows whether this one is in use; a cache of freed ones does not.
                used = self._u64(start - 8 + size) & 1
                kept = self._u64(start + 8) == self._freed_mark
                about = f"{address - start} bytes into a block of {size}, {where}"
                return (Owner.LIBRARY if used and not kept else Owner.FREED), about
        return Owner.FREED, f"nothing points to it, {where}"

    def _bytearray_over(self, address: int, pointers: list[tuple[int, int]]) -> str | None:
        """Find a `bytearray` among what points into or before a key, whose buffer holds it."""
        for holder, to in pointers:
            for offset in (32, 40):
                size = self._u64(holder - offset + 16)
                if self._u64(holder - offset + 8) == self._bytearray and address < to + size:
                    return f"buffer of a bytearray of {size}"
        return None

    def _u64(self, address: int) -> int:
        for region in self._regions:
            if region.start <= address <= region.end - 8:
                return int(struct.unpack_from("<Q", region.data, address - region.start)[0])
        return 0

    def _pointers(self, low: int, high: int) -> list[tuple[int, int]]:
        """Return aligned words that point into low..high, themselves not in there: (at, to)."""
        found = []
        for region in self._regions:
            words = np.frombuffer(region.data, "<u8", len(region.data) // 8)
            for place in np.nonzero((words >= low) & (words <= high))[0].tolist():
                at = region.start + 8 * place
                if not low <= at <= high:
                    found.append((at, int(words[place])))
        return found


def _mappings() -> dict[str, tuple[int, int]]:
    """Return where this process has its files: from the first to the last byte of each."""
    found: dict[str, tuple[int, int]] = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, _, *rest = line.split(maxsplit=5)
        start, end = (int(number, 16) for number in span.split("-"))
        name = rest[0] if rest else ""
        found[name] = (found[name][0] if name in found else start, end)
    return found


def _stack_pointers(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        words = (task / "syscall").read_text().split()
        if len(words) >= 2:
            yield int(words[-2], 16)
