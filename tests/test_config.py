"""What people write, and what they are told when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from netbore.config import (
    MAX_SECRET,
    Address,
    EdgeUrl,
    Secret,
    parse_address,
    parse_duration,
    parse_edge_url,
    parse_port,
    parse_size,
    secret_from_environment,
    secret_from_file,
    split_url,
)
from netbore.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8000", Address("127.0.0.1", 8000)),
        (":8000", Address("127.0.0.1", 8000)),
        (" app:80 ", Address("app", 80)),
        ("192.0.2.1:65535", Address("192.0.2.1", 65535)),
        ("[2001:db8::1]:443", Address("2001:db8::1", 443)),
        ("my_app.internal.:1", Address("my_app.internal.", 1)),
    ],
)
def test_addresses(text: str, expected: Address) -> None:
    assert parse_address(text) == expected
    assert parse_address(str(expected)) == expected


def test_addresses_to_listen_on() -> None:
    assert parse_address(":0", default_host="::", zero=True) == Address("::", 0)
    assert parse_port("0", zero=True) == 0
    assert Address("::1", 1).numeric
    assert not Address("app", 1).numeric


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no port"),
        ("app", "no port"),
        ("app:", "no port"),
        ("app:http", "not a port"),
        ("app:0", "from 1 to 65535"),
        ("app:65536", "out of range"),
        ("99999999999999999999", "out of range"),
        ("app:٣", "not a port"),
        ("::1:80", r"brackets: \[::1\]:80"),
        ("[app]:80", "no IPv6 address"),
        ("[192.0.2.1]:80", "no IPv6 address"),
        ("-app:80", "host name"),
        ("a..b:80", "host name"),
        ("ä:80", "host name"),
        ("a" * 254 + ":80", "host name"),
    ],
)
def test_what_is_no_address(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("65536", 65536), ("64 KiB", 65536), ("64kib", 65536), ("10MB", 10_000_000), (" 1 GiB ", 2**30), ("7 B", 7)],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "KiB", "1.5 MiB", "-1", "1 parsec", "1 KiB 2"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("10s", 10), ("5m", 300), ("250ms", 0.25), ("1h30m", 5400), ("1.5 h", 5400), ("2d", 172800), ("0s", 0)]
)
def test_durations(text: str, expected: float) -> None:
    assert parse_duration(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "10", "s", "-1s", "10 s x", "1y"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ConfigError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "expected", "canonical"),
    [
        ("https://Tunnel.Example.com", EdgeUrl("tunnel.example.com", 443), "https://tunnel.example.com"),
        ("tunnel.localhost:8443", EdgeUrl("tunnel.localhost", 8443), "https://tunnel.localhost:8443"),
        ("https://tunnel.example.com.:443/", EdgeUrl("tunnel.example.com", 443), "https://tunnel.example.com"),
        ("http://[::1]:8080/edge/", EdgeUrl("::1", 8080, "http", "/edge"), "http://[::1]:8080/edge"),
        ("http://edge", EdgeUrl("edge", 80, "http"), "http://edge"),
        ("tls://Edge/", EdgeUrl("edge", 443, "tls"), "tls://edge"),
        ("tls://[::1]:8443", EdgeUrl("::1", 8443, "tls"), "tls://[::1]:8443"),
    ],
)
def test_urls_of_an_edge(text: str, expected: EdgeUrl, canonical: str) -> None:
    assert parse_edge_url(text) == expected
    assert str(expected) == canonical


def test_an_edge_is_the_same_by_either_carrier_of_its_port() -> None:
    assert parse_edge_url("tls://edge:8443").identity == parse_edge_url("https://edge:8443").identity == "https://edge:8443"
    assert parse_edge_url("http://edge").identity == "http://edge"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "HOST"),
        ("ftp://edge", "only https://, http:// and tls:// are known"),
        ("tls://edge/path", "give tls://HOST"),
        ("tls://user:hidden@edge", "never in a URL"),
        ("tls://edge:0", "port 0"),
        ("https://user:hidden@edge", "never in a URL"),
        ("https://hidden@edge", "never in a URL"),
        ("https://edge?token=hidden", r"'\?'"),
        ("https://edge#x", "'#'"),
        ("https://edge:99999", "not a URL"),
        ("https://edge:0", "port 0"),
        ("https://[::1", "not a URL"),
    ],
)
def test_what_is_no_url_of_an_edge(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_edge_url(text)
    assert "hidden" not in str(caught.value)


def test_tls_is_no_scheme_of_a_host() -> None:
    with pytest.raises(ConfigError, match="only https:// and http:// are known"):
        split_url("tls://host", "tls://host")


def test_a_secret_hides_itself() -> None:
    secret = Secret("hidden")
    assert "hidden" not in f"{secret} {secret!r} {[secret]}"
    assert secret.reveal() == "hidden"
    assert secret == Secret("hidden")


def test_secrets_from_files(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(b"  abc.def_1 \r\n\n")
    assert secret_from_file(file).reveal() == "abc.def_1"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"one two", "one secret"),
        (b"one\ntwo", "one secret"),
        (b"\xff\xfe", "one secret"),
        (b"x" * (MAX_SECRET + 1), "too long"),
    ],
)
def test_files_without_a_secret(content: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=says) as caught:
        secret_from_file(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        secret_from_file(tmp_path / "token")


def test_secrets_from_the_environment() -> None:
    assert secret_from_environment("NETBORE_TOKEN", {}) is None
    found = secret_from_environment("NETBORE_TOKEN", {"NETBORE_TOKEN": "abc\n"})
    assert found is not None
    assert found.reveal() == "abc"
    with pytest.raises(ConfigError, match="variable NETBORE_TOKEN is empty"):
        secret_from_environment("NETBORE_TOKEN", {"NETBORE_TOKEN": " "})
