"""The handshake over a real transport, as a conversation of one task (docs/protocol.md sections 5 and 6).

The messages and their limits are `netbore.proto.handshake`'s; what they mean is decided by the Edge's door and the
Agent's dialler, who hold a `Greeting` each.
"""

from __future__ import annotations

from contextlib import suppress

from netbore.link.transport import Transport, TransportBroken
from netbore.link.waiter import TransportWaiter
from netbore.proto.handshake import FROM_ACCEPTOR, FROM_DIALLER, Handshake, Message, Reject, encode
from netbore.proto.records import RecordDecoder


class Greeting:
    """One side of one transport's handshake. Every async method is a checkpoint; cancelling one leaves the transport
    fit only for `close`."""

    def __init__(self, transport: Transport, *, dialler: bool, leftover: bytes = b"") -> None:
        """`leftover` are bytes of the peer that were read before."""
        self.transport = transport
        self._waiter = TransportWaiter(transport)
        self._handshake = Handshake(FROM_ACCEPTOR if dialler else FROM_DIALLER)
        self._fed = leftover
        self._saying = False

    @property
    def decoder(self) -> RecordDecoder:
        """Holds what came behind the last message: the Pipe goes on with it."""
        return self._handshake.decoder

    async def hear(self) -> Message:
        """The next message. Raises RemoteProtocolError for a wrong one, TransportBroken when the peer is gone."""
        data, self._fed = self._fed, b""
        while (message := self._handshake.receive_data(data)) is None:
            data = await self._waiter.receive_some()
            if not data:
                raise TransportBroken("reset", "the peer closed the connection during the handshake")
        return message

    async def say(self, message: Message) -> None:
        """Send `message`. Raises TransportBroken."""
        self._saying = True
        await self._waiter.send_all(encode(message))
        self._saying = False

    async def refuse(self, reject: Reject) -> None:
        """Send the last word and close, in order. Raises TransportBroken."""
        await self.say(reject)
        self.transport.send_eof()

    def give_up(self, reject: Reject) -> None:
        """After a method was cancelled: the last word, if the transport takes it now and no other was begun."""
        if not self._saying:
            with suppress(TransportBroken):
                self.transport.try_send(encode(reject))
