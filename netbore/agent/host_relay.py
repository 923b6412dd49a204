"""What the Agent does with a Stream that carries HTTP: dial the Host, relay, and know when nothing of a request reached it.

Theory of operation. It is a relay (`netbore.relay`) that gives one more verdict. The Agent never parses, but it can tell
whether the Host *spoke last*: how many bytes the Host's socket had accepted when the Host last said something, against how many
it has accepted now (`TransportStream.sent`, which does not count what a failed write swallowed). Equal means that no byte of this
Stream reached the Host since its last answer, or ever. If the Host ends in that state, whatever else the Stream brings is a
request that can be sent again, whatever its method: RESET(not_processed). The Edge reuses Streams, a Host closes idle
connections when it likes, and the two cross on a way that is as long as the Link: without the verdict each crossing would be a
failed request.

*Before the first write after the Host spoke last, we look for the Host's end*: the kernel is asked whether one has come
(`quiet`), and where it has, or cannot tell, the Host's socket is read (`read_now`), for its FIN or RST may be in the kernel, or
in the same batch of events behind the Link. So the order within a turn does not matter:

- Host first: its FIN is passed on as FIN at once, so that the Edge drops the idle Stream; DATA that comes later, or in
  the same turn, is answered by the verdict.
- Link first: the read finds the FIN and passes it on, and the verdict follows.

In both cases the verdict waits for the Link's next flush if that FIN has not left yet, for a RESET would take its place.

A TLS Host is read through its TLS; an end without close_notify is an error, and an error in that state is the same
verdict. Only what happens between that read and the arrival of the first byte remains, and then a byte was really given:
RESET(host_closed, delivered).

*The verdict must not destroy an answer.* "Spoke last" is also the state after an early answer, given while the request's body is
still on its way, and an answer may need its FIN to be whole. So there is no verdict at a FIN while bytes of the Host wait here
or in the Stream's queue: then the Edge cannot have had the whole answer, the connection is not idle, and DATA is relayed as
usual. Once answer and FIN have left, the Edge has them before the RESET, and keeps them. (Only a Link that takes nothing loses
the FIN.) An error of the Host has no FIN to lose: its RESET stays behind what is queued, with either code.

A failed write right after such a read (`on_stop`) says nothing yet: the Host's socket is read to its end, and that end
decides. STOP would tell the Edge that the request may not be sent again.

While the Host is being dialled its socket accepts nothing, so DATA waits here, inside its credit; a Host that cannot be dialled
is a RESET with the code that says why. A Host that ends before it was given a byte and before it said one gets the verdict at
once: there is nothing to pass on.

No task, no timer: the Edge's limits and the Host's end what lasts too long.
"""

from __future__ import annotations

from collections.abc import Callable

from netbore.agent.targets import Dialler
from netbore.link.poller import Poller
from netbore.link.socket_stream import TransportStream
from netbore.proto.mux_stream import MuxStream
from netbore.proto.stream import Data, Stream
from netbore.proto.wire import Code
from netbore.relay import HalfRelay, Relay


class ToHost(HalfRelay):
    """Requests. Looks before it gives the first byte after the Host spoke last."""

    __slots__ = ("_joined",)

    def __init__(self, joined: HostRelay, source: Stream, target: Stream) -> None:
        super().__init__(joined, source, target)
        self._joined = joined

    def on_data(self, data: Data) -> None:
        joined = self._joined
        if joined.host.sent == joined.answered_at and not self.done and not joined.may_give():
            return
        HalfRelay.on_data(self, data)  # a tenth of what `super` costs

    def on_eof(self) -> None:
        if not self._joined.verdict_due:
            super().on_eof()

    def push(self) -> None:
        joined = self._joined
        if self._kept and joined.host.sent == joined.answered_at and not self.done and not joined.may_give():
            return
        super().push()


class FromHost(HalfRelay):
    """Responses. Remembers when the Host spoke last."""

    __slots__ = ("_joined",)

    def __init__(self, joined: HostRelay, source: Stream, target: Stream) -> None:
        super().__init__(joined, source, target)
        self._joined = joined

    @property
    def waits(self) -> bool:
        """Bytes of the Host have not been accepted yet."""
        return bool(self._kept)

    def on_data(self, data: Data) -> None:
        joined = self._joined
        joined.answered_at = joined.host.sent
        HalfRelay.on_data(self, data)

    def on_eof(self) -> None:
        joined = self._joined
        joined.host_ended = True
        if joined.untouched:
            joined.not_processed()
        else:
            super().on_eof()

    def on_stop(self, code: int) -> None:
        if not self._joined.spoke_last:
            super().on_stop(code)


class HostRelay(Relay):
    """One Stream of the Link (`link`) and one connection to the Host (`host`), joined."""

    __slots__ = ("answered_at", "host", "host_ended", "link", "poller", "verdict_due")

    def __init__(self, poller: Poller, link: MuxStream, host: TransportStream, on_done: Callable[[Relay], None] | None) -> None:
        self.poller = poller
        self.link = link
        self.host = host
        #: `host.sent` at the Host's last word.
        self.answered_at = 0
        #: The Host's FIN was seen.
        self.host_ended = False
        #: The verdict waits for the FIN to leave; what the Stream brings is dropped.
        self.verdict_due = False
        super().__init__(link, host, on_done, None)

    def halves(self, a: Stream, b: Stream) -> tuple[HalfRelay, HalfRelay]:
        return ToHost(self, a, b), FromHost(self, b, a)

    @property
    def spoke_last(self) -> bool:
        """No byte of the Stream reached the Host since the Host's last word, or ever."""
        return self.host.sent == self.answered_at

    @property
    def untouched(self) -> bool:
        """Neither side has said anything to the other, and the Edge has not ended either."""
        return not self.host.sent and not self.back.moved and not self.back.done and not self.forth.done

    @property
    def _answer_waits(self) -> bool:
        back = self.back
        return self.link.queued > 0 or (isinstance(back, FromHost) and back.waits)

    def may_give(self) -> bool:
        """Look at the Host before it is given anything. False once there is a verdict: the bytes are not given."""
        if not self.host.quiet():
            self.host.read_now()
        if self.over or self.verdict_due:
            return False
        if not self.host_ended or self._answer_waits:
            return True
        if self.link.eof_queued:
            self.verdict_due = True
            self.poller.mark(self, last=True)  # the Link was marked before, so it is flushed before
        else:
            self.not_processed()
        return False

    def flush(self) -> None:
        """The Link had its chance to send the FIN."""
        self.not_processed()

    def not_processed(self) -> None:
        """The Host has ended, and nothing of what came since its last word reached it: the verdict."""
        if not self.over:
            self.code = Code.NOT_PROCESSED
            self.forth.done = self.back.done = True
            self.link.reset(Code.NOT_PROCESSED, self.host.sent)
            self.host.send_eof()
            self._end()

    def reset(self, half: HalfRelay, code: int) -> None:
        """One Stream was reset. The Host's is told with what really reached it."""
        if self.over:
            return
        if half is self.forth:
            super().reset(half, code)
            return
        if code == Code.HOST_CLOSED and self.spoke_last:
            code = Code.NOT_PROCESSED
        self.code = code
        self.forth.done = self.back.done = True
        self.link.reset(code, self.host.sent)
        self._end()


def serve(poller: Poller, dialler: Dialler, stream: MuxStream, on_done: Callable[[Relay], None] | None = None) -> HostRelay:
    """Join `stream`, which the Edge opened, with a new connection to the Host of `dialler`. Synchronous; from the turn.

    `on_done(relay)` is called once, when both have ended: `relay.forth.moved` and `relay.back.moved` are bytes to and from
    the Host, `relay.code` is the code of a reset or None. Whatever goes wrong with the Host resets `stream` and raises
    nothing.
    """
    joined = HostRelay(poller, stream, dialler.open(), on_done)
    joined.start()
    return joined
