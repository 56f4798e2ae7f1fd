"""Every error Freehold raises, as one tree.

    FreeholdError
    ├── ArgumentError (ValueError)        an operator or a function got a value it cannot take
    ├── ConfigError (ValueError)          a configuration names something unknown or unsupported
    ├── LoadError                         a checkpoint cannot be used
    │   ├── CorruptFileError              the file's bytes contradict each other or its format
    │   └── TensorMismatchError           tensors are missing, unknown, misshapen or mistyped
    ├── ModelNotFoundError                no model by that name, path or id
    ├── DownloadError                     fetching a model failed, or its digest is wrong
    ├── TokenizerError                    a tokenizer cannot be built or a text not encoded
    ├── TemplateError                     a chat template failed or refused its messages
    ├── RequestError                      a request cannot be served as asked
    │   ├── UnsupportedFieldError         it uses a field that is not implemented
    │   ├── ContextLengthError            it is longer than the model's context
    │   ├── CapacityError                 it can never fit into the block cache
    │   └── BusyError                     the queue is full; it may be served later
    │       └── AllowanceError            the client's own allowance is used up
    ├── StoreError                        the block store cannot do what it was asked
    │   ├── StoreLockedError              another process uses its directory
    │   ├── LostBlockError                a block was evicted after it had been found
    │   │   └── DamagedBlockError         its bytes are not those that were stored
    │   └── LostBlocksError               blocks that a computation needs can no longer be read
    ├── GovernanceError                   a disclosure, policy, lock, ledger or price cannot be made or trusted
    │   └── SignatureError                a signature is missing or does not fit what it signs
    └── KernelError                       the native library is missing, or refused its input

A message names the thing, its value and the way out. Asserts are only for our own mistakes.
"""

from __future__ import annotations

from collections.abc import Sequence


class FreeholdError(Exception):
    """The base of every error that Freehold raises on purpose."""


class ArgumentError(FreeholdError, ValueError):
    """A function got a value that it cannot take; the message names the argument and its value."""


class ConfigError(FreeholdError, ValueError):
    """A configuration names something unknown, or something that changes the mathematics and is unsupported."""


class LoadError(FreeholdError):
    """A checkpoint cannot be used."""


class CorruptFileError(LoadError):
    """The bytes of a file contradict each other or the file's format."""


class TensorMismatchError(LoadError):
    """The tensors of a checkpoint are not those the model needs.

    All problems are collected before raising, so that one run shows them all.
    """

    def __init__(
        self,
        where: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        misshapen: Sequence[str] = (),
        mistyped: Sequence[str] = (),
    ) -> None:
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.misshapen = tuple(misshapen)
        self.mistyped = tuple(mistyped)
        parts = [f"{where}: its tensors do not fit the model that its configuration describes."]
        for title, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("wrong shape", self.misshapen),
            ("wrong type", self.mistyped),
        ):
            if names:
                shown = list(names[:20])
                if len(names) > len(shown):
                    shown.append(f"... and {len(names) - len(shown)} more")
                parts.append(f"  {title} ({len(names)}):\n    " + "\n    ".join(shown))
        super().__init__("\n".join(parts))


class ModelNotFoundError(FreeholdError):
    """No model by that name, path or id is here."""


class DownloadError(FreeholdError):
    """Fetching a model failed, or what arrived has the wrong digest."""


class TokenizerError(FreeholdError):
    """A tokenizer cannot be built, or cannot encode a text."""


class TemplateError(FreeholdError):
    """A chat template failed, or refused the messages it was given."""


class RequestError(FreeholdError):
    """A request cannot be served as asked. `field` names the offending field, where there is one."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        self.field = field
        super().__init__(message)


class UnsupportedFieldError(RequestError):
    """A request uses a field that is not implemented."""


class ContextLengthError(RequestError):
    """A request is longer than the model's context."""


class CapacityError(RequestError):
    """A request can never fit into the block cache."""


class BusyError(RequestError):
    """The queue is full; the same request may be served in about `retry_seconds`."""

    def __init__(self, message: str, *, retry_seconds: float = 1.0) -> None:
        self.retry_seconds = retry_seconds
        super().__init__(message)


class AllowanceError(BusyError):
    """The client's own allowance is used up. code: of OpenAI's errors, for which of them."""

    def __init__(self, message: str, *, code: str, retry_seconds: float) -> None:
        self.code = code
        super().__init__(message, retry_seconds=retry_seconds)


class StoreError(FreeholdError):
    """The block store cannot do what it was asked."""


class StoreLockedError(StoreError):
    """Another process uses the block store's directory."""


class LostBlockError(StoreError):
    """A stored block is no longer there; compute it again."""


class DamagedBlockError(LostBlockError):
    """The bytes of a stored block are not those that were stored; it has been removed."""


class LostBlocksError(StoreError):
    """Blocks that a computation needs can no longer be read; `slots` are theirs. They are computed again."""

    def __init__(self, slots: Sequence[int]) -> None:
        self.slots = tuple(slots)
        super().__init__(f"{len(self.slots)} stored blocks can no longer be read")


class GovernanceError(FreeholdError):
    """A disclosure, a policy, an egress lock, a ledger or a price cannot be made, read or trusted."""


class SignatureError(GovernanceError):
    """A signature is missing, of another kind, or does not fit what it signs."""


class KernelError(FreeholdError):
    """The native library is missing, or refused its input."""
