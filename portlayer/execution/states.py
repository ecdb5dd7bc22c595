"""The life of a container as one table.

CREATED --start--> STARTING --launched--> RUNNING <--pause/resume--> PAUSED
   ^                 | |  ^                  |                          |
   +---never ran-----+ |  +-- RESTARTING     +--stop--> STOPPING        |
                       v        ^  |         v             v            |
DEAD <-failed- REMOVING <-- EXITED <---------+-------exited-------------+

"""

from __future__ import annotations

from enum import Enum, auto

from portlayer.errors import ConflictError
from portlayer.v1 import types_pb2

Status = types_pb2.ContainerStatus
CREATED = types_pb2.CONTAINER_STATUS_CREATED
STARTING = types_pb2.CONTAINER_STATUS_STARTING
RUNNING = types_pb2.CONTAINER_STATUS_RUNNING
PAUSED = types_pb2.CONTAINER_STATUS_PAUSED
STOPPING = types_pb2.CONTAINER_STATUS_STOPPING
EXITED = types_pb2.CONTAINER_STATUS_EXITED
REMOVING = types_pb2.CONTAINER_STATUS_REMOVING
DEAD = types_pb2.CONTAINER_STATUS_DEAD
RESTARTING = types_pb2.CONTAINER_STATUS_RESTARTING

# A process of the container exists.
LIVE = frozenset((RUNNING, PAUSED, STOPPING))
# As LIVE, or about to be.
ACTIVE = LIVE | {STARTING, RESTARTING}


class Action(Enum):
    """What can happen to a container."""

    START = auto()
    LAUNCHED = auto()
    LAUNCH_FAILED = auto()
    FIRST_LAUNCH_FAILED = auto()
    PAUSE = auto()
    RESUME = auto()
    STOP = auto()
    EXIT = auto()
    AWAIT_RESTART = auto()
    GIVE_UP = auto()
    REMOVE = auto()
    REMOVE_FAILED = auto()


TRANSITIONS: dict[tuple[types_pb2.ContainerStatus.ValueType, Action], types_pb2.ContainerStatus.ValueType] = {
    (CREATED, Action.START): STARTING,
    (CREATED, Action.REMOVE): REMOVING,
    (STARTING, Action.LAUNCHED): RUNNING,
    (STARTING, Action.LAUNCH_FAILED): EXITED,
    (STARTING, Action.FIRST_LAUNCH_FAILED): CREATED,
    (RUNNING, Action.PAUSE): PAUSED,
    (RUNNING, Action.STOP): STOPPING,
    (RUNNING, Action.EXIT): EXITED,
    (PAUSED, Action.RESUME): RUNNING,
    (PAUSED, Action.EXIT): EXITED,
    (STOPPING, Action.STOP): STOPPING,
    (STOPPING, Action.EXIT): EXITED,
    (EXITED, Action.START): STARTING,
    (EXITED, Action.REMOVE): REMOVING,
    (EXITED, Action.AWAIT_RESTART): RESTARTING,
    (RESTARTING, Action.START): STARTING,
    (RESTARTING, Action.GIVE_UP): EXITED,
    (REMOVING, Action.REMOVE): REMOVING,
    (REMOVING, Action.REMOVE_FAILED): DEAD,
    (DEAD, Action.REMOVE): REMOVING,
}


def move(status: types_pb2.ContainerStatus.ValueType, action: Action) -> types_pb2.ContainerStatus.ValueType:
    """The status after the action; ConflictError when it is not allowed."""
    after = TRANSITIONS.get((status, action))
    if after is None:
        raise ConflictError(f"{action.name.lower().replace('_', ' ')} is not possible: the container is {word(status)}")
    return after


def word(status: types_pb2.ContainerStatus.ValueType) -> str:
    """A status for people."""
    return Status.Name(status).removeprefix("CONTAINER_STATUS_").lower()
