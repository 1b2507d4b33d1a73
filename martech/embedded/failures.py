"""What the machine refuses, said in one line: the cause and the next step."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from martech.lib.errors import ConfigurationError

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_SPACE = "No space left on device"


def disk_full(path: Path) -> ConfigurationError:
    """Say that the disk which holds `path` has no room."""
    return ConfigurationError(
        f"The disk that holds {path} is full: free some space, or choose another directory with MARTECH_DATA=…."
    )


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the system says about the data directory `path` into a ConfigurationError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(path) from error
        if error.errno in REFUSED:
            why = f"cannot be written ({error.strerror})"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            why = "is not a directory"
        else:
            why = f"cannot be used ({error})"
        raise ConfigurationError(
            f"The data directory {path} {why}: correct it, or choose another one with MARTECH_DATA=…."
        ) from error
