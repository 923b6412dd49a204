"""The Stream face over one transport: a socket that looks like a Stream.

Theory of operation. It is write-through: `send_nowait` offers the bytes to the transport at once and keeps nothing; what is
not taken stays with the caller, and `on_writable` follows. It reads once per turn (64 KiB, or up to
256 KiB of a peer that fills its reads) and hands that over at once; when a
window's worth is unconsumed the transport is not watched until half of that has been consumed.

The kernel gives an error only once, so after a failed send the transport is still read to its end (the answer may be
there), but that end is then told as a reset and never as EOF.

A Stream frees itself when both halves have ended: the transport is closed once it holds nothing more. A reader that stopped
before the peer had ended waits for that end for a while (LINGER_SECONDS), lest the kernel answer unread input by a reset that
destroys what is still under way to the peer. Meanwhile it reads and drops LINGER_BYTES, and leaves the rest unread.
"""

from __future__ import annotations

from collections.abc import Callable

from netbore.link.base import READ, Owned, next_read
from netbore.link.poller import Poller
from netbore.link.transport import Facts, Transport, TransportBroken
from netbore.proto.errors import LocalProtocolError
from netbore.proto.stream import LINGER_BYTES, LINGER_SECONDS, SOCKET_WINDOW, Data, Sink
from netbore.proto.wire import HOST_ENDED, Code

#: Most reads of one `read_now`.
READS_NOW = 4
#: How long the transport may take to hand its last bytes to the kernel after both halves ended.
TAIL_SECONDS = 10.0

FAILED = {
    "refused": Code.HOST_REFUSED,
    "unreachable": Code.HOST_UNREACHABLE,
    "timeout": Code.HOST_TIMEOUT,
    "tls": Code.HOST_TLS,
    "untrusted": Code.HOST_TLS,
    "truncated": Code.HOST_TLS,
}


class TransportStream:
    """One transport as a Stream. `on_closed(stream)` is posted once the transport has been closed, whatever the reason."""

    __slots__ = (
        "_aborting",
        "_dropped",
        "_dropping",
        "_eof_sent",
        "_freed",
        "_full",
        "_input",
        "_low",
        "_over",
        "_paused",
        "_poller",
        "_read_size",
        "_receiving",
        "_reset",
        "_send_failed",
        "_sending",
        "_sink",
        "_transport",
        "_unconsumed",
        "_untold",
        "_window",
        "_writable",
        "deadline",
        "on_closed",
        "sent",
    )

    def __init__(
        self,
        poller: Poller,
        transport: Transport,
        sink: Sink | None = None,
        *,
        window: int = SOCKET_WINDOW,
        on_closed: Callable[[TransportStream], None] | None = None,
    ) -> None:
        """Become the owner of `transport`, open or not. Nothing is read while `sink` is None."""
        self._poller = poller
        self._transport = transport
        self._sink = sink
        self._window, self._low = window, window // 2
        self.on_closed = on_closed
        #: How many bytes the transport has accepted.
        self.sent = 0
        self.deadline: float | None = None
        self._sending = self._receiving = True
        self._writable = True
        self._input = True  # the transport's end has not been seen
        self._paused = self._full = self._dropping = False
        self._eof_sent = self._send_failed = False
        self._read_size = READ
        self._reset = self._over = self._freed = self._aborting = False
        self._unconsumed = self._dropped = 0
        self._untold: dict[str, tuple[int, ...]] = {}
        poller.at_end(self._poller_ends)
        transport.owner = self
        self._rewatch()

    # The face: what is known.

    @property
    def transport(self) -> Transport:
        return self._transport

    @property
    def facts(self) -> Facts:
        return self._transport.facts

    @property
    def sink(self) -> Sink | None:
        return self._sink

    @sink.setter
    def sink(self, sink: Sink | None) -> None:
        self._sink = sink
        if sink is not None and self._untold:
            self._poller.post(self._tell_untold)
        self._rewatch()

    @property
    def writable(self) -> bool:
        return self._writable

    @property
    def sending(self) -> bool:
        return self._sending

    @property
    def receiving(self) -> bool:
        return self._receiving

    @property
    def granted(self) -> int:
        return 0

    @property
    def begun(self) -> int:
        return 0

    @property
    def suspended(self) -> bool:
        return False

    # The face: commands.

    def send_nowait(self, data: Data) -> int:
        if not self._sending:
            if self._eof_sent and not self._reset and not self._send_failed:
                raise LocalProtocolError(Code.INTERNAL_ERROR, "sending after the end")
            return len(data)
        try:
            count = self._transport.try_send(data)
        except TransportBroken:
            self._fail_sending()
            return len(data)
        self.sent += count
        if count < len(data):
            self._writable = False
            self._rewatch()
        return count

    def send_eof(self) -> None:
        if self._sending:
            self._sending = False
            self._eof_sent = True
            self._transport.send_eof()
            self._rewatch()
            self._half_ended()

    def stop(self, code: int = 0) -> None:
        if self._receiving:
            self._receiving = False
            self._dropping = self._input
            self._rewatch()
            self._half_ended()

    def reset(self, code: int, delivered: int = 0) -> None:
        if self._reset or self._over:
            return
        self._end_at_once()
        if code in HOST_ENDED:
            self._abort_when_sent()
        else:
            self._free(abort=True)

    def pause(self) -> None:
        self._paused = True
        self._rewatch()

    def resume(self) -> None:
        self._paused = False
        self._rewatch()

    def consumed(self, count: int) -> None:
        self._unconsumed -= count
        if self._full and self._unconsumed < self._low:
            self._full = False
            self._rewatch()

    def release(self) -> None:
        if self._sending or self._receiving:
            self.reset(Code.CANCELLED)

    def surrender(self) -> Transport:
        """Give the transport away: this Stream is over, and touches it no more.

        Nothing was read beyond what the sink was given.
        """
        self._freed = self._over = self._reset = True
        self._sending = self._receiving = self._input = self._dropping = False
        self._sink = None
        self._poller.sweep_no_more(self)
        self._poller.not_at_end(self._poller_ends)
        self._transport.watch(False, False)
        return self._transport

    def replace(self, transport: Transport) -> None:
        """Go on over `transport`, in place of one that never opened: for those who dial."""
        self._transport = transport
        transport.owner = self
        self._rewatch()

    def quiet(self) -> bool:
        """Surely neither an end nor an error of the peer is here at this moment. False where that cannot be told: `read_now`."""
        return self._transport.quiet()

    def read_now(self) -> None:
        """Read what is there at this moment, as far as it is wanted, and tell the sink before returning.

        The one command that calls the sink from inside. For a sink that must know, before it sends, whether the peer has ended
        already, though the turn has not come to this transport yet. Only from the turn.
        """
        for _ in range(READS_NOW):
            if not self._receiving or self._paused or self._full or self._sink is None or not self.on_readable():
                return

    # What the transport tells.

    def on_open(self) -> None:
        """Bytes may flow; what is watched was chosen before. An end that was asked for before could not be told yet."""
        if self._eof_sent and not self._freed:
            self._transport.send_eof()

    def on_failed(self, error: TransportBroken) -> None:
        self._told_reset(FAILED.get(error.kind, Code.HOST_CLOSED))

    def on_readable(self) -> bool:
        """Read once and tell the sink. Whether there was data."""
        asked = self._read_size
        if asked > READ:
            asked = max(READ, min(asked, self._window - self._unconsumed))
        try:
            data = self._transport.try_recv(asked)
        except TransportBroken:
            self._input_broken()
            return False
        if not data:
            if data is not None:
                self._input_ended()
            return False
        count = len(data)
        if count > READ // 2 or asked > READ:
            self._read_size = next_read(count, asked)
        sink = self._sink
        if sink is None or not self._receiving:
            self._drop(count)
            return True
        self._unconsumed += count
        sink.on_data(data)
        if self._unconsumed >= self._window:
            self._full = True
            self._rewatch()
        return True

    def on_writable(self) -> None:
        if self._over or self._aborting:
            if not self._transport.draining:
                self._tail_gone()
            return
        self._writable = True
        self._rewatch()
        self._tell("writable")

    def _input_ended(self) -> None:
        if self._send_failed and self._receiving:
            return self._told_reset(Code.HOST_CLOSED)
        self._input = self._dropping = False
        self._rewatch()
        if self._receiving:
            self._receiving = False
            if self._sink is not None:
                self._sink.on_eof()
        self._half_ended()

    def _input_broken(self) -> None:
        if self._sending or self._receiving:
            self._told_reset(Code.HOST_CLOSED)
        else:
            self._free(abort=True)

    def _fail_sending(self) -> None:
        """A send failed: nobody reads any more what we send. Called from inside a command, so the sink hears of it later."""
        self._sending = False
        self._send_failed = self._writable = True
        self._poller.post(self._tell, "stop", Code.HOST_CLOSED)
        self._rewatch()
        self._half_ended()

    def _drop(self, count: int) -> None:
        self._dropped += count
        if not self._sending and self._dropped > LINGER_BYTES:
            # Not a reason to close at once: the kernel may still hold bytes that the peer is about to read.
            self._dropping = False
            self._rewatch()

    # What the sink is told, now or when there is one.

    def _tell(self, what: str, *args: int) -> None:
        if self._reset and what != "reset":
            return
        if self._sink is None:
            self._untold[what] = args
        else:
            getattr(self._sink, "on_" + what)(*args)

    def _tell_untold(self) -> None:
        untold, self._untold = self._untold, {}
        for what, args in untold.items():
            self._tell(what, *args)

    def _told_reset(self, code: int) -> None:
        """The connection is gone without our doing."""
        if not self._reset and not self._over:
            self._end_at_once()
            self._free(abort=True)
            self._tell("reset", code, self.sent)

    def on_crash(self, error: Exception) -> None:
        """The sink raised: the loss of this connection."""
        self._told_reset(Code.INTERNAL_ERROR)

    def _poller_ends(self) -> None:
        self._told_reset(Code.GOING_AWAY)

    # The end.

    def _half_ended(self) -> None:
        if self._sending or self._over or self._reset:
            return
        if not self._input and not self._receiving:
            self._over = True
            if self._transport.draining:
                self._set_deadline(TAIL_SECONDS)
                self._rewatch()
            else:
                self._free()
        elif self._dropping and self.deadline is None:
            self._dropped = 0
            self._set_deadline(LINGER_SECONDS)

    def _end_at_once(self) -> None:
        self._reset = True
        self._sending = self._receiving = self._dropping = self._input = False
        self._writable = True
        self._rewatch()

    def _abort_when_sent(self) -> None:
        """Abort, but not before what was accepted has reached the peer: an abort destroys what the kernel still has."""
        if self._all_sent():
            return self._free(abort=True)
        self._aborting = True
        self._set_deadline(LINGER_SECONDS)
        self._rewatch()
        self._poller.call_at(self._poller.now + self._poller.limits.sweep_seconds / 10, self._abort_if_sent)

    def _abort_if_sent(self) -> None:
        if self._freed:
            return
        if self._all_sent():
            self._free(abort=True)
        else:
            self._poller.call_at(self._poller.now + self._poller.limits.sweep_seconds / 10, self._abort_if_sent)

    def _all_sent(self) -> bool:
        transport = self._transport
        return not transport.draining and isinstance(transport, Owned) and transport.unsent() is False

    def _tail_gone(self) -> None:
        if self._over:
            self._free()
        else:
            self._rewatch()

    def _set_deadline(self, seconds: float) -> None:
        self.deadline = self._poller.now + seconds
        self._poller.sweep(self)

    def on_deadline(self, now: float) -> None:
        self._free(abort=self._aborting)

    def _free(self, abort: bool = False) -> None:
        if self._freed:
            return
        self._freed = self._over = True
        self._sending = self._receiving = self._input = self._dropping = self._aborting = False
        self.deadline = None
        self._poller.sweep_no_more(self)
        self._poller.not_at_end(self._poller_ends)
        self._transport.close(abort)
        if self.on_closed is not None:
            self._poller.post(self.on_closed, self)

    def _rewatch(self) -> None:
        """Watch what the state asks for; the one place that says so."""
        wants = self._dropping or (self._receiving and self._sink is not None and not self._paused and not self._full)
        tail = (self._over or self._aborting) and self._transport.draining
        self._transport.watch(self._input and wants, (self._sending and not self._writable) or tail)
