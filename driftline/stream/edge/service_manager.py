"""Signs of life for a service manager that restarts what hangs: systemd's protocol (``sd_notify``)."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Callable, Mapping


class ServiceManager:
    """Tells a service manager that the process is ready, alive, or about to stop; without one it says nothing.

    The manager names its socket and the seconds after which silence means that the process hangs in the environment
    (``NOTIFY_SOCKET``, ``WATCHDOG_USEC``, ``WATCHDOG_PID``). A manager that does not listen stops nobody.

    Parameters
    ----------
    environment : mapping of str to str, optional
        Default: the process's own.
    clock : callable
        Returns seconds.

    Examples
    --------
    >>> manager = ServiceManager({})
    >>> manager.ready()
    >>> manager.interval
    inf
    """

    def __init__(
        self, environment: Mapping[str, str] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        environment = os.environ if environment is None else environment
        address = environment.get("NOTIFY_SOCKET", "")
        # Names with @ are in the kernel's own space.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        whose = environment.get("WATCHDOG_PID")
        watched = self._address and whose in (None, str(os.getpid()))
        silence = environment.get("WATCHDOG_USEC", "") if watched else ""
        self.interval = int(silence) / 2e6 if silence.isdigit() else math.inf
        self._clock, self._said = clock, clock()

    def ready(self) -> None:
        """Say that answers are given from now on."""
        self._say("READY=1")

    def alive(self, status: str) -> None:
        """Say that all goes on, twice in the time after which silence counts, and what there is to say."""
        if not 0 <= self._clock() - self._said < self.interval:
            self._said = self._clock()
            self._say(f"WATCHDOG=1\nSTATUS={status}")

    def stopping(self) -> None:
        """Say that the end has begun."""
        self._say("STOPPING=1")

    def _say(self, text: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.setblocking(False)
            to.sendto(text.encode(), self._address)
