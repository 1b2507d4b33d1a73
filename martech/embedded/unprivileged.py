"""Running PostgreSQL as somebody it accepts: not root, and known to the system by name."""

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

from martech.embedded.failures import explained
from martech.lib.errors import ConfigurationError

BECOME = (
    "import os, sys; uid = int(sys.argv[1]); os.setgroups([]); os.setgid(uid); os.setuid(uid);"
    "os.execv(sys.argv[2], sys.argv[2:])"
)


class Unprivileged:
    """Says what to put before `program`, which must not run as root nor as a user without a name; lends it directories.

    As an ordinary user, and in a user namespace, there is nothing to lend. Where root may not make user
    namespaces, the program runs as `nobody`, who becomes the owner of what it works on; a directory `data`
    that another user owns already is worked on as that user.
    """

    def __init__(self, program: Path, data: Path) -> None:
        self.prefix: list[str] = []
        self._uid: int | None = None
        user = os.geteuid()
        if user != 0 and _has_name(user):
            return
        owner = data.stat().st_uid if data.exists() else user
        namespace = _namespace()
        if owner != user:
            self._become(owner, program)
        elif shutil.which(namespace[0]) and _runs([*namespace, str(program), "--version"]):
            self.prefix = namespace
        elif user == 0:
            self._become(_nobody(), program)

    @property
    def borrows(self) -> bool:
        """Whether the program works as another user, who has to reach its directories."""
        return self._uid is not None

    def _become(self, uid: int, program: Path) -> None:
        prefix = [sys.executable, "-I", "-S", "-c", BECOME, str(uid)]
        if not _runs([*prefix, str(program), "--version"]):
            raise ConfigurationError(
                f"PostgreSQL does not run as root, this machine refuses root a user namespace, and user {uid} cannot "
                f"run {program}: start as another user, move the checkout to where everybody may read it, or set "
                f"DATABASE_URL."
            )
        self.prefix, self._uid = prefix, uid

    def lend(self, directory: Path) -> None:
        """Make the directory, with what is in it, the program's own where it works as somebody else."""
        if self._uid is None:
            return
        with explained(directory):
            if directory.stat().st_uid != self._uid:
                for path in [directory, *directory.rglob("*")]:
                    os.chown(path, self._uid, -1, follow_symlinks=False)
        if not _runs([*self.prefix, shutil.which("ls") or "/bin/ls", str(directory)]):
            raise ConfigurationError(
                f"PostgreSQL does not run as root, and user {self._uid} cannot reach {directory}: choose a directory "
                f"that everybody may pass through with MARTECH_DATA=…, start as another user, or set DATABASE_URL."
            )


def _namespace() -> list[str]:
    """Return what runs a program in a user namespace where we are nobody: its files stay ours."""
    return ["unshare", "--user", f"--map-user={_nobody()}", f"--map-group={_nobody()}"]


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _nobody() -> int:
    try:
        return pwd.getpwnam("nobody").pw_uid
    except KeyError:
        return 65534


def _runs(command: list[str]) -> bool:
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
