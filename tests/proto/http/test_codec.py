"""The codec: pieces in order, however they are cut; what is refused; what stays in the buffer; what goes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from netbore.proto.http import codec
from netbore.proto.http.codec import (
    Opinion,
    RequestReader,
    ResponseReader,
    emit_chunk,
    emit_last_chunk,
    emit_request,
    emit_response,
)
from netbore.proto.http.head import HttpLimits
from netbore.proto.http.messages import BadMessage, End, Framing, Piece, RequestHead, ResponseHead, Truncated

CORPUS = json.loads((Path(__file__).parent / "smuggling.json").read_text())
UPGRADE = b"websocket"


#: All that a refusal may say: fixed words, so that no byte of the peer's gets into a page or a log by them.
REASONS = {
    *("bad Content-Length", "bad Host", "bad chunk line", "bad header line", "bad start line", "bad target", "bad trailer"),
    *("CONNECT is not served", "TRACE is not served", "HTTP version not served", "no Host", "unknown expectation"),
    *("both Content-Length and Transfer-Encoding", "Transfer-Encoding in HTTP/1.0", "unknown transfer coding"),
    *("control character or bare line end", "chunk longer than its size", "header name that imitates another"),
    *("body on a response that has none", "switch to no known protocol", "switch to a protocol that was not asked for"),
}


def cases(kind: str) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in CORPUS[kind]]


def plain(pieces: list[Piece]) -> list[object]:
    """Pieces in a form to compare: heads by their parts, slices of one body joined."""
    out: list[object] = []
    for piece in pieces:
        if isinstance(piece, RequestHead):
            out.append((piece.method, piece.target, piece.minor, piece.headers, piece.framing, piece.authority))
        elif isinstance(piece, ResponseHead):
            out.append((piece.status, piece.reason, piece.minor, piece.headers, piece.framing))
        elif isinstance(piece, End):
            out.append(piece)
        elif out and isinstance(out[-1], bytes):
            out[-1] += bytes(piece)
        else:
            out.append(bytes(piece))
    return out


def reader_of(text: bytes, method: bytes = b"GET", *, second_opinion: Opinion = Opinion.ALWAYS) -> RequestReader | ResponseReader:
    if not text.startswith(b"HTTP/"):
        return RequestReader(second_opinion=second_opinion)
    reader = ResponseReader(second_opinion=second_opinion)
    reader.expect(method, UPGRADE)
    return reader


def three_ways(text: bytes, method: bytes = b"GET") -> list[object]:
    """The pieces of a whole message, the same when it comes whole, byte by byte, as views, and with more behind it."""
    whole = reader_of(text, method)
    pieces = plain(whole.feed(text))
    assert len(whole.rest) == 0
    single = reader_of(text, method)
    bytewise: list[Piece] = []
    for at in range(len(text)):
        bytewise += single.feed(text[at : at + 1])
        assert at == len(text) - 1 or not bytewise or not isinstance(bytewise[-1], End)
    assert plain(bytewise) == pieces
    trailing = reader_of(text, method)
    assert plain(trailing.feed(memoryview(text + b"surplus\r\n\r\n"))) == pieces
    assert len(trailing.rest) == 11
    assert trailing.leftover() == b"surplus\r\n\r\n"
    assert len(trailing.rest) == 0
    return pieces


HOST = ((b"Host", b"a"),)
CODED = ((b"Transfer-Encoding", b"chunked"),)

REQUESTS = [
    (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", [(b"GET", b"/", 1, HOST, Framing.NONE, b"a"), End()]),
    (b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", [(b"GET", b"/", 1, HOST, Framing.NONE, b"a"), End()]),
    (b"GET / HTTP/1.0\r\n\r\n", [(b"GET", b"/", 0, (), Framing.NONE, b""), End()]),
    (
        b"PUT /x HTTP/1.1\r\nhost:a\r\nContent-Length: \t5 \r\n\r\nhello",
        [(b"PUT", b"/x", 1, ((b"host", b"a"), (b"Content-Length", b"5")), Framing.LENGTH(5), b"a"), b"hello", End()],
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        [(b"POST", b"/", 1, (*HOST, (b"Content-Length", b"0")), Framing.LENGTH(0), b"a"), End()],
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
        [(b"POST", b"/", 1, (*HOST, (b"Transfer-Encoding", b"Chunked")), Framing.CHUNKED, b"a"), End()],
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
        b"00A;a=b;c\r\n world all\r\n0\r\nX: y \r\n\r\n",
        [(b"POST", b"/", 1, HOST + CODED, Framing.CHUNKED, b"a"), b"hello world all", End(((b"X", b"y"),))],
    ),
]

RESPONSES = [
    (b"HTTP/1.1 204 No Content\r\n\r\n", b"GET", [(204, b"No Content", 1, (), Framing.NONE), End()]),
    (b"HTTP/1.1 304 \r\n\r\n", b"GET", [(304, b"", 1, (), Framing.NONE), End()]),
    (
        b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\n",
        b"HEAD",
        [(200, b"", 1, ((b"Content-Length", b"5"),), Framing.NONE), End()],
    ),
    (
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"GET",
        [(200, b"OK", 0, ((b"Content-Length", b"5"),), Framing.LENGTH(5)), b"hello", End()],
    ),
    (
        b"HTTP/1.1 103 Early Hints\r\nLink: b\r\n\r\nHTTP/1.1 999 \xe4 \r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"GET",
        [(103, b"Early Hints", 1, ((b"Link", b"b"),), Framing.NONE), (999, b"\xe4 ", 1, CODED, Framing.CHUNKED), b"a", End()],
    ),
]


@pytest.mark.parametrize(("text", "expected"), REQUESTS)
def test_requests(text: bytes, expected: list[object]) -> None:
    assert three_ways(text) == expected


@pytest.mark.parametrize(("text", "method", "expected"), RESPONSES)
def test_responses(text: bytes, method: bytes, expected: list[object]) -> None:
    assert three_ways(text, method) == expected


@pytest.mark.parametrize("second_opinion", [Opinion.ALWAYS, Opinion.ODD, Opinion.NEVER])
@pytest.mark.parametrize("case", cases("requests"))
def test_refused_requests(case: dict[str, Any], second_opinion: Opinion) -> None:
    check_refused(case, lambda: RequestReader(second_opinion=second_opinion))


@pytest.mark.parametrize("second_opinion", [Opinion.ALWAYS, Opinion.ODD, Opinion.NEVER])
@pytest.mark.parametrize("case", cases("responses"))
def test_refused_responses(case: dict[str, Any], second_opinion: Opinion) -> None:
    def make() -> ResponseReader:
        reader = ResponseReader(second_opinion=second_opinion)
        reader.expect(case["method"].encode())
        return reader

    check_refused(case, make)


def feed_in_steps(reader: RequestReader | ResponseReader, text: bytes, step: int) -> None:
    for at in range(0, len(text), step):
        reader.feed(text[at : at + step])


def feed_in_parts(reader: RequestReader, *parts: bytes) -> None:
    for part in parts:
        reader.feed(part)


def check_refused(case: dict[str, Any], make: Any) -> None:
    text = case["bytes"].encode("latin-1")
    for step in (len(text), 1, 7):
        reader = make()
        with pytest.raises(BadMessage) as caught:
            feed_in_steps(reader, text, step)
        assert caught.value.status == case["status"]
        assert caught.value.reason in REASONS
        with pytest.raises(BadMessage) as again:
            reader.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert again.value is caught.value


@pytest.mark.parametrize("end", [b"\r\r\n", b"\n\r\n", b"\r\n\r\r\n", b"\r\n\n"])
def test_a_bad_line_end_is_seen_across_a_cut(end: bytes) -> None:
    text = b"GET / HTTP/1.1\r\nHost: a" + end
    for cut in range(len(text)):
        with pytest.raises(BadMessage, match="bare line end"):
            feed_in_parts(RequestReader(), text[:cut], text[cut:])


def test_corpus_is_large_enough() -> None:
    assert len(CORPUS["requests"]) >= 60
    assert sum(case["name"].startswith("chunk: ") for case in CORPUS["requests"]) >= 20
    assert len(CORPUS["responses"]) >= 25


def test_pipelining_stops_at_each_end() -> None:
    reader = RequestReader()
    one = b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"
    two = b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n"
    first = reader.feed(one + two[:9])
    assert [type(piece) for piece in first] == [RequestHead, memoryview, End]
    assert len(reader.rest) == 9
    assert not reader.started
    assert reader.feed(two[9:12]) == []
    assert reader.next() == []
    assert reader.started
    assert len(reader.rest) == 0
    second = reader.feed(two[12:] + one)
    assert isinstance(second[0], RequestHead)
    assert second[0].target == b"/2"
    assert [type(piece) for piece in reader.next()] == [RequestHead, memoryview, End]
    assert reader.next() == []


def test_one_empty_line_before_each_request() -> None:
    reader = RequestReader()
    text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert len(reader.feed(text + b"\r\n" + text)) == 2
    assert len(reader.next()) == 2
    reader.next()
    assert reader.feed(b"\r\n") == []
    assert not reader.started
    with pytest.raises(BadMessage):
        reader.feed(b"\r\n\r\n")


def test_body_slices_are_views_of_what_was_fed() -> None:
    reader = RequestReader()
    head = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"
    data = head + b"01234"
    (_, piece) = reader.feed(data)
    assert isinstance(piece, memoryview)
    assert piece.obj is data
    more = b"567"
    assert reader.feed(more) == [more]
    assert reader.feed(more)[0] is not more
    last = RequestReader()
    last.feed(head[:20])
    rest = head[20:] + b"01234"
    view = last.feed(rest)[1]
    assert isinstance(view, memoryview)
    assert view.obj is rest


@pytest.mark.parametrize(
    "text",
    [
        b"GE",
        b"\r",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx",
        b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
    ],
)
def test_request_cut_short(text: bytes) -> None:
    reader = RequestReader()
    reader.feed(text)
    with pytest.raises(Truncated) as caught:
        reader.feed_eof()
    assert caught.value.status == 400


def test_request_eof_between_messages() -> None:
    reader = RequestReader()
    assert reader.feed_eof() == []
    reader.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET")
    assert reader.feed_eof() == []
    reader.next()
    with pytest.raises(Truncated):
        reader.feed_eof()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
    ],
)
def test_response_cut_short(text: bytes) -> None:
    reader = ResponseReader()
    reader.expect(b"GET")
    reader.feed(text)
    with pytest.raises(Truncated) as caught:
        reader.feed_eof()
    assert caught.value.status == 502


@pytest.mark.parametrize("version", [b"0", b"1"])
def test_response_until_close(version: bytes) -> None:
    reader = ResponseReader()
    reader.expect(b"GET")
    head, one = reader.feed(b"HTTP/1." + version + b" 200 OK\r\n\r\none")
    assert isinstance(head, ResponseHead)
    assert head.framing is Framing.UNTIL_CLOSE
    assert [bytes(one), *reader.feed(b"two"), *reader.feed_eof()] == [b"one", b"two", End()]
    assert reader.feed_eof() == []


def test_surplus_is_never_a_response() -> None:
    text = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    reader = ResponseReader()
    reader.expect(b"GET")
    assert len(reader.feed(text + text)) == 2
    assert len(reader.rest) == len(text)
    for _ in range(2):
        with pytest.raises(BadMessage) as caught:
            reader.expect(b"GET")
        assert caught.value.status == 502
    unasked = ResponseReader()
    assert unasked.feed(text) == []
    assert unasked.feed_eof() == []
    assert unasked.leftover() == text


def test_switch_of_protocols() -> None:
    reader = ResponseReader()
    reader.expect(b"GET", b"websocket")
    text = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n"
    (head,) = reader.feed(text + b"\x81")
    assert isinstance(head, ResponseHead)
    assert head.upgrade == b"websocket"
    assert reader.feed(b"\x00") == []
    assert reader.leftover() == b"\x81\x00"
    other = ResponseReader()
    other.expect(b"GET", b"chat")
    with pytest.raises(BadMessage):
        other.feed(text)


@pytest.mark.parametrize("step", [1, 997, 10**6])
@pytest.mark.parametrize(
    ("status", "text"),
    [
        (414, b"GET /" + b"a" * 8192),
        (414, b"GET /" + b"a" * 8192 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
        (431, b"GET / HTTP/1.1\r\nX: " + b"a" * 16384),
        (431, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 16384 + b"\r\n\r\n"),
        (431, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 128 + b"\r\n"),
        (431, b"GET / HTTP/1.1\r\nHost: a\r\n" + (b"X: " + b"a" * 1000 + b"\r\n") * 66),
        (431, b"GET / HTTP/1.1\r\nHost: a\r\n" + (b"X: " + b"a" * 1000 + b"\r\n") * 66 + b"\r\n"),
        (400, b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=" + b"b" * 256),
        (400, b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=" + b"b" * 256 + b"\r\n"),
        (431, b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"b" * 16384),
        (431, b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"b" * 16384 + b"\r\n\r\n"),
        (431, b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: a\r\n" * 129 + b"\r\n"),
    ],
    ids=range(12),
)
def test_limits(status: int, text: bytes, step: int) -> None:
    reader = RequestReader()
    with pytest.raises(BadMessage) as caught:
        feed_in_steps(reader, text, step)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "text",
    [
        b"HTTP/1.1 200 " + b"a" * 8192,
        b"HTTP/1.1 200 " + b"a" * 8192 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 16384,
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 16384 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 129 + b"\r\n",
    ],
    ids=range(5),
)
def test_limits_of_responses(text: bytes) -> None:
    with pytest.raises(BadMessage) as caught:
        reader_of(text).feed(text)
    assert caught.value.status == 502


def test_limits_may_be_met() -> None:
    line = b"GET /" + b"a" * (8192 - 14) + b" HTTP/1.1\r\n"
    headers = b"Host: a\r\n" + (b"X: " + b"a" * (16384 - 3) + b"\r\n") * 2 + b"X: a\r\n" * 125
    assert len(RequestReader().feed(line + headers + b"\r\n")) == 2
    single = RequestReader(HttpLimits(start_line=14, head=27, header_line=7, headers=1))
    text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert sum(len(single.feed(text[at : at + 1])) for at in range(len(text))) == 2


# --- whatever comes ---

SEEDS = [text for text, _ in REQUESTS] + [text for text, _, _ in RESPONSES]
FRAGMENTS = [
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b":", b"\0", b"0", b"5", b"_", b",", b";", b"\xff", b"#", b"*", b"@"),
    *(
        b"Transfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\n",
        b"Host: b\r\n",
        b"HTTP/1.1",
        b"0\r\n\r\n",
        b"Expect: 100-continue\r\n",
    ),
    *(b"Upgrade: websocket\r\n", b"Connection: upgrade\r\n", b"http://b", b"chunked", b"X_Y: b\r\n", b"HTTP/1.1 101 \r\n"),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    text = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        cut = draw(st.integers(0, 3))
        text = text[:at] + draw(st.sampled_from([b"", *FRAGMENTS]) | st.binary(max_size=2)) + text[at + cut :]
    return text


def outcome(reader: RequestReader | ResponseReader, parts: list[bytes]) -> tuple[list[object], int | None]:
    pieces: list[Piece] = []
    try:
        for part in parts:
            pieces += reader.feed(part)
        pieces += reader.feed_eof()
    except Truncated:
        pass
    except BadMessage as error:
        return [], error.status
    return plain(pieces), None


@settings(max_examples=400, deadline=None)
@given(text=mutated() | st.binary(max_size=60), as_request=st.booleans(), data=st.data())
@example(text=b"", as_request=True, data=None)
def test_anything_gives_pieces_or_bad_message(text: bytes, as_request: bool, data: st.DataObject | None) -> None:
    cuts = [] if data is None else sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    def make(second_opinion: Opinion) -> RequestReader | ResponseReader:
        return reader_of(b"" if as_request else b"HTTP/", second_opinion=second_opinion)

    whole = outcome(make(Opinion.ALWAYS), [text])
    assert outcome(make(Opinion.ALWAYS), parts) == whole
    # h11 adds nothing: whatever the strict check takes, h11 understood the same.
    for opinion in (Opinion.ODD, Opinion.NEVER):
        assert outcome(make(opinion), [text]) == whole


tokens = st.text("!#$%&'*+-.^_`|~09AZaz", min_size=1, max_size=12).map(str.encode)
values = st.binary(max_size=20).map(lambda raw: bytes(byte for byte in raw if byte == 9 or 32 <= byte != 127).strip(b" \t"))
fields = st.lists(st.tuples(tokens.map(lambda name: b"x-" + name), values), max_size=6).map(tuple)
bodies = st.lists(st.binary(min_size=1, max_size=30), max_size=4)


@settings(max_examples=150, deadline=None)
@given(method=tokens, path=tokens, extra=fields, parts=bodies, trailers=fields)
def test_what_is_emitted_reads_the_same(method: bytes, path: bytes, extra: Any, parts: list[bytes], trailers: Any) -> None:
    sent = RequestHead(b"M" + method, b"/" + path.replace(b"#", b""), 1, (*HOST, *extra, *CODED))
    head = emit_request(sent)
    body = b"".join(bytes(data) for part in parts for data in emit_chunk(part)) + emit_last_chunk(trailers)
    got, *rest = plain(RequestReader().feed(head + body))
    assert got == (sent.method, sent.target, 1, sent.headers, Framing.CHUNKED, b"a")
    assert rest == ([b"".join(parts)] if parts else []) + [End(trailers)]
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head + body)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target, tuple(event.headers.raw_items())) == (sent.method, sent.target, sent.headers)
    read = b""
    while isinstance(event := connection.next_event(), h11.Data):
        read += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert (read, tuple(event.headers.raw_items())) == (b"".join(parts), trailers)


@settings(max_examples=100, deadline=None)
@given(status=st.integers(200, 999), reason=values, extra=fields)
def test_emitted_responses_read_the_same(status: int, reason: bytes, extra: Any) -> None:
    sent = ResponseHead(status, reason, 1, (*extra, (b"Content-Length", b"0")))
    got, end = plain(reader_of(b"HTTP/").feed(emit_response(sent)))
    assert got == (status, reason, 1, sent.headers, Framing.NONE if status in (204, 304) else Framing.LENGTH(0))
    assert end == End()


@pytest.mark.parametrize("bad", [b"a\r\nX: b", b"a\n", b"\rb"])
def test_emitting_refuses_line_ends(bad: bytes) -> None:
    with pytest.raises(ValueError, match="line end"):
        emit_request(RequestHead(b"GET", b"/" + bad, 1, ()))
    with pytest.raises(ValueError, match="line end"):
        emit_response(ResponseHead(200, b"OK", 1, ((b"X", bad),)))
    with pytest.raises(ValueError, match="line end"):
        emit_last_chunk(((bad, b"a"),))


def test_empty_chunk_is_not_the_last() -> None:
    assert emit_chunk(b"") == []
    assert emit_chunk(memoryview(b"x" * 17)) == [b"11\r\n", b"x" * 17, b"\r\n"]


@pytest.mark.parametrize("event", [None, h11.Request(method="GET", target="/other", headers=[("Host", "a")])])
def test_a_second_opinion_counts(event: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The strict check takes nothing that h11 reads otherwise, so the difference has to be made here."""
    monkeypatch.setattr(codec, "_event", lambda *_: event)
    for text, status in ((b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400), (b"HTTP/1.1 200 OK\r\n\r\n", 502)):
        with pytest.raises(BadMessage, match="disagree") as caught:
            reader_of(text).feed(text)
        assert caught.value.status == status


def test_h11_errors_are_a_difference() -> None:
    assert codec._event(h11.Connection(h11.SERVER), b"\0\r\n\r\n") is None
