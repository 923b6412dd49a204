"""How many descriptors this process may have open. For the program: a library leaves its process as it is."""

from __future__ import annotations

import logging

log = logging.getLogger("netbore.edge")


def raise_limit(wanted: int) -> int | None:
    """Raise the soft limit to the hard one, and log when fewer than `wanted` connections fit. Returns the limit, None where
    there is none."""
    try:
        import resource  # noqa: PLC0415 - POSIX only
    except ImportError:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError) as error:
            log.warning("the limit of open files stays at %d: %s", soft, error)
    if soft == resource.RLIM_INFINITY:
        return None
    if soft < wanted:
        log.warning("at most %d connections can be open, though the Edge would take %d: raise RLIMIT_NOFILE", soft, wanted)
    return soft
