"""The CDNOW purchases of 1997–98: all purchases, until June 1998, of people who first bought in early 1997.

The file lies in the wheel `lifetimes`, which is downloaded and read as an archive: neither it nor what it
depends on is installed.
"""

import subprocess
import sys
import zipfile
from collections.abc import Iterable
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from martech.lib.errors import ConfigurationError, PermanentError

REQUIREMENT = "lifetimes==0.11.3"
SHA256 = "261e3dc89977c2b60767ca6728aaa29d429de0c814635070a749c36555895da8"
WHEEL = "[Ll]ifetimes-0.11.3-*.whl"
FILE = "lifetimes/datasets/CDNOW_master.txt"
DOWNLOAD_SECONDS = 120


class Purchase(NamedTuple):
    """A line of the file. `number` counts the customer's purchases from 1, in the order of the file."""

    customer: str
    number: int
    day: date
    units: int
    revenue: Decimal


def fetch(directory: Path) -> Path:
    """Return the wheel in `directory`, downloaded if it is not there; ConfigurationError where that fails."""
    directory.mkdir(parents=True, exist_ok=True)
    wheel = _found(directory)
    if wheel is None:
        why = _download(directory)
        wheel = _found(directory)
    if wheel is None:
        raise ConfigurationError(
            f"The purchases could not be downloaded ({why}): try again, or put the wheel of {REQUIREMENT} into "
            f"{directory}."
        )
    if sha256(wheel.read_bytes()).hexdigest() != SHA256:
        raise ConfigurationError(f"{wheel} is not the published {REQUIREMENT}: remove it, and it is downloaded again.")
    return wheel


def _found(directory: Path) -> Path | None:
    return next(iter(sorted(directory.glob(WHEEL))), None)


def _download(directory: Path) -> str:
    """Have pip put the wheel into `directory`; return why it did not, if so."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--only-binary=:all:", "--dest", str(directory), REQUIREMENT,
    ]  # fmt: skip
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
    except subprocess.TimeoutExpired:
        return f"pip took more than {DOWNLOAD_SECONDS} s"
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"pip ended with exit status {done.returncode}"


def read(wheel: Path) -> list[Purchase]:
    """Return all purchases of the file in the wheel, in its order: by customer, then by day."""
    with zipfile.ZipFile(wheel) as archive:
        return parse(archive.read(FILE).decode("ascii").splitlines())


def parse(lines: Iterable[str]) -> list[Purchase]:
    """Return the purchases that lines say: a heading, then customer, date, units and dollars between spaces."""
    purchases: list[Purchase] = []
    numbers: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if number == 1 or not line.strip():
            continue
        try:
            customer, day, units, revenue = line.split()
            numbers[customer] = numbers.get(customer, 0) + 1
            bought = datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC).date()
            purchases.append(Purchase(customer, numbers[customer], bought, int(units), Decimal(revenue)))
        except (ValueError, InvalidOperation) as error:
            raise PermanentError(
                f"Line {number} of {FILE} is no purchase: {line.strip()!r}. The wheel is another one; remove it."
            ) from error
    return purchases
