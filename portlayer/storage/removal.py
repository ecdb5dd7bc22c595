"""What `docker rmi` means: which names go, whether the image goes, and when it is refused, in Docker's words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from portlayer.errors import ConflictError
from portlayer.storage.catalogue import Catalogue
from portlayer.storage.images import StoredImage
from portlayer.storage.references import Reference, short_id

# Containers (their ids) made from the image with this id.
UsedBy = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class RemovalPlan:
    """Names to take off an image, and whether it goes as well."""

    image: StoredImage
    untagged: tuple[Reference, ...]
    deletes: bool


def plan_removal(catalogue: Catalogue, name: str, *, force: bool, used_by: UsedBy) -> RemovalPlan:
    """What removing `name` does; NotFoundError, InvalidArgumentError or ConflictError when it cannot be done.

    An image that a container uses never goes, force or not: the container's VM has its disk.
    """
    image = catalogue.find(name)
    users = used_by(image.id)
    named = catalogue.named(image, name)
    if named:
        return _by_name(image, named, name, force=force, users=users)
    if not force and len(image.references) > 1:
        raise _refusal(image, "must be forced", "image is referenced in multiple repositories")
    if users and (not force or not image.references):
        manner = "cannot be forced" if force else "must be forced"
        raise _refusal(image, manner, f"image is being used by container {short_id(users[0])}")
    return RemovalPlan(image, image.references, deletes=not users)


def _by_name(
    image: StoredImage, named: tuple[Reference, ...], name: str, *, force: bool, users: Sequence[str]
) -> RemovalPlan:
    last = set(named) == set(image.references)
    if last and users and not force:
        raise ConflictError(
            f'conflict: unable to remove repository reference "{name}" (must force) - '
            f"container {short_id(users[0])} is using its referenced image {short_id(image.id)}"
        )
    return RemovalPlan(image, named, deletes=last and not users)


def _refusal(image: StoredImage, manner: str, reason: str) -> ConflictError:
    return ConflictError(f"conflict: unable to delete {short_id(image.id)} ({manner}) - {reason}")
