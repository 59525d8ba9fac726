"""Files that are written whole, or not at all."""

import os
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend


class WholeFileBackend(LocalBackend):
    """MMEngine's backend for local files, whose files appear, or replace others, only once complete."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write ``obj``; an error, or the end of the process, leaves what was at ``filepath``."""
        filepath = Path(filepath)
        part = filepath.with_name(f'.{filepath.name}.part')
        try:
            super().put(obj, part)
            with part.open('rb') as file:
                # Else a power failure may leave the new name with no content.
                os.fsync(file.fileno())
            part.replace(filepath)
        except OSError as error:
            part.unlink(missing_ok=True)
            # A write that fails on a full disk names no file.
            error.filename = str(filepath)
            raise


register_backend('whole_file', WholeFileBackend, force=True)
