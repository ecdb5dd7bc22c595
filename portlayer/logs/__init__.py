"""Container logs on disk: what a container wrote, with stream and time, in files of bounded size and number."""

from portlayer.logs.log import Log, Position
from portlayer.logs.reader import Chunk, LogQuery, read

__all__ = ["Chunk", "Log", "LogQuery", "Position", "read"]
