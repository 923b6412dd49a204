"""The embedded authority: a CA of our own, and the leaf that it signs, in the state directory.

Theory of operation. `ca.pem` is what people trust, so it lives long (10 years) and is made again only when it ends. The
leaf with its key is one file, `leaf.pem`, put in place by one rename, so the pair is never torn; it is issued again when
fewer than 30 days are left, when it is not for the wanted names, or when another CA signed it. Of the CA's pair the key is
written first: `ca-key.pem` alone is what a crash leaves, and is made again; `ca.pem` without its key is an error, for
making another would silently untrust everyone. Certificates satisfy OpenSSL's strict checks (RFC 5280).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from netbore.edge.statedir import PUBLIC, StateDirectory
from netbore.errors import ConfigError

CA_FILE: Final = "ca.pem"
CA_KEY_FILE: Final = "ca-key.pem"
LEAF_FILE: Final = "leaf.pem"

CA_LIFE: Final = timedelta(days=3650)
#: The longest that clients accept is 398 days.
LEAF_LIFE: Final = timedelta(days=397)
RENEW_BEFORE: Final = timedelta(days=30)
#: Certificates begin a little earlier, for clients whose clock is behind.
BACKDATED: Final = timedelta(hours=1)


class CertificateError(ConfigError):
    """A certificate or its key cannot be used; the text says which file and why, for a person."""


class Embedded:
    """The authority of one state directory. Blocks: at start, or in a thread."""

    def __init__(self, state: StateDirectory, names: tuple[str, ...], clock: Callable[[], float]) -> None:
        """`names` are what the leaf is for. `clock` is wall time in seconds."""
        self._state = state
        self._names = tuple(dict.fromkeys(name.lower() for name in names))
        self._clock = clock

    def leaf(self) -> Path:
        """The file with a leaf that has 30 days left, and its key; made when needed. Raises CertificateError and StateError."""
        with self._state.lock():
            now = datetime.fromtimestamp(self._clock(), UTC)
            ca, ca_key = self._authority(now)
            if not self._leaf_will_do(ca, now):
                self._issue_leaf(ca, ca_key, now)
        return self._state.path / LEAF_FILE

    # The CA

    def _authority(self, now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        data, key_data = self._state.read(CA_FILE, private=False), self._state.read(CA_KEY_FILE)
        if data is None:
            return self._make_authority(now)
        if key_data is None:
            raise CertificateError(
                f"{self._state.path / CA_KEY_FILE} is missing: put it back, or remove {CA_FILE} to have a new authority made"
            )
        ca, ca_key = self._load(CA_FILE, data), self._load_key(key_data)
        if ca.public_key() != ca_key.public_key():
            raise CertificateError(f"{self._state.path / CA_KEY_FILE} is not the key of {CA_FILE}")
        if ca.not_valid_after_utc - now < RENEW_BEFORE:
            return self._make_authority(now)
        return ca, ca_key

    def _make_authority(self, now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(ec.SECP256R1())
        ca = make_ca(key, self._state.edge_id, now)
        self._state.write(CA_KEY_FILE, _private_pem(key))
        self._state.write(CA_FILE, ca.public_bytes(serialization.Encoding.PEM), PUBLIC)
        return ca, key

    def _load(self, name: str, data: bytes) -> x509.Certificate:
        try:
            return x509.load_pem_x509_certificate(data)
        except ValueError:
            raise CertificateError(f"{self._state.path / name} holds no certificate in PEM") from None

    def _load_key(self, data: bytes) -> ec.EllipticCurvePrivateKey:
        try:
            key = serialization.load_pem_private_key(data, None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise CertificateError(f"{self._state.path / CA_KEY_FILE} holds no elliptic curve key in PEM")
        return key

    # The leaf

    def _leaf_will_do(self, ca: x509.Certificate, now: datetime) -> bool:
        data = self._state.read(LEAF_FILE)
        if data is None:
            return False
        try:
            leaf = x509.load_pem_x509_certificate(data)
            key = serialization.load_pem_private_key(data, None)
            leaf.verify_directly_issued_by(ca)
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        covered = set(names.get_values_for_type(x509.DNSName))
        left = leaf.not_valid_after_utc - now
        young = leaf.not_valid_before_utc <= now
        # A leaf that ends with its CA cannot be renewed: the CA is, 30 days before its end.
        return leaf.public_key() == key.public_key() and covered == set(self._names) and left >= RENEW_BEFORE and young

    def _issue_leaf(self, ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, now: datetime) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = make_leaf(key, self._names, ca, ca_key, now)
        self._state.write(LEAF_FILE, leaf.public_bytes(serialization.Encoding.PEM) + _private_pem(key))


def make_ca(key: ec.EllipticCurvePrivateKey, edge_id: str, now: datetime) -> x509.Certificate:
    """A self-signed CA that may sign leaves only."""
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Netbore"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Netbore CA {edge_id}"),
        ]
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = _begin(name, name, key, now, now - BACKDATED + CA_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(sign_certificates=True), critical=True)
    builder = builder.add_extension(identifier, critical=False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    return builder.sign(key, hashes.SHA256())


def make_leaf(
    key: ec.EllipticCurvePrivateKey,
    names: tuple[str, ...],
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> x509.Certificate:
    """A server's certificate for `names`, which does not outlive its CA. Raises CertificateError for names that are none."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Netbore Edge")])
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    try:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    except ValueError:
        raise CertificateError(f"no certificate can be made for {', '.join(names)}: host names are ASCII") from None
    builder = _begin(subject, ca.subject, key, now, min(now - BACKDATED + LEAF_LIFE, ca.not_valid_after_utc))
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(sign_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(alternatives, critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    return builder.sign(ca_key, hashes.SHA256())


def _begin(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(end)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
