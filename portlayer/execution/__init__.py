"""Life of containers and of processes in them: a state machine for each container, on a machine of a driver."""

from portlayer.execution.container import Container
from portlayer.execution.exec_process import ExecProcess
from portlayer.execution.manager import Manager

__all__ = ["Container", "ExecProcess", "Manager"]
