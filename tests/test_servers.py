"""What killed test sessions leave in memory is removed, and what belongs to living ones is not, wherever they are."""

import os
import subprocess
import sys
import time

from tests import servers

HOLDING = """
import fcntl, os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(descriptor, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_only_what_nobody_holds_is_removed(tmp_path):
    # No process has such a number: as where the pids are those of another container.
    homes = [tmp_path / f"mt-99999999{number}-x" for number in range(3)]
    long_ago = time.time() - 2 * servers.BEGINNING_SECONDS
    for home in homes:
        home.mkdir()
        (home / "data").write_text("x")
        os.utime(home, (long_ago, long_ago))
    held, dead, beginning = homes
    os.utime(beginning)
    command = [sys.executable, "-c", HOLDING, str(held)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holding:
        assert holding.stdout.readline() == "held\n"
        servers.forget_the_dead(tmp_path)
        assert [home.exists() for home in (held, dead, beginning)] == [True, False, True]
        holding.kill()
    servers.forget_the_dead(tmp_path)
    assert [home.exists() for home in (held, dead, beginning)] == [False, False, True]
