"""Errors of talking to an agent.

AgentError (UnavailableError)
|- AgentUnavailableError   no answer in time, or the client was closed
|- AgentRpcError           the agent refused the call
`- AgentProtocolError      the agent broke its promises: its VM is not to be trusted any more
"""

from __future__ import annotations

from portlayer.errors import UnavailableError

# The google.rpc codes that agents answer with and hosts act upon.
NOT_FOUND, RESOURCE_EXHAUSTED, FAILED_PRECONDITION, OUT_OF_RANGE = 5, 8, 9, 11


class AgentError(UnavailableError):
    """Root; never raised itself."""


class AgentUnavailableError(AgentError):
    """No answer in time, or the client was closed meanwhile."""


class AgentRpcError(AgentError):
    """The agent refused the call; `rpc_code` is a google.rpc code."""

    def __init__(self, method: str, rpc_code: int, message: str) -> None:
        super().__init__(f"the agent refused {method}: {message or f'code {rpc_code}'}")
        self.rpc_code = rpc_code
        self.message = message


class AgentProtocolError(AgentError):
    """The guest sent what no honest agent sends."""
