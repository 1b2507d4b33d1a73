"""The one command that starts the platform: servers from wheels and the processes, under one supervisor."""

from martech.embedded.sharing import servers_for

__all__ = ["servers_for"]
