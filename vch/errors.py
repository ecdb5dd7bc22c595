"""Errors of the command line.

VchError                what the user reads; exit code 1
|- ConfigurationError   an option or a path makes no sense; exit code 2
|- AlreadyUpError       another VCH holds this state directory
`- PartError            the port layer or the personality does not come up, or died
"""

from __future__ import annotations

import click


class VchError(click.ClickException):
    """Root; click prints the message and exits with the code."""

    exit_code = 1


class ConfigurationError(VchError):
    """The request cannot be meant so."""

    exit_code = 2


class AlreadyUpError(VchError):
    """A VCH already serves this state directory."""


class PartError(VchError):
    """The port layer or the personality does not come up, or it ended by itself."""
