"""Each rank tells rank 0 where it is, over a connection of its own; a rank that stops or dies ends all others.

A thread beside the main one beats while the main thread waits in a collective. Rank 0 sees all ranks, so it can tell which
one the others wait for, and the others see rank 0. The process group is not used, for it is what hangs; nor is its store,
whose client waits without limit for a server that was stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import math
import os
import secrets
import socket
import threading
import time
import weakref
from typing import Any

import psutil
import torch.distributed as dist

from megatron_vlm.config.faults import FaultConfig
from megatron_vlm.errors import UserError
from megatron_vlm.training.faults import last_words
from megatron_vlm.training.faults.peers import Peer, Verdict, accuse, beat, find_fault, identity, silent_text
from megatron_vlm.training.faults.pulse import Pulse

#: seconds that a rank with an error gives the verdict that explains it, or others the error that they share
_GRACE = 2.0
#: seconds that a process which was stopped gives the signal of those that it kept waiting
_WAKING = 0.5
#: seconds for a connection to be made to one of rank 0's addresses
_CONNECT = 5.0


class Watchdog:
    """Watches this rank's peers from a thread. Every rank makes one, calls `start`, and `stop` when its loop has ended."""

    def __init__(self, config: FaultConfig, pulse: Pulse) -> None:
        self.config, self.pulse = config, pulse
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        now = time.monotonic()
        #: all ranks on rank 0; rank 0 alone on the others
        self.peers = [Peer(rank, now, config.long_timeout_s) for rank in (range(self.ranks) if self.rank == 0 else [0])]
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._judged = threading.Event()
        #: when the thread ran last, and when it did again after standing still for long
        self._ticked, self._woken = now, -math.inf
        self._own_error = False
        self._thread: threading.Thread | None = None

    # -- the main thread -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Every rank calls it. Does nothing for one rank, or where `faults.timeout_s` is 0."""
        if self.ranks == 1 or not self.config.timeout_s:
            return
        if not faulthandler.is_enabled():
            faulthandler.enable()  # SIGABRT then writes the stack, which last_words.end_process asks for
        listener = None
        meeting: list[Any] = [None]
        if self.rank == 0:
            alone = os.environ.get("LOCAL_WORLD_SIZE", str(self.ranks)) == str(self.ranks)
            listener = socket.create_server(("127.0.0.1" if alone else "", 0), backlog=self.ranks)
            meeting = [(_addresses(alone), listener.getsockname()[1], secrets.token_hex(16))]
        dist.broadcast_object_list(meeting, src=0)  # waits for every rank, however long one takes to get here
        for peer in self.peers:
            peer.heard = time.monotonic()
        self._ticked = time.monotonic()
        ready = threading.Event()
        addresses, port, token = meeting[0]
        work = self._lead(listener, token, ready) if listener else self._follow(addresses, port, token, ready)
        self._thread = threading.Thread(target=asyncio.run, args=(work,), name="watchdog", daemon=True)
        self._thread.start()
        ready.wait()
        os.register_at_fork(after_in_child=_closing(weakref.ref(self)))

    def stop(self) -> None:
        """This rank ends well, or by an error that `failed` has told of."""
        if self._thread is not None and self._thread.is_alive() and self._loop is not None and self._stopping is not None:
            with contextlib.suppress(RuntimeError):  # the thread's loop has just ended
                self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(timeout=5)

    def failed(self, error: BaseException) -> None:
        """`error` leaves this rank's loop. If another rank is its reason, does not return: that is told, and the process
        ends. Else the other ranks are told of it."""
        if self._thread is None or not self._thread.is_alive() or self._loop is None:
            return
        own = isinstance(error, (UserError, KeyboardInterrupt, SystemExit))
        if not own and self._judged.wait(2 * _GRACE):
            self._thread.join()
        self._own_error = True
        text = f"{type(error).__name__}: {error}".splitlines()[0][:500]
        with contextlib.suppress(RuntimeError, TimeoutError):
            asyncio.run_coroutine_threadsafe(self._tell_error(text), self._loop).result(timeout=5)

    # -- the thread ----------------------------------------------------------------------------------------------

    @property
    def _interval(self) -> float:
        return min(1.0, self.config.timeout_s / 8)

    def _begin(self, ready: threading.Event) -> asyncio.Event:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        ready.set()
        return self._stopping

    async def _lead(self, listener: socket.socket, token: str, ready: threading.Event) -> None:
        """Rank 0: hear everyone, judge, tell everyone."""
        stopping = self._begin(ready)
        me = identity()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            hello = await _read(reader)
            if hello is None or hello.get("token") != token or hello.get("rank") not in range(1, self.ranks):
                writer.close()
                return
            peer = self.peers[hello["rank"]]
            self._writers[peer.rank] = writer
            _write(writer, {"kind": "hello", **me})
            # asyncio of Python 3.11 prints a traceback for a handler that ends cancelled, as at the end of a run
            with contextlib.suppress(asyncio.CancelledError):
                await self._hear(peer, hello, reader)

        server = await asyncio.start_server(serve, sock=listener)
        async with server:
            while not stopping.is_set():
                self._tick()
                now = time.monotonic()
                message = beat(self.pulse, now)
                self.peers[0].hear(now, {**me, **message})
                self._say({"kind": "beat", **message})
                await self._awake()
                verdict = find_fault(self.peers, time.monotonic(), self.config.timeout_s)
                if verdict is not None:
                    await self._conclude(verdict)
                await _pause(stopping, self._interval)
            self._say({"kind": "bye"})
            await self._drain()

    async def _follow(self, addresses: list[str], port: int, token: str, ready: threading.Event) -> None:
        """The other ranks: tell rank 0, hear it."""
        stopping, leader = self._begin(ready), self.peers[0]
        found = await _connect(addresses, port)
        if found is None:
            where = ", ".join(addresses)
            text = f"rank 0 could not be reached at {where}, port {port}; faults.timeout_s 0 leaves ranks unwatched"
            await self._conclude(Verdict(text))
            return
        reader, writer = found
        self._writers[0] = writer
        _write(
            writer, {"kind": "hello", "rank": self.rank, "token": token, **identity(), **beat(self.pulse, time.monotonic())}
        )
        hearing = asyncio.create_task(self._hear(leader, {}, reader))
        while not stopping.is_set():
            self._tick()
            now = time.monotonic()
            self._say({"kind": "beat", **beat(self.pulse, now)})
            if not leader.left and leader.silent(now, self.config.timeout_s):
                await self._conclude(Verdict(silent_text(leader, now, self.rank), self._accuse_leader()))
            await _pause(stopping, self._interval)
        self._say({"kind": "bye"})
        await self._drain()
        hearing.cancel()

    def _accuse_leader(self) -> Any:
        mine = Peer(self.rank, 0.0, 0.0, **identity())
        return accuse(self.peers, [*self.peers, mine])

    async def _hear(self, peer: Peer, first: dict[str, Any], reader: asyncio.StreamReader) -> None:
        """Messages of `peer` until it leaves; a connection that ends without a word is a process that died."""
        message: dict[str, Any] | None = first
        while message is not None:
            peer.hear(time.monotonic(), message)
            kind = message.get("kind")
            if kind == "bye":
                peer.left = True
            elif kind == "verdict":
                await self._conclude(Verdict.from_map(message))
            elif kind == "failed":
                peer.left = True
                await self._conclude(_failure(peer, message["text"]))
            message = await _read(reader)
        if not peer.left and self._stopping is not None and not self._stopping.is_set():
            await self._conclude(Verdict(f"{peer.name} died; it was last seen {peer.place}"))

    def _tick(self) -> None:
        now = time.monotonic()
        if now - self._ticked > self.config.timeout_s / 2:
            self._woken = now
        self._ticked = now

    async def _awake(self) -> None:
        """After this process stood still for long, let the signal that ends it for that come first: it tells its stack."""
        self._tick()
        left = self._woken + _WAKING - time.monotonic()
        if left > 0:
            await asyncio.sleep(left)

    async def _conclude(self, verdict: Verdict) -> None:
        """The run cannot go on: tell the others, then end, unless this rank ends by an error of its own."""
        await self._awake()
        if self._judged.is_set():
            return
        if verdict.failed:
            # others may be about to raise the same error, whose own message and exit code are better
            self._say({"kind": "verdict", **verdict.to_map()})
            await self._drain()
            await asyncio.sleep(_GRACE)
        if self._own_error:
            return
        self._judged.set()
        if not verdict.failed:
            self._say({"kind": "verdict", **verdict.to_map()})
            await self._drain()
        last_words.end(verdict, self.rank, self.pulse)

    async def _tell_error(self, text: str) -> None:
        now_at = beat(self.pulse, time.monotonic())
        if self.rank == 0:
            self.peers[0].hear(time.monotonic(), now_at)
            self._say({"kind": "verdict", **_failure(self.peers[0], text).to_map()})
        else:
            self._say({"kind": "failed", "text": text, **now_at})
        await self._drain()

    def _say(self, message: dict[str, Any]) -> None:
        for writer in self._writers.values():
            if not writer.is_closing():
                _write(writer, message)

    async def _drain(self) -> None:
        """Whoever does not take the message in half a second is not waited for."""
        drains = [asyncio.create_task(writer.drain()) for writer in self._writers.values()]
        if drains:
            done, _ = await asyncio.wait(drains, timeout=0.5)
            for task in done:
                task.exception()

    def close_in_child(self) -> None:
        """A forked child must not hold the connections open: their end tells that this process has died."""
        for writer in self._writers.values():
            with contextlib.suppress(OSError):
                os.close(writer.get_extra_info("socket").fileno())


def _failure(peer: Peer, text: str) -> Verdict:
    return Verdict(f"{peer.name} failed {peer.place}: {text}", failed=True)


def _closing(watchdog: weakref.ref[Watchdog]) -> Any:
    def close() -> None:
        alive = watchdog()
        if alive is not None:
            alive.close_in_child()

    return close


def _addresses(alone: bool) -> list[str]:
    """Where rank 0 may be reached, likeliest first."""
    if alone:
        return ["127.0.0.1"]
    interfaces = psutil.net_if_addrs().values()
    numbers = [a.address for addresses in interfaces for a in addresses if a.family == socket.AF_INET]
    return [socket.gethostname(), *(number for number in numbers if not number.startswith("127."))]


async def _connect(addresses: list[str], port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    for address in addresses:
        with contextlib.suppress(OSError, TimeoutError):
            return await asyncio.wait_for(asyncio.open_connection(address, port), _CONNECT)
    return None


def _write(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        writer.write(json.dumps(message).encode() + b"\n")


async def _read(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The next message; None where the connection has ended, or what comes is no message."""
    try:
        message = json.loads(await reader.readline() or b"null")
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None


async def _pause(stopping: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)
