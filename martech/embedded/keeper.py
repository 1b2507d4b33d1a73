"""The keeper: runs the embedded servers for management commands while the platform is down (see sharing).

Prints `ready`, or in one line why not, and closes its standard output; what its servers say goes to standard error.
"""

import os
import signal
import sys
import threading
from types import FrameType

from martech.embedded import options
from martech.embedded.home import Home
from martech.embedded.servers import Servers
from martech.embedded.supervisor import Supervisor
from martech.lib.errors import MartechError


def main() -> int:
    """Keep the servers until told to stop, or until no command uses them."""
    done = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        done.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    settings = options.load()
    home = Home(settings.data)
    with home.lock("owner"):
        supervisor = Supervisor(pids=home.run, environment=os.environ, cwd=options.ROOT, output=sys.stderr)
        try:
            with supervisor:
                _serve(home, Servers(home, settings), supervisor)
                threading.Thread(target=_await_users_end, args=(home, done), daemon=True).start()
                done.wait()
        except MartechError as error:
            _answer(error.message)
            return 1
        finally:
            home.forget_servers()
    return 0


def _serve(home: Home, servers: Servers, supervisor: Supervisor) -> None:
    servers.start(supervisor)
    servers.wait(supervisor)
    home.write_servers(servers.environment(), owner="command")
    _answer("ready")


def _answer(line: str) -> None:
    print(line, flush=True)
    # The command reads until the end.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())


def _await_users_end(home: Home, done: threading.Event) -> None:
    with home.lock("users"):
        done.set()


if __name__ == "__main__":
    sys.exit(main())
