"""Serial ports of VMs over the network: the virtual serial port concentrator that ESXi hosts dial.

A VM's second serial port is a network port with `proxyURI`: its ESXi host connects to the concentrator here, says which
VM it speaks for, and then carries the port's bytes. From bottom to top, each knowing only what is below:

    telnet.py        telnet itself, sans-IO: options, doubled IAC, sub-negotiations
    extension.py     the messages of VMware's telnet option 232, their limits and who sends them
    conversation.py  one end of such a connection, sans-IO: which message may come when; both roles
    migration.py     the secrets by which a vMotion's destination is known
    stream.py        the user's end: an asyncio transport behind StreamReader and StreamWriter
    carrier.py       a connection from an ESXi host, as the port sees it
    port.py          one VM's port: which of its connections speaks now, and who listens
    admission.py     which VMs may dial in, by which tokens
    connection.py    one TCP connection from an ESXi host: for whom it speaks
    entrance.py      all connections: counted, TLS
    concentrator.py  the server: who is admitted, `connect`

Facts: VMware, "Using a Proxy with Virtual Serial Ports" (vSphere Web Services SDK); where it is silent, what the
concentrators in the field (VMware's own, github.com/vmware/vspc; vSPC.py, VIC, OpenStack's) are known to do. The
comments say which.
"""

from portlayer.drivers.vsphere.serial.concentrator import Concentrator

__all__ = ["Concentrator"]
