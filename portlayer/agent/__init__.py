"""The host's end of the guest channel: calls to the agent in a container VM that survive a broken line."""

from portlayer.agent.client import AgentClient
from portlayer.agent.errors import AgentError, AgentProtocolError, AgentRpcError, AgentUnavailableError
from portlayer.agent.follow import Follow

__all__ = ["AgentClient", "AgentError", "AgentProtocolError", "AgentRpcError", "AgentUnavailableError", "Follow"]
