"""Views: lists of objects that vSphere keeps for a session, which the property collector goes through."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl

from portlayer.errors import PortLayerError

if TYPE_CHECKING:
    from portlayer.drivers.vsphere.session import Session

_Collector = vmodl.query.PropertyCollector


async def everything_below(session: Session, container: Any, kinds: Sequence[type], what: str) -> Any:
    """A view of all objects of these kinds, at any depth, as they come and go."""
    create = session.content.viewManager.CreateContainerView
    return await session.call(create, container, list(kinds), True, what=what)


def filter_of(paths: Mapping[type, Sequence[str]], *views: Any) -> Any:
    """A FilterSpec for properties of the objects in views, by their kinds."""
    return _Collector.FilterSpec(
        propSet=[_Collector.PropertySpec(type=kind, pathSet=list(wanted)) for kind, wanted in paths.items()],
        objectSet=[
            _Collector.ObjectSpec(
                obj=view,
                skip=True,
                selectSet=[_Collector.TraversalSpec(type=type(view), path="view", skip=False)],
            )
            for view in views
        ],
    )


async def forget(session: Session, view: vim.view.View | None) -> None:
    """Ends a view; the server keeps it as long as the session otherwise. No effect for None."""
    if view is not None:
        with contextlib.suppress(PortLayerError):  # it went with its session
            await session.call(view.DestroyView, what="ending a view")
