"""What the port layer would refuse of the options is refused here, in its own words: before anybody is asked for a
password, and before anything is started.
"""

from __future__ import annotations

import click

from portlayer.config import parse_size
from portlayer.drivers.vsphere.settings import VsphereSettings, from_options
from portlayer.errors import PortLayerError
from vch.errors import ConfigurationError
from vch.vsphere_options import Vsphere


def size(_context: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    """The callback of an option: what was said, if it is a size."""
    try:
        if text is not None:
            parse_size(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return text


def vsphere_settings(vsphere: Vsphere, password: str = "") -> VsphereSettings:
    """As the port layer understands them. ConfigurationError for what makes no sense."""
    try:
        return from_options(vsphere.options(), password)
    except PortLayerError as error:
        raise ConfigurationError(str(error)) from error
