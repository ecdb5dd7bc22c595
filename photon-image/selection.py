"""Which packages of a source make the image: the declaration's alternatives decided."""

from __future__ import annotations

from dataclasses import replace

from declaration import Declaration, Package
from errors import BuildError
from sources import PackageSource, ResolvedPackage


def choose(declared: Declaration, source: PackageSource, kernel: str = "") -> tuple[str, list[Package]]:
    """(version of Python, packages with exactly one name each).

    `kernel` is the name of the kernel's package, where any of its alternatives will not do. Raises BuildError.
    """
    if kernel:
        narrowed = tuple(replace(p, names=(kernel,)) if p.kernel else p for p in declared.packages)
        declared = replace(declared, packages=narrowed)
    wanted = [name for version in declared.python for p in declared.packages for name in p.for_python(version).names]
    available = source.available(sorted(set(wanted)))
    for version in declared.python:
        packages = [package.for_python(version) for package in declared.packages]
        names = [next((name for name in package.names if name in available), None) for package in packages]
        if None not in names:
            chosen = zip(packages, names, strict=True)
            return version, [Package((str(name),), p.files, p.resolve, p.kernel) for p, name in chosen]
    missing = [p.names for p in (p.for_python(declared.python[0]) for p in declared.packages)]
    lacking = [" or ".join(names) for names in missing if not available & set(names)]
    raise BuildError(f"packages not found: {', '.join(lacking)}", hint=source.remedy)


def resolve(packages: list[Package], source: PackageSource) -> list[ResolvedPackage]:
    """The packages that hold the files, pinned. Raises BuildError."""
    names: list[str] = []
    for package in packages:
        found = source.dependencies(package.names[0], package.resolve) if package.resolve else list(package.names)
        if not found:
            raise BuildError(f"{package.names[0]} depends on nothing like {package.resolve}")
        names += found
    return source.resolve(names)
