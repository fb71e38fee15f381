"""Every error Lhydra raises on purpose.

LhydraError
├── InvalidRequest       a request that can never succeed: names the field
├── Unsupported          a request this version does not answer yet
├── ConfigError          a configuration key or value that is not known or not usable
│   └── UsageError       words that a command lacks, or that exclude each other
├── DataError            a source or dataset that is missing, unreadable or wrong
│   └── NothingNew       a source whose plays are all in the dataset already
├── FeatureError         columns that do not fit the fitted features
├── ModelError           a model folder that is not one, or whose parts disagree
├── BundleError          a bundle that cannot be served
│   ├── BundleMissing    no such bundle, or a store without CURRENT
│   ├── BundleCorrupt    a file differs from what the manifest promises
│   ├── BundleMismatch   parts of the bundle do not belong together
│   └── BundleRefused    a sound bundle that its gate kept back, or that lacks the signature asked for
├── StoreLocked          somebody else is building in the store
├── UserStoreError       the user store cannot be read or written
├── MissingExtra         an optional part is not installed
├── PortInUse            the address to listen on is taken
├── NotReady             nothing to serve with yet
├── Unauthenticated      a caller without a token that is known
├── PermissionDenied     a caller whose token lacks a right
├── Overloaded           too much work in flight, or too many requests of one caller: refused at once
└── DeadlineExceeded     the caller's deadline passed before the work was done

A message is one line that names the thing, what was found and what was expected; `complain` builds it.
The core knows no gRPC: the server has the one table from error to status code.
"""


class LhydraError(Exception):
    """Base of all errors meant for people; its text is one line."""


class InvalidRequest(LhydraError):
    """A request that can never succeed.

    Args:
        field: the request field at fault.
        found: its value.
        expected: what would be right.
    """

    def __init__(self, field: str, found: object, expected: str) -> None:
        super().__init__(complain(field, found, expected))
        self.field = field


class Unsupported(LhydraError):
    """A valid request that this version does not answer yet."""


class ConfigError(LhydraError):
    """A configuration key or value that is not known or not usable."""


class UsageError(ConfigError):
    """Words that a command lacks, or that exclude each other; the command ends as after any wrong usage."""


class DataError(LhydraError):
    """A source or dataset that is missing, unreadable or wrong."""


class NothingNew(DataError):
    """All plays of a source are in the dataset already."""


class FeatureError(LhydraError):
    """Columns that do not fit the fitted features."""


class ModelError(LhydraError):
    """A model folder that is not one, or whose parts disagree."""


class BundleError(LhydraError):
    """A bundle that cannot be served."""


class BundleMissing(BundleError):
    """No such bundle, or a store without CURRENT."""


class BundleCorrupt(BundleError):
    """A file of the bundle differs from what its manifest promises."""


class BundleMismatch(BundleError):
    """Parts of the bundle do not belong together, or its format is unknown."""


class BundleRefused(BundleError):
    """A sound bundle that its gate kept from being published, or that lacks the signature asked for."""


class StoreLocked(LhydraError):
    """Somebody else is building in the store."""


class UserStoreError(LhydraError):
    """The user store cannot be read or written."""


class MissingExtra(LhydraError):
    """An optional part of Lhydra is not installed.

    Args:
        extra: of the package, which brings it.
        module: that is missing.
    """

    def __init__(self, extra: str, module: str) -> None:
        super().__init__(f"this command needs {module}; install with: pip install 'lhydra[{extra}]'")
        self.extra = extra


class PortInUse(LhydraError):
    """The address to listen on is taken."""


class NotReady(LhydraError):
    """There is nothing to serve with yet."""


class Unauthenticated(LhydraError):
    """The caller shows no token that is known."""


class PermissionDenied(LhydraError):
    """The caller's token lacks the right that the call needs."""


class Overloaded(LhydraError):
    """Too much work is in flight, or a caller asks too often; refused at once.

    Args:
        message: one line.
        retry_after_ms: when to try again.
    """

    def __init__(self, message: str, retry_after_ms: int = 1) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class DeadlineExceeded(LhydraError):
    """The caller's deadline passed before the work was done."""


def printable(text: str) -> str:
    """Returns a text as one line that a terminal can show.

    Args:
        text: of any kind, from anybody.

    Returns:
        The text, control characters escaped.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str, most: int) -> str:
    """Returns a text as one printable line of bounded length.

    Args:
        text: of any kind, from anybody.
        most: characters that stay at most.

    Returns:
        The line, control characters escaped.
    """
    text = text if len(text) <= most else f"{text[: most - 3]}..."
    line = printable(text)
    return line if len(line) <= most else f"{line[: most - 3]}..."  # escapes are longer than what they stand for


def quoted(name: str) -> str:
    """Returns a name that a caller chose as an error shows it.

    Args:
        name: a text of any length.

    Returns:
        Its first 60 characters, in quotes.
    """
    return repr(name if len(name) <= 60 else f"{name[:57]}...")


def complain(thing: object, found: object, expected: str) -> str:
    """Returns the one-line message `thing: found …, expected …`.

    Args:
        thing: what is wrong: a path, a field, a flag.
        found: its value; cut to 120 characters.
        expected: what would be right.

    Returns:
        The line, control characters escaped.
    """
    text = found if isinstance(found, str) else repr(found)
    if len(text) > 120:
        text = f"{text[:117]}..."
    return printable(f"{thing}: found {text}, expected {expected}")
