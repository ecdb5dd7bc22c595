"""All endpoints, in the order in which they are tried."""

from __future__ import annotations

from importlib.metadata import version

from personality.api import (
    attach,
    containers,
    events,
    execs,
    image_archives,
    images,
    networks,
    stats,
    system,
    unserved,
    volumes,
)
from personality.http.router import Router

# What the Server header says.
PRODUCT = f"VCH/{version('virtual-container-host')} (linux)"


def build_router() -> Router:
    """The router of the whole API. Exact paths go before those with a name in them; what is not served comes last."""
    groups = (
        system,
        events,
        image_archives,
        images,
        containers,
        attach,
        execs,
        stats,
        networks,
        volumes,
        unserved,
    )
    return Router(route for group in groups for route in group.ROUTES)
