"""Where a gateway's own Unix sockets are: the kernel takes only short paths for them."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Final

from trimtab.errors import StoreError

_LONGEST_FOLDER: Final = 70  # bytes; the kernel takes 107 of a socket's path


def socket_folder(run: Path) -> Path:
    """The run folder or, where its path is too long for a socket in it, a private one in the temporary folder.

    Side effect: makes the private one. Raises StoreError if somebody else has it.
    """
    if len(os.fsencode(run)) <= _LONGEST_FOLDER:
        return run
    mark = hashlib.sha256(os.fsencode(run)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"trimtab-{os.getuid()}-{mark}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise StoreError(f"{folder} belongs to somebody else; set TMPDIR to a folder of your own")
    return folder
