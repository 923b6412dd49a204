"""Certificates: which one a handshake is served with, and keeping it fresh.

Theory of operation. Two sources: the embedded authority, which makes its own CA and a wildcard leaf in the state directory
(`issue`), or files that the operator gives. Either way there is one `Served` certificate at a time, and a small cache from
host names to others (custom domains, later), filled by whoever gets them and read synchronously in the handshake.

Listeners have contexts that never change; each handshake picks its certificate by name (`netbore.link.tls.choose_by_name`),
also when the client named none. So a renewed certificate is for new handshakes, and what is open goes on.
`keep_fresh` looks once a day: the embedded leaf is issued anew when fewer than 30 days are left, given files are read
again, and a failure of either is logged and leaves the old certificate in place.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import attrs
import trio
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from netbore.edge.issue import CertificateError, Embedded
from netbore.edge.statedir import StateDirectory
from netbore.link.tls import choose_by_name
from netbore.proto.wire import ALPN

__all__ = ["CertificateError", "Certificates", "Served", "embedded", "given"]

#: What is spoken on the Edge's TLS port, the best first: Links in TLS alone, and HTTP for Viewers and for Links over WSS.
PROTOCOLS: Final = (ALPN, "http/1.1")
#: How often `keep_fresh` looks.
CHECK_SECONDS: Final = 86400.0

log = logging.getLogger("netbore.edge")


@attrs.frozen
class Served:
    """One certificate as it is served: its files (perhaps one and the same), names, and end in wall time (seconds)."""

    chain: Path
    key: Path
    names: frozenset[str]
    not_after: float
    fingerprint: bytes

    def covers(self, name: str) -> bool:
        """Whether it is good for a host name (lower-case, without port). A wildcard stands for one label."""
        _, dot, parent = name.partition(".")
        return name in self.names or (bool(dot) and f"*.{parent}" in self.names)


class Source(Protocol):
    """Where the certificate comes from. Blocks; is called in a thread once the Edge runs."""

    def fresh(self) -> Served:
        """The certificate to be served from now on, renewed if it has to be. Raises CertificateError or StateError."""


@attrs.frozen
class EmbeddedSource:
    """The embedded authority."""

    authority: Embedded

    def fresh(self) -> Served:
        path = self.authority.leaf()
        return read(path, path)


@attrs.frozen
class FileSource:
    """Files that the operator keeps fresh. `wanted` are the names that they must be good for."""

    chain: Path
    key: Path
    wanted: tuple[str, ...]
    clock: Callable[[], float]

    def fresh(self) -> Served:
        served = read(self.chain, self.key)
        make_context(served, PROTOCOLS)  # that the key is the certificate's, and without a password
        missing = [name for name in self.wanted if not served.covers(name)]
        if missing:
            raise CertificateError(f"{self.chain} is not for {', '.join(missing)}: it names {', '.join(sorted(served.names))}")
        if served.not_after <= self.clock():
            raise CertificateError(f"{self.chain} expired on {datetime.fromtimestamp(served.not_after, UTC):%Y-%m-%d}")
        return served


def embedded(state: StateDirectory, domain: str, clock: Callable[[], float], also: Sequence[str] = ()) -> Certificates:
    """Certificates of the embedded authority for `domain`, all names one label below it, and `also`.

    `clock` is wall time in seconds. Blocks. Raises CertificateError and StateError.
    """
    return Certificates(EmbeddedSource(Embedded(state, (domain, f"*.{domain}", *also), clock)))


def given(chain: Path, key: Path, domain: str, clock: Callable[[], float], also: Sequence[str] = ()) -> Certificates:
    """Certificates from files of the operator, in PEM. Blocks. Raises CertificateError when they will not do."""
    return Certificates(FileSource(chain, key, (domain, f"*.{domain}", *also), clock))


class Certificates:
    """What the Edge's TLS listeners serve."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._default = source.fresh()
        self._by_name: dict[str, Served] = {}
        self._listening: list[_Listening] = []

    @property
    def default(self) -> Served:
        """What is served to those who ask for no name that has a certificate of its own."""
        return self._default

    def server_context(self, alpn: Sequence[str] = PROTOCOLS) -> ssl.SSLContext:
        """A context for a listener. Each of its handshakes gets the certificate that is right at that time."""
        listening = _Listening(self, tuple(alpn))
        self._listening.append(listening)
        return listening.context

    def served_for(self, name: str | None) -> Served:
        """The certificate of a handshake that asks for `name`."""
        return self._default if name is None else self._by_name.get(name.lower(), self._default)

    def covers(self, served: str, asked: str) -> bool:
        """Whether a connection that was made for the name `served` may be asked for `asked`: one certificate is for both."""
        served, asked = served.lower(), asked.lower()
        certificate = self.served_for(served)
        return served == asked or (
            certificate is self.served_for(asked) and certificate.covers(served) and certificate.covers(asked)
        )

    def put(self, name: str, served: Served) -> None:
        """Serve a certificate of its own for one host name, from the next handshake on. Raises CertificateError."""
        for listening in self._listening:
            listening.load(served)
        self._by_name[name.lower()] = served
        self._prune()

    def remove(self, name: str) -> None:
        """Serve the default one for it again. Idempotent."""
        self._by_name.pop(name.lower(), None)
        self._prune()

    def all_served(self) -> tuple[Served, ...]:
        """Every certificate that a handshake may get now."""
        return (self._default, *self._by_name.values())

    def _prune(self) -> None:
        used = {served.fingerprint for served in self.all_served()}
        for listening in self._listening:
            listening.keep(used)

    async def keep_fresh(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look once a day whether a newer certificate is due, for ever. Failures are logged."""
        task_status.started()
        while True:
            await trio.sleep(CHECK_SECONDS)
            await self.refresh()

    async def refresh(self) -> None:
        """Look now. A checkpoint; blocks no one. Failures are logged and change nothing."""
        try:
            served = await trio.to_thread.run_sync(self._source.fresh)
            if served.fingerprint == self._default.fingerprint:
                return
            for listening in self._listening:
                listening.load(served)
        except (CertificateError, OSError) as error:
            log.error("the certificate was not renewed: %s", error)
            return
        self._default = served
        self._prune()
        log.info("a new certificate is served, good until %s", datetime.fromtimestamp(served.not_after, UTC).date())


class _Listening:
    """The contexts of one listener: the one that it was given, and one for each certificate that is served."""

    def __init__(self, certificates: Certificates, alpn: tuple[str, ...]) -> None:
        self._certificates = certificates
        self._alpn = alpn
        self._contexts: dict[bytes, ssl.SSLContext] = {}
        self.context = self.load(certificates.default)
        for served in certificates.all_served():
            self.load(served)
        choose_by_name(self.context, self._choose)

    def load(self, served: Served) -> ssl.SSLContext:
        """Have a context for `served`. Raises CertificateError."""
        context = self._contexts.get(served.fingerprint)
        if context is None:
            context = self._contexts[served.fingerprint] = make_context(served, self._alpn)
        return context

    def keep(self, fingerprints: set[bytes]) -> None:
        """Forget the contexts of other certificates. Handshakes that have begun keep theirs."""
        for fingerprint in self._contexts.keys() - fingerprints:
            del self._contexts[fingerprint]

    def _choose(self, name: str | None) -> ssl.SSLContext:
        return self._contexts[self._certificates.served_for(name).fingerprint]


def make_context(served: Served, alpn: Sequence[str]) -> ssl.SSLContext:
    """A server's context with one certificate. Raises CertificateError when the files are no pair of certificate and key."""

    def no_password() -> str:
        raise CertificateError(f"{served.key} is protected by a password: give a key without one")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 1
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(list(alpn))
    try:
        context.load_cert_chain(served.chain, served.key, no_password)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "no PEM"
        raise CertificateError(f"{served.chain} and {served.key} are no certificate and its key: {reason}") from None
    return context


def read(chain: Path, key: Path) -> Served:
    """What a certificate file says of its first certificate. Raises CertificateError."""
    try:
        first = x509.load_pem_x509_certificates(chain.read_bytes())[0]
    except OSError as error:
        raise CertificateError(f"{chain} cannot be read: {error.strerror}") from None
    except ValueError:
        raise CertificateError(f"{chain} holds no certificate in PEM") from None
    try:
        names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    except (x509.ExtensionNotFound, ValueError):
        names = []
    if not names:
        raise CertificateError(f"{chain} names no host (it has no subjectAltName)")
    return Served(
        chain, key, frozenset(name.lower() for name in names), first.not_valid_after_utc.timestamp(), first.fingerprint(SHA256())
    )
