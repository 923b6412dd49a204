"""Answers that Netbore makes itself: one table of problems, rendered for programs and for people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from typing import Final

import attrs

from netbore.proto.http.messages import BadMessage, RequestHead, ResponseHead
from netbore.proto.wire import Code

ERROR_HEADER: Final = b"Netbore-Error"


@attrs.frozen
class Problem:
    """One kind of refusal. `code` is stable, and `retryable` says whether the same request may succeed later.

    `retry_after` is in seconds. `detail` is fixed text for a person: it never holds anything of the request.
    """

    code: str
    status: int
    title: str
    detail: str
    retryable: bool = False
    retry_after: int | None = None
    allow: bytes | None = None


_TABLE: Final = (
    # Routing
    Problem("no_such_tunnel", 404, "No such tunnel", "No tunnel has this address."),
    Problem("agent_offline", 503, "Agent offline", "The tunnel exists, but its agent is not connected.", True, 5),
    Problem("not_found", 404, "Not found", "The API has nothing at this path."),
    Problem("misdirected", 421, "Misdirected request", "This connection was made for another host name.", True),
    Problem("loop_detected", 508, "Loop detected", "The request has passed this edge too often."),
    # The Host
    Problem("host_refused", 502, "Host refused", "The service behind the tunnel refused the connection.", True),
    Problem("host_unreachable", 502, "Host unreachable", "The agent cannot reach the service behind the tunnel.", True),
    Problem("host_timeout", 504, "Host timed out", "The service behind the tunnel did not answer in time.", True),
    Problem("host_closed", 502, "Host closed", "The service behind the tunnel closed the connection without an answer.", True),
    Problem("host_tls", 502, "Host TLS failed", "TLS to the service behind the tunnel failed."),
    Problem("bad_gateway", 502, "Bad gateway", "The service behind the tunnel did not answer in proper HTTP."),
    Problem("not_processed", 503, "Not processed", "The request did not reach the service behind the tunnel.", True, 1),
    # Policy and limits
    Problem("policy_refused", 403, "Refused by policy", "The tunnel's policy does not allow this request."),
    Problem("unauthorized", 401, "Unauthorized", "The request carries no valid credential."),
    Problem("rate_limited", 429, "Too many requests", "A rate limit was reached.", True, 1),
    Problem("limit_reached", 503, "Limit reached", "The edge or the tunnel carries as much as it may.", True, 1),
    Problem("going_away", 503, "Going away", "The edge is stopping.", True, 1),
    Problem("internal_error", 500, "Internal error", "The edge made a mistake."),
    # The request itself
    Problem("bad_request", 400, "Bad request", "The request is not proper HTTP."),
    Problem("request_cut_short", 400, "Request cut short", "The request ended before its body was complete."),
    Problem(
        "method_not_allowed",
        405,
        "Method not allowed",
        "This method is not passed on.",
        allow=b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
    ),
    Problem("request_timeout", 408, "Request timeout", "The request took too long to arrive.", True),
    Problem("content_too_large", 413, "Content too large", "The request's body is too large."),
    Problem("uri_too_long", 414, "URI too long", "The request's target is too long."),
    Problem("expectation_failed", 417, "Expectation failed", "Only the expectation 100-continue is known."),
    Problem("upgrade_required", 426, "Upgrade required", "No common protocol version."),
    Problem("header_too_large", 431, "Header too large", "The request's header section is too large."),
    Problem("not_implemented", 501, "Not implemented", "This method or transfer coding is not implemented."),
    Problem("version_not_supported", 505, "Version not supported", "Only HTTP/1.0 and HTTP/1.1 are spoken here."),
)

PROBLEMS: Final = {problem.code: problem for problem in _TABLE}

#: What a Viewer is told when the Stream to its Host ended with a code before any response. Others are `bad_gateway`.
PROBLEM_OF_CODE: Final[dict[int, Problem]] = {
    Code.INTERNAL_ERROR: PROBLEMS["internal_error"],
    Code.LIMIT_EXCEEDED: PROBLEMS["limit_reached"],
    Code.TIMEOUT: PROBLEMS["host_timeout"],
    Code.REPLACED: PROBLEMS["agent_offline"],
    Code.GOING_AWAY: PROBLEMS["agent_offline"],
    Code.GRACE_EXPIRED: PROBLEMS["agent_offline"],
    Code.NOT_PROCESSED: PROBLEMS["not_processed"],
    Code.HOST_REFUSED: PROBLEMS["host_refused"],
    Code.HOST_UNREACHABLE: PROBLEMS["host_unreachable"],
    Code.HOST_TIMEOUT: PROBLEMS["host_timeout"],
    Code.HOST_CLOSED: PROBLEMS["host_closed"],
    Code.HOST_TLS: PROBLEMS["host_tls"],
    Code.LINK_LOST: PROBLEMS["agent_offline"],
    Code.IDLE_TIMEOUT: PROBLEMS["host_timeout"],
    Code.UNBOUND: PROBLEMS["agent_offline"],
}

#: What the codec's statuses are called here. Other 4xx are `bad_request`.
_OF_STATUS: Final = {
    400: PROBLEMS["bad_request"],
    405: PROBLEMS["method_not_allowed"],
    413: PROBLEMS["content_too_large"],
    414: PROBLEMS["uri_too_long"],
    417: PROBLEMS["expectation_failed"],
    421: PROBLEMS["misdirected"],
    431: PROBLEMS["header_too_large"],
    501: PROBLEMS["not_implemented"],
    502: PROBLEMS["bad_gateway"],
    505: PROBLEMS["version_not_supported"],
    508: PROBLEMS["loop_detected"],
}


def problem_of_code(code: int) -> Problem:
    """The problem for a Stream that ended with `code` (docs/protocol.md section 9)."""
    return PROBLEM_OF_CODE.get(code, PROBLEMS["bad_gateway"])


def problem_of(error: BadMessage) -> Problem:
    """The problem for a message that the codec refused; its detail is the codec's own fixed words."""
    problem = _OF_STATUS.get(error.status, PROBLEMS["bad_request"])
    return attrs.evolve(problem, detail=f"{problem.detail} ({error.reason})") if error.reason else problem


def render(
    problem: Problem, request: RequestHead | None = None, members: Mapping[str, object] | None = None
) -> tuple[ResponseHead, bytes]:
    """The answer for `problem` in the form that `request` prefers: head and body, the head without any `Connection` field.

    `members` are further ones of the JSON document.
    """
    html = request is not None and prefers_html(request)
    body = _page(problem) if html else _document(problem, members or {})
    media = b"text/html; charset=utf-8" if html else b"application/problem+json"
    headers = [
        (b"Content-Type", media),
        (b"Content-Length", b"%d" % len(body)),
        (b"Cache-Control", b"no-store"),
        (ERROR_HEADER, problem.code.encode()),
    ]
    if html:
        headers.append((b"Content-Security-Policy", b"default-src 'none'; style-src 'unsafe-inline'"))
    if problem.retry_after is not None:
        headers.append((b"Retry-After", b"%d" % problem.retry_after))
    if problem.allow is not None:
        headers.append((b"Allow", problem.allow))
    return ResponseHead(problem.status, problem.title.encode(), 1, tuple(headers)), body


_QUALITY: Final = re.compile(rb";[ \t]*[qQ]=([01](?:\.[0-9]{0,3})?)")
_FOR_PROGRAMS: Final = frozenset({b"application/problem+json", b"application/json"})


def prefers_html(request: RequestHead) -> bool:
    """Whether `Accept` names text/html, and names JSON with no higher quality. A wildcard alone is a program's."""
    html = program = 0.0
    for name, value in request.headers:
        if name.lower() != b"accept":
            continue
        for item in value.lower().split(b","):
            kind = item.partition(b";")[0].strip()
            found = _QUALITY.search(item)
            quality = float(found[1]) if found else 1.0
            if kind == b"text/html":
                html = max(html, quality)
            elif kind in _FOR_PROGRAMS:
                program = max(program, quality)
    return html > 0 and html >= program


def _document(problem: Problem, members: Mapping[str, object]) -> bytes:
    document: dict[str, object] = {
        "type": f"urn:netbore:problem:{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        "retryable": problem.retryable,
        **members,
    }
    return json.dumps(document).encode() + b"\n"


_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>{status} {title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 34rem; margin: 18vh auto 0; padding: 0 1.5rem; }}
body {{ color: #1b1b1f; background: #fff; }}
h1 {{ font-size: 1.6rem; margin: 0 0 .5rem; }}
code {{ color: #6b6b76; }}
@media (prefers-color-scheme: dark) {{ body {{ color: #e8e8ee; background: #17171b; }} code {{ color: #a0a0ad; }} }}
</style></head>
<body><h1>{title}</h1><p>{detail}{again}</p><p><code>{status} {code}</code></p></body></html>
"""


def _page(problem: Problem) -> bytes:
    return _PAGE.format(
        status=problem.status,
        title=escape(problem.title),
        detail=escape(problem.detail),
        code=escape(problem.code),
        again=" Trying again may help." if problem.retryable else "",
    ).encode()
