"""The vSphere driver: container VMs on a vCenter or an ESXi host, through pyvmomi."""
