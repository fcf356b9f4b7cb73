"""The errors that commands print as one line: of what a user gave, and of a run that failed."""


class UserError(ValueError):
    """Bad input from outside: the message names the thing and the remedy. Commands exit with 2."""


class RunError(RuntimeError):
    """A run that failed though its input was good: the message names the cause. Commands exit with 1."""


class WriteError(RunError):
    """A file that the disk refused."""


def cause_of_failure(error: BaseException) -> str | None:
    """Return what failed a run in one line, if that was the machine and not a mistake in the code.

    PyTorch raises a bare RuntimeError where memory is refused to it, and where a worker of a DataLoader ends.
    """
    text = str(error)
    if isinstance(error, RunError):
        return text
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return "the machine has too little memory: lower data.batch_size or data.workers"
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker (pid"):
        reason = text.partition("\n")[0].rstrip(". ")
        return f"{reason}; too little memory is the usual reason: lower data.workers or data.batch_size"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or text
    return None
