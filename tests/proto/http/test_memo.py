"""A head that comes again is not read again, and means the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netbore.proto.http.codec import HeadMemo, Opinion, RequestReader, ResponseReader, emit_request, emit_response
from netbore.proto.http.headers import framed, to_viewer
from netbore.proto.http.messages import BadMessage, End, ResponseHead

APEX = b"tunnel.test"
REQUEST = b"GET /a HTTP/1.1\r\nHost: a.tunnel.test\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nServer: s\r\n\r\n"


def reader(text: bytes, memo: HeadMemo | None, method: bytes = b"GET") -> RequestReader | ResponseReader:
    """A fresh reader for such a message."""
    if not text.startswith(b"HTTP/"):
        return RequestReader(memo=memo, second_opinion=Opinion.NEVER)
    responses = ResponseReader(memo=memo, second_opinion=Opinion.NEVER)
    responses.expect(method)
    return responses


def outcome(text: bytes, memo: HeadMemo | None, method: bytes = b"GET", cut: int = 0) -> Any:
    """What a fresh reader makes of `text` in one or two reads: its pieces and what is left over, or a refusal."""
    one = reader(text, memo, method)
    pieces: list[Any] = []
    try:
        for part in (text[:cut], text[cut:]):
            pieces += one.feed(part)
    except BadMessage as error:
        return error.status
    return [meaning(piece) for piece in pieces], one.leftover(), one.started


def read(text: bytes, memo: HeadMemo | None, method: bytes = b"GET") -> Any:
    """The head that a fresh reader finds in `text`, or None where there is none."""
    try:
        pieces = reader(text, memo, method).feed(text)
    except BadMessage:
        return None
    return pieces[0] if pieces else None


def meaning(piece: Any) -> Any:
    if isinstance(piece, bytes | memoryview):
        return bytes(piece)
    return piece if isinstance(piece, End) else (repr(piece), piece.framing, piece.keep_alive, piece.upgrade)


def test_the_same_bytes_give_the_same_head() -> None:
    memo = HeadMemo()
    assert read(REQUEST, memo) is read(REQUEST, memo)
    assert read(RESPONSE, memo) is read(RESPONSE, memo)
    assert len(memo) == 2


def test_a_response_means_something_else_after_another_method() -> None:
    memo = HeadMemo()
    text = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    get, head = read(text, memo), read(text, memo, b"HEAD")
    assert (get.framing.length, head.framing.empty) == (5, True)
    assert (read(text, memo), read(text, memo, b"HEAD")) == (get, head)


@pytest.mark.parametrize(
    "text",
    [
        REQUEST.replace(b"\r\n\r\n", b"\r\nAuthorization: Basic x\r\n\r\n"),
        REQUEST.replace(b"\r\n\r\n", b"\r\nCookie: a=b\r\n\r\n"),
        RESPONSE.replace(b"Server: s", b"Set-Cookie: a=b"),
        b"GET / HTTP/1.0\r\n\r\n",  # its authority may come from the connection
        REQUEST.replace(b"/a", b"/" + b"a" * 2048),
    ],
)
def test_what_is_not_kept(text: bytes) -> None:
    memo = HeadMemo()
    read(text, memo)
    assert len(memo) == 0


def test_it_is_bounded() -> None:
    memo = HeadMemo(most=8)
    for number in range(100):
        read(REQUEST.replace(b"/a", b"/%d" % number), memo)
        assert 1 <= len(memo) <= 8


MESSAGES = [
    REQUEST,
    REQUEST + REQUEST,
    REQUEST.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\nabc"),
    REQUEST.replace(b"\r\n\r\n", b"\r\nContent-Length: 0\r\n\r\n"),
    RESPONSE,
    RESPONSE.replace(b" 0\r\n", b" 5\r\n") + b"hello",
    RESPONSE.replace(b" 0\r\n", b" 5\r\n") + b"hell",
    RESPONSE.replace(b" 0\r\n", b" 5\r\n") + b"hello, surplus",
    RESPONSE.replace(b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n") + b"3\r\nabc\r\n0\r\n\r\n",
    RESPONSE.replace(b"Content-Length: 0\r\n", b"") + b"until the end",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\nsurplus",
    b"HTTP/1.1 103 Early Hints\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\n" + RESPONSE,
    RESPONSE.replace(b" 0\r\n", b" 20000\r\n") + bytes(20000),
]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(MESSAGES), max_size=6), st.sampled_from([b"GET", b"HEAD"]), st.data())
def test_a_memo_changes_nothing(texts: list[bytes], method: bytes, data: st.DataObject) -> None:
    memo = HeadMemo(most=3)
    for text in texts:
        at = data.draw(st.integers(0, len(text) - 1))
        mutated = text[:at] + data.draw(st.binary(max_size=2)) + text[at + data.draw(st.integers(0, 2)) :]
        cut = data.draw(st.integers(0, len(text)))
        for tried in (text, text, mutated, mutated):
            for where in (0, cut):
                assert outcome(tried, memo, method, where) == outcome(tried, None, method, where)


def test_a_message_that_came_before_is_taken_in_one_piece() -> None:
    memo = HeadMemo()
    for text in MESSAGES:
        assert outcome(text, memo) == outcome(text, None)
        assert outcome(text, memo) == outcome(text, None)
    responses = reader(MESSAGES[5], memo)
    (_, body, _) = responses.feed(memoryview(MESSAGES[5]))
    assert isinstance(body, memoryview)


def test_what_is_derived_is_kept_for_the_same_use_only() -> None:
    head: ResponseHead = read(RESPONSE, HeadMemo())
    forwarded = to_viewer(head, apex=APEX)
    assert to_viewer(head, apex=APEX) is forwarded
    assert to_viewer(head, apex=b"other.test") is not forwarded
    kept = framed(forwarded, viewer_minor=1, keep_alive=True)
    assert framed(forwarded, viewer_minor=1, keep_alive=True) is kept
    closing = framed(forwarded, viewer_minor=1, keep_alive=False)
    old = framed(forwarded, viewer_minor=0, keep_alive=True)
    assert b"Connection: close" in emit_response(closing)
    assert b"Connection: keep-alive" in emit_response(old)
    assert emit_response(kept) is emit_response(kept)


def test_what_is_emitted_twice_is_made_once() -> None:
    request = read(REQUEST, HeadMemo())
    assert emit_request(request) is emit_request(request)
    assert emit_request(request) == REQUEST
