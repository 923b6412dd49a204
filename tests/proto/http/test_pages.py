"""The table of problems and how it is rendered."""

from __future__ import annotations

import json
import re
from http import HTTPStatus

import pytest

from netbore.proto.http.codec import emit_response
from netbore.proto.http.messages import BadMessage, RequestHead
from netbore.proto.http.pages import PROBLEM_OF_CODE, PROBLEMS, Problem, prefers_html, problem_of, problem_of_code, render
from netbore.proto.wire import Code

BROWSER = b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def asking(*accept: bytes) -> RequestHead:
    return RequestHead(b"GET", b"/", 1, tuple((b"Accept", value) for value in accept))


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=list(PROBLEMS))
def test_each_problem_renders_both_ways(problem: Problem) -> None:
    assert re.fullmatch("[a-z_]+", problem.code)
    assert HTTPStatus(problem.status)
    head, body = render(problem)
    document = json.loads(body)
    assert document["code"] == problem.code
    assert document["status"] == head.status == problem.status
    assert document["retryable"] is problem.retryable
    assert head.get(b"netbore-error") == problem.code.encode()
    assert head.get(b"content-type") == b"application/problem+json"
    assert head.get(b"content-length") == b"%d" % len(body)
    assert head.get(b"connection") is None
    assert emit_response(head).startswith(b"HTTP/1.1 %d " % problem.status)
    page, text = render(problem, asking(BROWSER))
    assert page.get(b"content-type") == b"text/html; charset=utf-8"
    assert b"prefers-color-scheme: dark" in text
    assert b"default-src 'none'" in (page.get(b"content-security-policy") or b"")
    assert problem.title.encode() in text
    assert (b"Trying again" in text) is problem.retryable


def test_retry_after_and_allow() -> None:
    assert render(PROBLEMS["agent_offline"])[0].get(b"retry-after") == b"5"
    assert render(PROBLEMS["no_such_tunnel"])[0].get(b"retry-after") is None
    assert b"GET" in (render(PROBLEMS["method_not_allowed"])[0].get(b"allow") or b"")


def test_page_is_escaped() -> None:
    problem = Problem("x", 400, "<b>", "a & <script>")
    _, text = render(problem, asking(BROWSER))
    assert b"<script>" not in text
    assert b"&lt;b&gt;" in text
    assert b"a &amp; &lt;script&gt;" in text


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        ((), False),
        ((b"*/*",), False),
        ((BROWSER,), True),
        ((b"TEXT/HTML",), True),
        ((b"application/json", b"text/html"), True),
        ((b"application/json, text/html;q=0.9",), False),
        ((b"application/problem+json;q=0.1, text/html ; Q=0.2",), True),
        ((b"text/html;q=0",), False),
        ((b"text/plain",), False),
    ],
)
def test_who_gets_a_page(accept: tuple[bytes, ...], html: bool) -> None:
    assert prefers_html(asking(*accept)) is html
    head = RequestHead(b"GET", b"/", 1, ((b"Host", b"a"), *asking(*accept).headers))
    assert prefers_html(head) is html


def test_codes_of_the_wire() -> None:
    assert problem_of_code(Code.HOST_REFUSED).code == "host_refused"
    assert problem_of_code(Code.CANCELLED).code == "bad_gateway"
    assert problem_of_code(999).code == "bad_gateway"
    assert {problem.status for problem in PROBLEM_OF_CODE.values()} <= {500, 502, 503, 504}


def test_refusals_of_the_codec() -> None:
    assert problem_of(BadMessage(431, "too many header lines")).code == "header_too_large"
    assert problem_of(BadMessage(431, "too many header lines")).detail.endswith("(too many header lines)")
    assert problem_of(BadMessage(499, "")) is PROBLEMS["bad_request"]
