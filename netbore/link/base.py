"""What all transports share: an owner who is told once that bytes may flow, and what it watches.

A transport that was opened before anyone owned it (accepted, or dialled by a task) keeps `on_open` for its first owner.
"""

from __future__ import annotations

from collections.abc import Sequence

from netbore.link.poller import Poller
from netbore.link.transport import Facts, Owner, TransportBroken
from netbore.proto.stream import Data

#: Bytes read at once, and at most from a peer that fills its reads. A large buffer for little costs more than the read.
READ = 65536
READ_MOST = 262144


def next_read(count: int, asked: int) -> int:
    """How much to ask for after a read that gave `count` bytes where `asked` were wanted.

    Seven eighths count as full: layers between take a part of what they read for themselves.
    """
    if count * 8 >= asked * 7:
        return min(2 * asked, READ_MOST)
    return asked if count >= READ else READ


class Nobody:
    """The owner of a transport that has none yet."""

    def on_open(self) -> None:
        pass

    def on_readable(self) -> None:
        pass

    def on_writable(self) -> None:
        pass

    def on_failed(self, error: TransportBroken) -> None:
        pass


NOBODY = Nobody()


class Owned:
    """Base of the transports: `owner`, `facts`, `opened`, `closed`, the watched readiness."""

    __slots__ = ("_announced", "_owner", "_poller", "closed", "facts", "opened", "want_read", "want_write")

    def __init__(self, poller: Poller, owner: Owner | None) -> None:
        self._poller = poller
        self._owner: Owner = NOBODY if owner is None else owner
        self._announced = False
        self.facts = Facts()
        self.opened = False
        self.closed = False
        self.want_read = False
        self.want_write = False
        poller.hold(self)

    @property
    def owner(self) -> Owner:
        return self._owner

    @owner.setter
    def owner(self, owner: Owner) -> None:
        self._owner = owner
        if self.opened and not self._announced:
            self._poller.post(self._announce)

    def give_to(self, owner: Owner | None) -> None:
        """Change hands before anything was watched: the new owner is told `on_open` anew, None waits for one to come."""
        self._announced = False
        self.owner = NOBODY if owner is None else owner

    def _open(self) -> None:
        """Bytes may flow. To be called from the turn."""
        self.opened = True
        self._announce()

    def _announce(self) -> None:
        if not self._announced and not self.closed and self._owner is not NOBODY:
            self._announced = True
            self._owner.on_open()

    def _fail(self, error: TransportBroken) -> None:
        """The transport never opened. To be called from the turn."""
        if not self.closed:
            self.close(abort=True)
            self._owner.on_failed(error)

    def try_send(self, data: Data) -> int:
        raise NotImplementedError

    def try_send_parts(self, parts: Sequence[Data]) -> int:
        """As `try_send` of the parts joined; transports that need no join have their own."""
        return self.try_send(parts[0] if len(parts) == 1 else b"".join(parts))

    def close(self, abort: bool = False) -> None:
        raise NotImplementedError

    def carry_link(self) -> None:
        """A Link goes over this transport from now on, though it was made for a Viewer: take the settings of Links."""

    def unsent(self) -> bool | None:
        """Whether accepted bytes have not reached the peer's side yet; None when that cannot be told."""
        return False

    def quiet(self) -> bool:
        return False

    def audit(self) -> str | None:
        return None

    def on_crash(self, error: Exception) -> None:
        """The owner's code raised: its own remedy, or the loss of this transport."""
        remedy = getattr(self._owner, "on_crash", None)
        if remedy is not None:
            remedy(error)
        else:
            self.close(abort=True)
