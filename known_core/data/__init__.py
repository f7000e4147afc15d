"""Data sets: files in any common form to rows with the columns a task reads, inspected without unpacking."""

from known_core.data.files import DataFiles, Role, Split
from known_core.data.reading import inspect_data, read_data, sample_of

__all__ = ["DataFiles", "Role", "Split", "inspect_data", "read_data", "sample_of"]
