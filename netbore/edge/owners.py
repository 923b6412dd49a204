"""What the door counts for each owner and each holder: promised bytes, and Links that wait for their Agents.

One owner's Agents may be many. So that none of them can use up what the others need, the budget has a level for each owner
between the Link's and the Edge's, and broken Links are counted by owner as well as by holder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from netbore.edge.registry import Holder
from netbore.proto.window import Budget

if TYPE_CHECKING:
    from netbore.edge.agents import AgentLink

K = TypeVar("K")


class OwnerBudgets:
    """A Budget of `total` bytes for each owner who has Links, within the Edge's."""

    def __init__(self, total: int, edge: Budget) -> None:
        self._total = total
        self._edge = edge
        self._budgets: dict[str, Budget] = {}

    def of(self, owner: str) -> Budget:
        """The owner's. It is the same one as long as anything of it is out."""
        return self._budgets.setdefault(owner, Budget(self._total, self._edge))

    def tidy(self, owner: str) -> None:
        """A Link of the owner's has ended, or was not made after all."""
        budget = self._budgets.get(owner)
        if budget is not None and not budget.out:
            del self._budgets[owner]

    def __len__(self) -> int:
        return len(self._budgets)


class BrokenLinks:
    """Links without a transport, in the order in which they broke."""

    def __init__(self, per_holder: int, per_owner: int) -> None:
        self._per_holder = per_holder
        self._per_owner = per_owner
        self._of_holder: dict[Holder, dict[str, AgentLink]] = {}
        self._of_owner: dict[str, dict[str, AgentLink]] = {}

    def add(self, agent: AgentLink) -> AgentLink | None:
        """One more; the one that has been broken for longest when there are too many of its holder or owner."""
        holder = self._of_holder.setdefault(agent.holder, {})
        owner = self._of_owner.setdefault(agent.holder.owner, {})
        holder[agent.id] = owner[agent.id] = agent
        if len(holder) > self._per_holder:
            return next(iter(holder.values()))
        if len(owner) > self._per_owner:
            return next(iter(owner.values()))
        return None

    def discard(self, agent: AgentLink) -> None:
        """It goes on, or has ended."""
        _remove(self._of_holder, agent.holder, agent.id)
        _remove(self._of_owner, agent.holder.owner, agent.id)

    def of(self, holder: Holder) -> list[AgentLink]:
        """Those of one holder."""
        return list(self._of_holder.get(holder, {}).values())

    def __len__(self) -> int:
        return sum(map(len, self._of_owner.values()))


def _remove(groups: dict[K, dict[str, AgentLink]], key: K, link: str) -> None:
    group = groups.get(key)
    if group is not None and group.pop(link, None) is not None and not group:
        del groups[key]
