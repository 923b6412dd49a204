"""A head that comes again is not read again, and means the same."""

from __future__ import annotations

from contextlib import suppress
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
            known = one.take_known(part)
            pieces += one.feed(part) if known is None else whole(known)
    except BadMessage as error:
        return error.status
    return [meaning(piece) for piece in pieces], one.leftover(), one.started


def whole(known: Any) -> list[Any]:
    """The pieces of a message that was taken at once."""
    head, body = known if isinstance(known, tuple) else (known, b"")
    return [head, *([body] if body else []), End()]


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


def test_a_message_that_came_before_is_the_same_read_again() -> None:
    memo = HeadMemo()
    for text in MESSAGES:
        assert outcome(text, memo) == outcome(text, None)
        assert outcome(text, memo) == outcome(text, None)


def test_a_whole_message_that_came_before_is_taken_at_once() -> None:
    memo = HeadMemo()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    head, (known, *_) = read(REQUEST, memo), reader(answer, memo).feed(answer)
    requests, responses = RequestReader(memo=memo), ResponseReader(memo=memo)
    responses.expect(b"GET")
    assert requests.take_known(REQUEST) is head
    taken = responses.take_known(memoryview(answer))
    assert taken is not None
    assert (taken[0], bytes(taken[1])) == (known, b"hello")
    assert requests.take_known(REQUEST) is responses.take_known(answer) is None, "they stand at the end of a message"
    assert requests.next() == []
    responses.expect(b"GET")
    assert requests.take_known(REQUEST) is head
    assert responses.take_known(answer) is not None


@pytest.mark.parametrize("before", [b"", b"G", b"GET / HTTP/1.1\r\nHost: a\r\n\n\r\n"])
@pytest.mark.parametrize("text", [REQUEST + b"\r\n", REQUEST[:-1], REQUEST + REQUEST, memoryview(REQUEST), REQUEST])
def test_a_request_that_is_not_alone_is_read_as_any_other(before: bytes, text: bytes) -> None:
    if not before and type(text) is bytes and text == REQUEST:
        return
    memo = HeadMemo()
    read(REQUEST, memo)
    one = RequestReader(memo=memo)
    with suppress(BadMessage):
        one.feed(before)
    assert one.take_known(text) is None


POST = b"POST /a HTTP/1.1\r\nHost: a.tunnel.test\r\nContent-Length: 0\r\n\r\n"
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n"


@pytest.mark.parametrize(
    "text",
    [
        RESPONSE + b"x",
        RESPONSE[:-2],
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n12345678",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
        LONG + bytes(70000),
    ],
)
def test_a_response_that_is_not_whole_or_not_short_is_read_as_any_other(text: bytes) -> None:
    memo = HeadMemo()
    reader(text, memo).feed(text)
    one = reader(text, memo)
    assert isinstance(one, ResponseReader)
    assert one.take_known(text) is None


def test_without_a_memo_nothing_is_known() -> None:
    assert RequestReader().take_known(REQUEST) is None
    one = reader(RESPONSE, None)
    assert isinstance(one, ResponseReader)
    assert one.take_known(RESPONSE) is None
    empty = RequestReader(memo=HeadMemo())
    assert empty.take_known(REQUEST) is None


def test_a_request_with_a_body_is_read_as_any_other() -> None:
    memo = HeadMemo()
    read(POST, memo)
    assert RequestReader(memo=memo).take_known(POST) is None


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


def test_a_head_of_many_lines_is_not_kept() -> None:
    memo = HeadMemo()
    for count, kept in ((31, 1), (32, 1)):
        read(REQUEST.replace(b"\r\n\r\n", b"\r\n" + b"X: y\r\n" * count + b"\r\n"), memo)
        assert len(memo) == kept
