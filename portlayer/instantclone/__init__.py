"""Instant clone, whatever the hypervisor: templates that are made when they are wanted, and clones that wait in a pool.

A driver can boot a guest, freeze it and clone it (portlayer.drivers.base.Cloning). What is to be cloned, and when, is
decided here.
"""

from portlayer.instantclone.clones import InstantClones, Taken

__all__ = ["InstantClones", "Taken"]
