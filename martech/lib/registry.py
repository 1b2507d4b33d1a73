"""A family's registry: one row an adapter (name → dotted path), imported at first use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from martech.lib.errors import ConfigurationError


class Registry:
    """Names an adapter family's members.

    `rows` are the built-in adapters, `"package.module:Name"` by name. Other packages add rows
    by an entry point of the group `martech.<family>`, whose name is the adapter's.
    """

    def __init__(self, family: str, rows: Mapping[str, str]) -> None:
        self.family = family
        self._builtin = dict(rows)

    @cached_property
    def rows(self) -> dict[str, str]:
        """All rows, those of other packages included; a built-in name cannot be taken over."""
        found = {point.name: point.value for point in entry_points(group=f"martech.{self.family}")}
        return found | self._builtin

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.rows))

    def load(self, name: str) -> Any:
        """Import the adapter `name`; ConfigurationError lists the known names, or the missing extra."""
        if name not in self.rows:
            known = ", ".join(self) or "none"
            raise ConfigurationError(f"There is no {self.family} adapter '{name}'. Known: {known}.")
        module, _, attribute = self.rows[name].partition(":")
        try:
            return getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"The {self.family} adapter '{name}' needs the package '{error.name}': pip install 'martech[{name}]'."
            ) from error
