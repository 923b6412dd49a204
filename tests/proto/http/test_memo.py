"""A head that comes again is not read again, and means the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbore.proto.http.codec import HeadMemo, Opinion, RequestReader, ResponseReader, emit_response
from netbore.proto.http.headers import framed, to_viewer
from netbore.proto.http.messages import BadMessage, ResponseHead

APEX = b"tunnel.test"
REQUEST = b"GET /a HTTP/1.1\r\nHost: a.tunnel.test\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nServer: s\r\n\r\n"


def read(text: bytes, memo: HeadMemo | None, method: bytes = b"GET") -> Any:
    """What a fresh reader makes of one head: its head, or the status of its refusal."""
    reader: RequestReader | ResponseReader
    if text.startswith(b"HTTP/"):
        reader = ResponseReader(memo=memo, second_opinion=Opinion.NEVER)
        reader.expect(method)
    else:
        reader = RequestReader(memo=memo, second_opinion=Opinion.NEVER)
    try:
        pieces = reader.feed(text)
    except BadMessage as error:
        return error.status
    return pieces[0] if pieces else None


def meaning(head: Any) -> Any:
    return head if head is None or isinstance(head, int) else (repr(head), head.framing, head.keep_alive, head.upgrade)


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


@given(st.lists(st.sampled_from([REQUEST, RESPONSE]), max_size=6), st.data())
def test_a_memo_changes_nothing(texts: list[bytes], data: st.DataObject) -> None:
    memo = HeadMemo(most=3)
    for text in texts:
        at = data.draw(st.integers(0, len(text) - 1))
        mutated = text[:at] + data.draw(st.binary(max_size=2)) + text[at + data.draw(st.integers(0, 2)) :]
        for tried in (text, mutated, mutated):
            assert meaning(read(tried, memo)) == meaning(read(tried, None))


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
