"""One supervised child: started until ready, started again when it ends, stopped in the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal

from workers.local.errors import StackError, StartFailed
from workers.local.probe import until
from workers.local.process import Child, Command, describe_exit
from workers.local.servers import Server
from workers.local.state import ProcessState
from workers.runtime.wait import event_within

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0
# Up for so long, the next failure is a new one: back-off begins anew.
_STEADY_S = 60.0


class Service:
    """A child process that should run until `stop`.

    Args:
        server: how to start it and how to know that it is ready.
        say: tells the owner what happened.
        changed: called after each change of `state`.
        force: when set, `stop` kills at once.
    """

    def __init__(
        self,
        server: Server,
        *,
        say: Callable[[str], None],
        changed: Callable[[], None],
        force: asyncio.Event,
    ) -> None:
        self._server = server
        self._say = say
        self._changed = changed
        self._force = force
        self._stopping = asyncio.Event()
        self._child: Child | None = None
        self.state = ProcessState(server.command.name)

    @property
    def name(self) -> str:
        """Name of the process."""
        return self._server.command.name

    async def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises:
            StartFailed: it ended or was not ready in time; with the end of its log.
        """
        child = self._child = _spawn(self._server.command)
        self._set("starting", child.pid)
        ready = asyncio.ensure_future(until(self._server.ready))
        ended = asyncio.ensure_future(child.wait())
        try:
            await asyncio.wait(
                {ready, ended},
                timeout=self._server.deadline_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if ended.done():
                raise self._failed(child, f"ended while starting ({describe_exit(ended.result())})")
            if not ready.done():
                raise self._failed(child, f"was not ready after {self._server.deadline_s:.0f} s")
            ready.result()
        finally:
            ready.cancel()
            ended.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)
        self._set("ready", child.pid)

    async def keep(self) -> None:
        """Start the process again, with back-off, whenever it ends before `stop`."""
        delay_s = _FIRST_DELAY_S
        while self._child is not None:
            code = await self._child.wait()
            if self._stopping.is_set():
                return
            if time.time() - self.state.since > _STEADY_S:
                delay_s = _FIRST_DELAY_S
            self.state.last_exit = describe_exit(code)
            self.state.restarts += 1
            self._set("backing off", None)
            self._say(f"{self.name} ended ({describe_exit(code)}); starting it in {delay_s:g} s")
            if await event_within(self._stopping, delay_s):
                return
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
            try:
                await self.start()
                self._say(f"{self.name} runs again")
            except StackError as error:
                if self._stopping.is_set():
                    return
                self._say(str(error))
                await self._child.stop(self._force)

    async def stop(self) -> None:
        """Stop the process; it is not started again."""
        self._stopping.set()
        if self._child is not None and self._child.exit_code is None:
            await self._child.stop(self._force)
        self._set("stopped", None)

    def _failed(self, child: Child, what: str) -> StartFailed:
        log = child.log_tail()
        shown = f"\n{log}" if log else " (it is empty)"
        return StartFailed(f"{self.name} {what}; the end of {child.command.log}:{shown}")

    def _set(
        self, state: Literal["starting", "ready", "backing off", "stopped"], pid: int | None
    ) -> None:
        self.state.state, self.state.pid, self.state.since = state, pid, time.time()
        self._changed()


async def run_once(command: Command, deadline_s: float) -> None:
    """Run a process that ends by itself.

    Raises:
        StartFailed: it failed or did not end within `deadline_s` seconds; with the end of its log.
    """
    child = _spawn(command)
    try:
        async with asyncio.timeout(deadline_s):
            code = await child.wait()
    except TimeoutError:
        what = f"did not end within {deadline_s:.0f} s"
    else:
        what = f"failed ({describe_exit(code)})" if code else ""
    finally:
        if child.exit_code is None:
            await child.stop(asyncio.Event())
    if what:
        raise StartFailed(f"{command.name} {what}; its log:\n{child.log_tail()}")


def _spawn(command: Command) -> Child:
    try:
        return Child(command)
    except OSError as error:
        raise StartFailed(f"{command.name} cannot be started: {error.strerror}") from error
