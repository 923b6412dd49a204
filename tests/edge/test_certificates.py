"""Certificates: what clients make of them in real handshakes, and how they are kept fresh."""

from __future__ import annotations

import logging
import os
import ssl
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from trio.testing import MockClock

from netbore.edge.certificates import CertificateError, Certificates, embedded, given, make_context, read
from netbore.edge.statedir import StateDirectory, StateError

DOMAIN = "tunnel.localhost"
DAY = 86400.0
NOW = datetime.now(UTC).timestamp()


class Clock:
    """Wall time to turn; it begins at the true one, which OpenSSL goes by."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(tmp_path / "state", os.urandom)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def strict_client(ca: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


class Connection:
    """A handshake in memory between `client` and `server`, and what came of it."""

    def __init__(self, client: ssl.SSLContext, server: ssl.SSLContext, name: str | None) -> None:
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(to_client, to_server, server_hostname=name)
        self.server = server.wrap_bio(to_server, to_client, server_side=True)
        waiting = [self.client, self.server]
        for _ in range(10):
            waiting = [side for side in waiting if not self._shaken(side)]
        assert waiting == []

    @staticmethod
    def _shaken(side: ssl.SSLObject) -> bool:
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    @property
    def fingerprint(self) -> bytes | None:
        return self.client.getpeercert(binary_form=True)


def leaf_of(state: StateDirectory) -> x509.Certificate:
    return x509.load_pem_x509_certificate((state.path / "leaf.pem").read_bytes())


def issue(tmp_path: Path, *names: str, ends: datetime | None = None) -> tuple[trustme.CA, Path, Path]:
    authority = trustme.CA()
    cert = authority.issue_cert(*names, not_after=ends)
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in cert.cert_chain_pems))
    key.write_bytes(cert.private_key_pem.bytes())
    return authority, chain, key


# Embedded


@pytest.mark.parametrize("name", [DOMAIN, f"demo.{DOMAIN}", f"DEMO.{DOMAIN}", f"calm-otter-4821.{DOMAIN}"])
def test_strict_clients_take_the_embedded_certificate(state: StateDirectory, clock: Clock, name: str) -> None:
    certificates = embedded(state, DOMAIN, clock)
    connection = Connection(strict_client(state.path / "ca.pem"), certificates.server_context(), name)
    assert connection.client.version() == "TLSv1.3"
    assert connection.client.selected_alpn_protocol() == "http/1.1"


@pytest.mark.parametrize(
    ("offered", "chosen"), [("netbore/1", "netbore/1"), ("http/1.1,netbore/1", "netbore/1"), ("h2", None), ("netbore/2", None)]
)
def test_the_protocol_is_chosen_by_alpn(state: StateDirectory, clock: Clock, offered: str, chosen: str | None) -> None:
    certificates = embedded(state, DOMAIN, clock)
    client = strict_client(state.path / "ca.pem")
    client.set_alpn_protocols(offered.split(","))
    connection = Connection(client, certificates.server_context(), DOMAIN)
    assert connection.client.selected_alpn_protocol() == connection.server.selected_alpn_protocol() == chosen


@pytest.mark.parametrize("name", ["localhost", f"a.b.{DOMAIN}", "demo.example.com"])
def test_it_is_for_no_other_names(state: StateDirectory, clock: Clock, name: str) -> None:
    certificates = embedded(state, DOMAIN, clock)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        Connection(strict_client(state.path / "ca.pem"), certificates.server_context(), name)


def test_a_client_that_names_no_host_gets_it_too(state: StateDirectory, clock: Clock) -> None:
    context = embedded(state, DOMAIN, clock).server_context()
    client = strict_client(state.path / "ca.pem")
    client.check_hostname = False
    assert Connection(client, context, None).fingerprint is not None


def test_old_tls_is_refused_and_tickets_are_few(state: StateDirectory, clock: Clock) -> None:
    context = embedded(state, DOMAIN, clock).server_context()
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.num_tickets == 1
    client = strict_client(state.path / "ca.pem")
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert Connection(client, context, DOMAIN).client.version() == "TLSv1.2"


def test_what_stands_in_the_certificates(state: StateDirectory, clock: Clock) -> None:
    embedded(state, DOMAIN, clock, also=["api.example.com"])
    ca = x509.load_pem_x509_certificate((state.path / "ca.pem").read_bytes())
    leaf = leaf_of(state)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    assert names == [DOMAIN, f"*.{DOMAIN}", "api.example.com"]
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(days=397)
    assert timedelta(days=3649) < ca.not_valid_after_utc - ca.not_valid_before_utc <= timedelta(days=3651)
    for one, is_ca in ((ca, True), (leaf, False)):
        constraints = one.extensions.get_extension_for_class(x509.BasicConstraints)
        usage = one.extensions.get_extension_for_class(x509.KeyUsage)
        assert constraints.critical
        assert constraints.value.ca is is_ca
        assert usage.critical
        assert usage.value.key_cert_sign is is_ca
        assert usage.value.digital_signature is not is_ca
        one.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        one.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
        assert one.public_key().curve.name == "secp256r1"  # type: ignore[union-attr]


def test_only_the_ca_may_be_read_by_others(state: StateDirectory, clock: Clock) -> None:
    embedded(state, DOMAIN, clock)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in state.path.iterdir()}
    assert modes.pop("ca.pem") == 0o644
    assert {"ca-key.pem", "leaf.pem"} <= set(modes)
    assert set(modes.values()) == {0o600}


def test_a_second_start_changes_nothing(state: StateDirectory, clock: Clock) -> None:
    embedded(state, DOMAIN, clock)
    before = {file.name: file.read_bytes() for file in state.path.iterdir()}
    clock.now += 300 * DAY
    embedded(state, DOMAIN, clock)
    assert {file.name: file.read_bytes() for file in state.path.iterdir()} == before


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state, clock: setattr(clock, "now", clock.now + 368 * DAY),
        lambda state, clock: setattr(clock, "now", clock.now - 2 * DAY),
        lambda state, clock: (state.path / "leaf.pem").unlink(),
        lambda state, clock: state.write("leaf.pem", b"rubbish"),
        lambda state, clock: state.write("leaf.pem", (state.path / "ca.pem").read_bytes()),
        lambda state, clock: (state.path / "ca.pem").unlink(),
    ],
    ids=["old", "from the future", "gone", "rubbish", "no key", "another CA"],
)
def test_a_leaf_that_will_not_do_is_issued_anew(
    state: StateDirectory, clock: Clock, spoil: Callable[[StateDirectory, Clock], object]
) -> None:
    embedded(state, DOMAIN, clock)
    old = leaf_of(state)
    spoil(state, clock)
    served = embedded(state, DOMAIN, clock).default
    new = leaf_of(state)
    assert new != old
    assert served.not_after - clock.now > 396 * DAY
    ca = x509.load_pem_x509_certificate((state.path / "ca.pem").read_bytes())
    new.verify_directly_issued_by(ca)


def test_another_domain_has_the_leaf_issued_anew_by_the_same_ca(state: StateDirectory, clock: Clock) -> None:
    embedded(state, DOMAIN, clock)
    ca = (state.path / "ca.pem").read_bytes()
    certificates = embedded(state, "example.com", clock)
    assert (state.path / "ca.pem").read_bytes() == ca
    Connection(strict_client(state.path / "ca.pem"), certificates.server_context(), "demo.example.com")


def test_a_leaf_does_not_outlive_its_ca_which_is_renewed_too(state: StateDirectory, clock: Clock) -> None:
    embedded(state, DOMAIN, clock)
    old = x509.load_pem_x509_certificate((state.path / "ca.pem").read_bytes())
    clock.now += 3600 * DAY
    assert embedded(state, DOMAIN, clock).default.not_after == old.not_valid_after_utc.timestamp()
    clock.now += 25 * DAY
    served = embedded(state, DOMAIN, clock).default
    new = x509.load_pem_x509_certificate((state.path / "ca.pem").read_bytes())
    assert new != old
    assert served.not_after - clock.now > 396 * DAY


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("ca-key.pem", None, "ca-key.pem is missing"),
        ("ca-key.pem", b"rubbish", "ca-key.pem holds no"),
        ("ca.pem", b"rubbish", "ca.pem holds no certificate"),
    ],
)
def test_a_damaged_authority_is_named_and_kept(
    state: StateDirectory, clock: Clock, name: str, data: bytes | None, why: str
) -> None:
    embedded(state, DOMAIN, clock)
    if data is None:
        (state.path / name).unlink()
    else:
        state.write(name, data)
    kept = (state.path / "ca.pem").read_bytes()
    with pytest.raises(CertificateError, match=why):
        embedded(state, DOMAIN, clock)
    assert (state.path / "ca.pem").read_bytes() == kept


def test_a_key_of_another_ca_is_refused(tmp_path: Path, clock: Clock) -> None:
    one, two = (StateDirectory(tmp_path / name, os.urandom) for name in "ab")
    for state in (one, two):
        embedded(state, DOMAIN, clock)
    one.write("ca-key.pem", (two.path / "ca-key.pem").read_bytes())
    with pytest.raises(CertificateError, match="is not the key of"):
        embedded(one, DOMAIN, clock)


def test_a_ca_key_that_others_may_read_is_refused(state: StateDirectory, clock: Clock) -> None:
    embedded(state, DOMAIN, clock)
    (state.path / "ca-key.pem").chmod(0o644)
    with pytest.raises(StateError, match=r"chmod 600"):
        embedded(state, DOMAIN, clock)


def test_a_domain_that_is_no_host_name_is_refused(state: StateDirectory, clock: Clock) -> None:
    with pytest.raises(CertificateError, match="ASCII"):
        embedded(state, "dem\u00f6.example", clock)


# Keeping fresh


class Told(logging.Handler):
    """Sets an event when a certificate was renewed."""

    def __init__(self) -> None:
        super().__init__()
        self.event = trio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "a new certificate is served" in record.getMessage():
            self.event.set()


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[Told]:
    caplog.set_level(logging.INFO, "netbore.edge")
    handler = Told()
    log = logging.getLogger("netbore.edge")
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


@pytest.mark.seconds(30 * DAY)
async def test_the_leaf_is_renewed_without_a_restart_for_new_handshakes(
    state: StateDirectory, clock: Clock, mock_clock: MockClock, nursery: trio.Nursery, told: Told
) -> None:
    certificates = embedded(state, DOMAIN, clock)
    context, client = certificates.server_context(), strict_client(state.path / "ca.pem")
    before = Connection(client, context, DOMAIN)
    await nursery.start(certificates.keep_fresh)
    clock.now += 366 * DAY
    await certificates.refresh()
    assert Connection(client, context, DOMAIN).fingerprint == before.fingerprint
    clock.now += 2 * DAY
    await trio.testing.wait_all_tasks_blocked()
    mock_clock.jump(DAY)
    await told.event.wait()
    # The new leaf begins in OpenSSL's future, so the client here only looks which one it is.
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    assert Connection(client, context, DOMAIN).fingerprint != before.fingerprint
    assert before.client.getpeercert() is not None  # what is open goes on
    nursery.cancel_scope.cancel()


async def test_a_renewal_that_fails_is_logged_and_changes_nothing(
    state: StateDirectory, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    certificates = embedded(state, DOMAIN, clock)
    served = certificates.default
    (state.path / "ca-key.pem").unlink()
    clock.now += 370 * DAY
    await certificates.refresh()
    assert certificates.default is served
    assert "ca-key.pem is missing" in caplog.text


async def test_given_files_are_read_again(tmp_path: Path, clock: Clock) -> None:
    authority, chain, key = issue(tmp_path, DOMAIN, f"*.{DOMAIN}")
    certificates = given(chain, key, DOMAIN, clock)
    context = certificates.server_context()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    before = Connection(client, context, f"a.{DOMAIN}").fingerprint
    await certificates.refresh()
    assert Connection(client, context, f"a.{DOMAIN}").fingerprint == before
    authority, _, _ = issue(tmp_path, DOMAIN, f"*.{DOMAIN}")
    authority.configure_trust(client)
    await certificates.refresh()
    assert Connection(client, context, f"a.{DOMAIN}").fingerprint != before


async def test_given_files_that_became_unusable_are_not_taken(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    _, chain, key = issue(tmp_path, DOMAIN, f"*.{DOMAIN}")
    certificates = given(chain, key, DOMAIN, clock)
    served = certificates.default
    key.write_bytes(b"")
    await certificates.refresh()
    assert certificates.default is served
    assert "not renewed" in caplog.text


# Given files


def test_a_given_certificate_is_served(tmp_path: Path, clock: Clock) -> None:
    authority, chain, key = issue(tmp_path, DOMAIN, f"*.{DOMAIN}", "api.example.com")
    certificates = given(chain, key, DOMAIN, clock, also=["api.example.com"])
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    for name in (DOMAIN, f"demo.{DOMAIN}", "api.example.com"):
        Connection(client, certificates.server_context(), name)


def test_what_is_wrong_with_given_files_is_said(tmp_path: Path, clock: Clock) -> None:
    _, chain, key = issue(tmp_path, DOMAIN, f"*.{DOMAIN}")
    other = tmp_path / "other"
    other.mkdir()
    _, _, foreign_key = issue(other, DOMAIN)
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_bytes(b"rubbish")
    nothing = tmp_path / "nothing.pem"
    for chain_file, key_file, why in [
        (nothing, key, "nothing.pem cannot be read: No such file"),
        (rubbish, key, "rubbish.pem holds no certificate"),
        (chain, nothing, "nothing.pem are no certificate and its key"),
        (chain, rubbish, "rubbish.pem are no certificate and its key"),
        (chain, foreign_key, "are no certificate and its key: KEY_VALUES_MISMATCH"),
    ]:
        with pytest.raises(CertificateError, match=why):
            given(chain_file, key_file, DOMAIN, clock)


def test_a_given_certificate_must_be_for_our_names(tmp_path: Path, clock: Clock) -> None:
    _, chain, key = issue(tmp_path, DOMAIN)
    with pytest.raises(CertificateError, match=rf"is not for \*\.{DOMAIN}: it names {DOMAIN}"):
        given(chain, key, DOMAIN, clock)


def test_a_given_certificate_that_expired_is_refused(tmp_path: Path, clock: Clock) -> None:
    ends = datetime.fromtimestamp(NOW, UTC) - timedelta(days=1)
    _, chain, key = issue(tmp_path, DOMAIN, f"*.{DOMAIN}", ends=ends)
    with pytest.raises(CertificateError, match=f"expired on {ends:%Y-%m-%d}"):
        given(chain, key, DOMAIN, clock)


def test_a_key_with_a_password_is_refused_and_nobody_is_asked(tmp_path: Path, clock: Clock) -> None:
    _, chain, key = issue(tmp_path, DOMAIN, f"*.{DOMAIN}")
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(CertificateError, match="protected by a password"):
        given(chain, key, DOMAIN, clock)


def test_a_certificate_without_names_is_refused(state: StateDirectory, clock: Clock) -> None:
    embedded(state, DOMAIN, clock)
    ca = state.path / "ca.pem"
    with pytest.raises(CertificateError, match="names no host"):
        read(ca, ca)


# By name


def custom(tmp_path: Path, certificates: Certificates, name: str) -> trustme.CA:
    authority, chain, key = issue(tmp_path, name, f"*.{name}")
    certificates.put(name, read(chain, key))
    return authority


def test_a_name_may_have_a_certificate_of_its_own(state: StateDirectory, clock: Clock, tmp_path: Path) -> None:
    certificates = embedded(state, DOMAIN, clock)
    context = certificates.server_context()
    client = strict_client(state.path / "ca.pem")
    custom(tmp_path, certificates, "shop.example").configure_trust(client)
    client.verify_flags &= ~ssl.VERIFY_X509_STRICT
    own = Connection(client, context, "Shop.Example")
    assert own.client.selected_alpn_protocol() == "http/1.1"
    assert own.fingerprint != Connection(client, context, DOMAIN).fingerprint
    Connection(client, certificates.server_context(["http/1.1"]), "shop.example")  # a listener made later
    certificates.remove("shop.example")
    certificates.remove("shop.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        Connection(client, context, "shop.example")


def test_which_names_one_certificate_covers(state: StateDirectory, clock: Clock, tmp_path: Path) -> None:
    certificates = embedded(state, DOMAIN, clock)
    custom(tmp_path, certificates, "shop.example")
    for served, asked, covered in [
        (f"a.{DOMAIN}", f"b.{DOMAIN}", True),
        (f"a.{DOMAIN}", DOMAIN, True),
        (DOMAIN, f"A.{DOMAIN}".upper(), True),
        (f"a.{DOMAIN}", f"a.b.{DOMAIN}", False),
        (f"a.{DOMAIN}", "example.com", False),
        ("example.com", f"a.{DOMAIN}", False),
        ("localhost", "localhost", True),
        ("shop.example", f"a.{DOMAIN}", False),
        (f"a.{DOMAIN}", "shop.example", False),
        ("shop.example", "shop.example", True),
    ]:
        assert certificates.covers(served, asked) is covered, (served, asked)


def test_a_certificate_whose_files_are_no_pair_is_not_put(state: StateDirectory, clock: Clock, tmp_path: Path) -> None:
    certificates = embedded(state, DOMAIN, clock)
    certificates.server_context()
    _, chain, key = issue(tmp_path, "shop.example")
    served = read(chain, key)
    key.write_bytes(b"")
    with pytest.raises(CertificateError):
        certificates.put("shop.example", served)
    assert certificates.served_for("shop.example") is certificates.default
    with pytest.raises(CertificateError):
        make_context(served, ["http/1.1"])
