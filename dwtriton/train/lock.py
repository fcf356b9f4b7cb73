"""One run in one folder: a lock that ends with the process that holds it, however that ends."""

import errno
import fcntl
import os
import socket
from pathlib import Path

from dwtriton.core.errors import UserError
from dwtriton.core.files import explain_writes

LOCK_FILE = "run.lock"  # stays in the folder, and means nothing once its process has ended
HELD = (errno.EACCES, errno.EAGAIN)


class RunLock:
    """The lock of a run folder. It belongs to this process alone: workers forked from it do not keep it."""

    def __init__(self, folder: Path) -> None:
        """Take the lock. Raises UserError, which names the process, if another one has it.

        A disk that knows no locks grants it to everybody.
        """
        path = folder / LOCK_FILE
        with explain_writes(path):
            self._file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                self._file.seek(0)
                holder = self._file.read() or "another process"
                self._file.close()
                raise UserError(
                    f"{folder} is in use by {holder}: wait for it to end, or choose another --out"
                ) from None
        with explain_writes(path):
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()

    def release(self) -> None:
        self._file.close()
