"""The errors that users can cause: each says what was wrong, with the value, and what to do next."""


class HearJepaError(ValueError):
    """Base of all errors raised for a user's input; commands print it without a traceback."""


class AudioError(HearJepaError):
    """Audio that cannot be embedded: wrong rank, type, channels, length, or values."""


class CheckpointError(HearJepaError):
    """A weights file that cannot be loaded: truncated, altered, pickled, or of an unknown version."""


class OptionError(HearJepaError):
    """An unknown model name or option, or a value outside its range."""


class TaskError(HearJepaError):
    """A HEAR-format task folder that cannot be evaluated."""


class CorpusError(HearJepaError):
    """Training audio or shards that cannot be used."""


class LockError(HearJepaError):
    """A lock that another process holds."""


def printable(text: str) -> str:
    """Text for a terminal or a log: control characters, and bytes of names that are not UTF-8, are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in str(text))
