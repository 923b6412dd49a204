"""A LinkUser that only remembers what it was told."""

from __future__ import annotations

from typing import Any

from netbore.link.link import Link
from netbore.proto.session import Ended


class Quiet:
    def __init__(self) -> None:
        self.happened: list[Any] = []

    def on_message(self, link: Link, message: dict[str, Any]) -> None:
        self.happened.append(message)

    def on_broken(self, link: Link, reason: str) -> None:
        self.happened.append(reason)

    def on_move(self, link: Link, spread: float) -> None:
        self.happened.append(spread)

    def on_open_allowed(self, link: Link) -> None:
        self.happened.append("open allowed")

    def on_ended(self, link: Link, ended: Ended) -> None:
        self.happened.append(ended)
