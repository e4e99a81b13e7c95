"""The errors that a user can mend. Everything else is a defect and keeps its traceback."""

from __future__ import annotations


class UserError(Exception):
    """Bad input, configuration or environment. The message names the place, the reason and the remedy."""


class ConfigError(UserError):
    """A configuration that cannot run: names the field, the reason and a value that would work."""


class DataError(UserError):
    """A file or a record that cannot be used: names the file, the record and the remedy."""
