"""Leases: what Links hold in the Registry is renewed, and what was lost is claimed again.

A name can be lost while its Link lives: the Registry could not be reached for longer than a lease, or was restarted empty.
Then nobody was told of a takeover; so the name is claimed as by anyone who finds it free, and where another has it by now,
its Tunnel here has been replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

from netbore.edge.registry import NameTaken, Registry
from netbore.proto.wire import Code

if TYPE_CHECKING:
    from netbore.edge.agents import AgentLink, Binding

log = logging.getLogger("netbore.edge.leases")


async def renew_leases(registry: Registry, agents: Collection[AgentLink]) -> None:
    """Renew what these Links hold, broken ones too. A checkpoint."""
    bound = [(agent, handle, binding) for agent in agents for handle, binding in agent.bound.items()]
    held = await registry.renew([agent.id for agent in agents])
    for agent, handle, binding in bound:
        if binding.name not in held and agent.bound.get(handle) is binding:
            await _claim_again(registry, agent, handle, binding)


async def _claim_again(registry: Registry, agent: AgentLink, handle: int, binding: Binding) -> None:
    try:
        claim = await registry.claim(binding.name, binding.holder, agent.id, handle, takeover=False)
    except NameTaken:
        log.warning("link %s lost the name %s to another Agent", agent.id, binding.name)
        agent.take_away(handle, Code.REPLACED, "another Agent took this Tunnel over", gentle=True)
        return
    if agent.bound.get(handle) is binding:
        binding.epoch = claim.epoch
        log.warning("link %s had lost the name %s, and has it again", agent.id, binding.name)
    else:  # it was given up while we asked
        await registry.release(binding.name, agent.id, handle)
