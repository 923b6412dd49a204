"""The Stream face: how bytes move between any two parts of Netbore, without an await.

Theory of operation. A *Stream* is one bidirectional, half-closeable, flow-controlled byte stream. The Mux's
Streams have this face, and so has a socket (`netbore.link.socket_stream`), so that whatever moves bytes (relay, HTTP
connections, the Trio adapter) knows one face only. Its user is its *sink*.

- **Down** goes in one call: the Stream's bytes are decoded and given to `sink.on_data`, which may at once send on
  another Stream. `on_data`, `on_eof` and `on_reset` arrive in the order of the wire, except that a reset drops what
  still waits, unless it stands for the Host's end (`wire.HOST_ENDED`): then it waits behind its data, for that data
  may be the answer.
- **Up** is never a call from inside a command: `on_writable`, `on_stop` and a reset of our own making are posted to
  the turn's queue, and go to the sink of the moment of delivery. So no command can re-enter its caller.
- **Accepted means gone.** What `send_nowait` accepted is the Stream's; what it did not accept stays the caller's, who
  keeps it (at most what the source had credit for) and offers it again at `on_writable`.
- **Credit returns by `consumed`.** A sink calls it once the bytes that `on_data` gave it have left it, or at once for
  bytes that it has to keep until more arrive (a partial head, chunk line or message); those are bounded by a named
  limit of the sink's own, never by credit. What is not consumed is not asked for: this is the only back-pressure, and
  the only limit on what a sink can hold.
- **A dead Stream swallows.** Commands on a Stream that was reset, or whose half the peer stopped, do nothing;
  `send_nowait` then claims to have accepted everything, since nobody will want the rest.
- **There is no close.** A Stream has ended when both halves have, and then frees itself. An answer followed by a
  close is `send_eof()` and `stop()`.

Sink calls come only from the Poller's turn. Commands may come from any task of the same thread, between turns too;
what they post wakes the Poller.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

#: Bytes on their way. A memoryview is always over immutable bytes, so it stays true as long as it is held, but holding a
#: small view pins the whole buffer it was cut from: see `kept`.
Data: TypeAlias = bytes | memoryview

#: How much of a socket's input may be unconsumed.
SOCKET_WINDOW = 262144

#: A socket whose reader stopped stays open for so long after our half has ended, or to the peer's end, lest the kernel answer
#: unread input by RST and destroy the response that is still under way (RFC 9112 section 9.6). It drops so much input and
#: leaves the rest unread, so that a peer that only sends has to read at last.
LINGER_SECONDS = 2.0
LINGER_BYTES = 1048576

#: Slices shorter than this are copied when they are kept, longer ones are referenced.
COPY_BELOW = 4096


class Sink(Protocol):
    """What a Stream tells its user. Calls come from the Poller's turn, one at a time."""

    def on_data(self, data: Data) -> None:
        """`data` (at least one byte) arrived. Owe `consumed(len(data))`."""

    def on_eof(self) -> None:
        """The peer ended its half; all its data came before. Called once at most, and never after a reset."""

    def on_writable(self) -> None:
        """`send_nowait` may accept more than it last did. Posted; may be spurious."""

    def on_stop(self, code: int) -> None:
        """Nobody reads what is sent any more: our half has ended, whatever was queued is dropped.

        Receiving goes on. Posted; called once at most, and not after a reset.
        """

    def on_reset(self, code: int, delivered: int = 0) -> None:
        """Both halves ended at once, with a code of docs/protocol.md section 9. The last call of all.

        `delivered` is how many of our bytes reached the Host over the Stream's life, 0 where that does not apply.
        """


class Stream(Protocol):
    """One bidirectional byte stream. No method blocks, awaits, or calls the sink back from inside."""

    #: Who is told. May be changed at any time, from inside its own calls too: the next call goes to the new one, and what an
    #: `on_data` in progress was given belongs to the old. None pauses; an end that came meanwhile is posted to the next sink.
    sink: Sink | None

    @property
    def writable(self) -> bool:
        """False after a `send_nowait` that came short, while the queue is full, or while the Link is broken.

        Otherwise True, which is no promise on a socket. Once False, one `on_writable`, `on_stop` or `on_reset` is
        certain to follow.
        """

    @property
    def sending(self) -> bool:
        """Our half is open: no `send_eof`, stop or reset yet. False as soon as that is known, before the sink is told."""

    @property
    def receiving(self) -> bool:
        """The peer's half is open: no `on_eof`, `stop` or reset yet."""

    @property
    def granted(self) -> int:
        """How many bytes the peer may send without a further `consumed`; 0 on a socket."""

    @property
    def begun(self) -> int:
        """What `granted` was when the Stream was opened: a pool takes back one whose window has not grown since."""

    @property
    def suspended(self) -> bool:
        """The Link is broken: nothing moves, and timers over this Stream stand still."""

    def send_nowait(self, data: Data) -> int:
        """Take as much of `data` as there is room for and return how many bytes that was.

        Sending after our own `send_eof` is a bug and raises LocalProtocolError, unless the Stream was stopped or reset since.
        """

    def send_eof(self) -> None:
        """End our half after what was accepted. The other half goes on. Idempotent."""

    def stop(self, code: int = 0) -> None:
        """Take no more data: `on_data` and `on_eof` are not called again, what arrives is dropped. Our half goes on.
        Idempotent.

        A socket goes on reading and dropping; once our half has ended too, for at most LINGER_SECONDS, and LINGER_BYTES of it.
        """

    def reset(self, code: int, delivered: int = 0) -> None:
        """End both halves. No call to the sink follows, `on_reset` included. Idempotent.

        With a code of `wire.HOST_ENDED`, or NOT_PROCESSED, what was accepted goes first; any other code drops it.
        `delivered` is how many of the peer's bytes reached their end (protocol.md section 4.2).
        """

    def pause(self) -> None:
        """Deliver no data and no EOF until `resume`; what arrives waits inside the credit given.

        A reset that passes data comes at once; a socket learns of it at its next read or write.
        """

    def resume(self) -> None:
        """Deliver again; what has waited is posted, in order."""

    def consumed(self, count: int) -> None:
        """`count` bytes given to `on_data` have left the sink: the peer may send as many more.

        A socket has a fixed window (SOCKET_WINDOW): it is not read while that many bytes are unconsumed.
        """

    def release(self) -> None:
        """The user is done with the Stream, and with all that it did for it. Resets (cancelled) what is still open.
        Idempotent.

        On a Stream that the peer opened, this is what lets it open another (MAX_STREAMS).
        """


def kept(data: Data) -> Data:
    """`data` in the form in which it may be held: a short slice is copied, lest it pin its whole read buffer."""
    if type(data) is memoryview and len(data) < COPY_BELOW:
        return bytes(data)
    return data
