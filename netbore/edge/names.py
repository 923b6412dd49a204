"""Names of Tunnels: what one may look like, which ones nobody may take, and random ones that can be read aloud."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeAlias

#: A number from 0 up to, and without, its argument: `secrets.randbelow`.
Below: TypeAlias = Callable[[int], int]

LONGEST: Final = 63


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


#: Names that a Viewer would take for the Edge itself, or that mail and browsers give a meaning of their own.
RESERVED: Final = frozenset(
    _words(
        """
    abuse account accounts acme admin administrator agent api auth autoconfig autodiscover cdn dashboard dns edge ftp help
    hostmaster imap localhost login logout mail metrics mta-sts mx netbore noc ns ns1 ns2 oauth openid pop pop3 postmaster root
    security signin signup smtp sso ssl status support sysadmin system tunnel tunnels usenet uucp webmail webmaster wpad
    www www1 www2
    """
    )
)

_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


def fault(name: str) -> str | None:
    """Why `name` is no name, in words for a person; None when it is one: a DNS label of a-z, 0-9 and inner hyphens."""
    if not name:
        return "a name has at least one character"
    if len(name) > LONGEST:
        return f"a name has at most {LONGEST} characters"
    if not _LABEL.fullmatch(name):
        return "a name consists of a-z, 0-9 and hyphens, and neither begins nor ends with a hyphen"
    if name.startswith("xn--"):
        # An A-label is shown as something else than what was typed, so one name can be made to look like another.
        return "a name does not begin with xn--"
    return None


def random_name(below: Below) -> str:
    """A name like `calm-otter-4821`: one of about 40 million."""
    return f"{_ADJECTIVES[below(len(_ADJECTIVES))]}-{_NOUNS[below(len(_NOUNS))]}-{1000 + below(9000)}"


_ADJECTIVES: Final = _words(
    """
    able agile amber ample azure bold brave bright brisk broad busy calm candid civil clean clear clever cosy crisp deep
    dry eager early easy even fair fast fine firm fond fresh gentle glad golden good grand green happy hardy honest humble
    jolly keen kind large late lean level light lively loyal lucky mellow merry mild modest neat noble open patient plain
    polite proud pure quick quiet rapid ready rosy round royal silent silver simple sleek smart smooth snug soft solid
    steady still strong sunny sure sweet swift tidy true upbeat vast vivid warm wide wise witty young
    """
)
_NOUNS: Final = _words(
    """
    acorn alder badger bay beacon beaver birch bison brook canyon cedar cliff cloud clover comet coral cove crane creek
    daisy dawn deer delta dolphin dove eagle elm ember falcon fern field finch fjord forest fox garden glacier grove gull
    harbor hare hawk hazel heron hill island jay juniper lagoon lake lark laurel leaf lemon lily linden lynx maple marten
    meadow moon moss oak oasis olive orchard otter owl palm panda pebble pine planet plum pond poplar puffin rain raven
    reef ridge river robin rose sage seal shore sky sparrow spring star stone summit swan thistle tiger trail tulip valley
    walnut wave whale willow wren
    """
)
