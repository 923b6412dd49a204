"""Netbore: a self-hosted reverse tunnel. See README.md; the names here are the library."""

from __future__ import annotations

from netbore.agent.agent import Agent, Tunnel, connect
from netbore.edge.config import EdgeConfig
from netbore.edge.edge import Edge
from netbore.errors import (
    BindRefused,
    ConfigError,
    EdgeUnreachable,
    EdgeUntrusted,
    NameTaken,
    NetboreError,
    Replaced,
    TunnelClosed,
    Unauthorized,
    VersionMismatch,
)

__all__ = [
    "Agent",
    "BindRefused",
    "ConfigError",
    "Edge",
    "EdgeConfig",
    "EdgeUnreachable",
    "EdgeUntrusted",
    "NameTaken",
    "NetboreError",
    "Replaced",
    "Tunnel",
    "TunnelClosed",
    "Unauthorized",
    "VersionMismatch",
    "connect",
]
