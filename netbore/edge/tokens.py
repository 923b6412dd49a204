"""Tokens that the Edge hands out: made and checked here, with keys, time and randomness passed in.

Theory of operation. A *recreate token* says who may have which name again. It must be good after the Edge lost all that
it remembered, so it carries its own claims, signed by a key of the state directory, and has no end: old keys go on
verifying until they are removed. An *ephemeral token* is random; the Edge remembers its hash until it expires. It is good
once per instance: the first Agent that presents it owns it, and may present it again, since the answer may have been lost.

MACs are of a token's text, not of what it decodes to, so it has one spelling only. Every comparison is of hashes or
MACs, in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import attrs

#: So many random bytes: `secrets.token_bytes`.
RandomBytes: TypeAlias = Callable[[int], bytes]

OPERATOR_PREFIX: Final = "nbo_"
RECREATE_PREFIX: Final = "nbr_"
EPHEMERAL_PREFIX: Final = "nbe_"
SECRET_BYTES: Final = 32
EPHEMERAL_SECONDS: Final = 600.0
#: Ephemeral tokens remembered at once.
MAX_EPHEMERALS: Final = 10_000

_PURPOSE: Final = b"netbore recreate\0"
_MAC_TEXT: Final = 43  # 32 bytes in base64url


class TooManyTokens(Exception):
    """MAX_EPHEMERALS ephemeral tokens wait to be used."""


def random_token(prefix: str, random: RandomBytes) -> str:
    """A token of 256 random bits."""
    return prefix + _encode(random(SECRET_BYTES))


def same(a: str, b: str) -> bool:
    """Whether two secrets are equal; takes the same time whatever they hold, and however long they are."""
    return hmac.compare_digest(_digest(a), _digest(b))


def _digest(text: str) -> bytes:
    # A peer's JSON may hold half of a surrogate pair, which plain UTF-8 refuses.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes | None:
    """The bytes of base64url, or None."""
    try:
        return urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except ValueError:  # UnicodeError and binascii.Error are such
        return None


@attrs.frozen
class SigningKeys:
    """Keys by id. The newest signs; all verify."""

    keys: Mapping[str, bytes] = attrs.field(repr=False)
    newest: str

    def __attrs_post_init__(self) -> None:
        if self.newest not in self.keys:
            raise ValueError("the newest key is not among the keys")
        if any(len(key) != SECRET_BYTES for key in self.keys.values()):
            raise ValueError(f"a signing key has {SECRET_BYTES} bytes")

    def sign(self, text: str, key: str | None = None) -> str:
        """The MAC of `text` by the key of that id (default: the newest)."""
        mac = hmac.new(self.keys[self.newest if key is None else key], _PURPOSE + text.encode(), hashlib.sha256)
        return _encode(mac.digest())


@attrs.frozen
class Recreate:
    """What a recreate token says: `owner` may have `name` again, as the Tunnel `tunnel`. `issued` is wall time in seconds."""

    name: str
    owner: str
    tunnel: str
    issued: int
    key: str


def mint_recreate(keys: SigningKeys, *, name: str, owner: str, tunnel: str, now: float) -> str:
    """A recreate token, signed by the newest key."""
    members = {"k": keys.newest, "n": name, "o": owner, "t": tunnel, "i": int(now)}
    text = _encode(json.dumps(members, separators=(",", ":")).encode())
    return f"{RECREATE_PREFIX}{text}.{keys.sign(text)}"


def verify_recreate(keys: SigningKeys, token: str) -> Recreate | None:
    """What `token` says, or None when no key of ours signed it."""
    prefix, text, mac = token[: len(RECREATE_PREFIX)], token[len(RECREATE_PREFIX) : -_MAC_TEXT - 1], token[-_MAC_TEXT:]
    if prefix != RECREATE_PREFIX or token[-_MAC_TEXT - 1 : -_MAC_TEXT] != "." or not token.isascii():
        return None
    members = _members(text)
    key = members.get("k") if members is not None else None
    # The key id is read before the MAC is checked: it only chooses the key that checks.
    if members is None or not isinstance(key, str) or key not in keys.keys:
        return None
    return _claims(members) if same(keys.sign(text, key), mac) else None


def _members(text: str) -> dict[str, Any] | None:
    data = _decode(text)
    if data is None:
        return None
    try:
        members = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return members if isinstance(members, dict) else None


def _claims(members: dict[str, Any]) -> Recreate | None:
    """The claims of a token that we signed; None when a later version signed something else."""
    texts = [members.get(member) for member in "notk"]
    issued = members.get("i")
    if not all(isinstance(text, str) for text in texts) or not isinstance(issued, int):
        return None
    name, owner, tunnel, key = texts
    return Recreate(str(name), str(owner), str(tunnel), issued, str(key))


@attrs.define
class Ephemeral:
    """What is remembered of an ephemeral token: all but the token. `expires` is wall time; `instance` has used it."""

    name: str
    owner: str
    tunnel: str
    expires: float
    instance: str | None = None


class Ephemerals:
    """The ephemeral tokens that are good now, by hash. Forgets what has expired, so memory is bounded."""

    def __init__(self, random: RandomBytes, seconds: float = EPHEMERAL_SECONDS, most: int = MAX_EPHEMERALS) -> None:
        self._random = random
        self._seconds = seconds
        self._most = most
        self._known: dict[bytes, Ephemeral] = {}  # in order of expiry: all live equally long

    def mint(self, *, name: str, owner: str, tunnel: str, now: float) -> tuple[str, float]:
        """A new token and when it expires. Raises TooManyTokens."""
        self._purge(now)
        if len(self._known) >= self._most:
            raise TooManyTokens
        token = random_token(EPHEMERAL_PREFIX, self._random)
        expires = now + self._seconds
        self._known[_digest(token)] = Ephemeral(name, owner, tunnel, expires)
        return token, expires

    def present(self, token: str, instance: str, now: float) -> Ephemeral | None:
        """What `token` allows `instance`; None when it is unknown, has expired, or another instance has used it."""
        known = self._known.get(_digest(token))
        if known is None or known.expires <= now or known.instance not in (None, instance):
            return None
        known.instance = instance
        return known

    def forget(self, tunnel: str) -> None:
        """Make the tokens of a Tunnel worthless."""
        for digest in [digest for digest, known in self._known.items() if known.tunnel == tunnel]:
            del self._known[digest]

    def _purge(self, now: float) -> None:
        while self._known:
            oldest = next(iter(self._known))
            if self._known[oldest].expires > now:
                return
            del self._known[oldest]

    def __len__(self) -> int:
        return len(self._known)
