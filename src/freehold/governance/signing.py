"""Signed JSON documents: the form of RFC 8785, Ed25519, and the signature inside of the document.

The layout is JSON Signature Format (JSF), which CycloneDX 1.7 takes over: the member `signature` holds the algorithm,
the public key and the value; what is signed is the whole document in canonical form without that one value. A
signature says that the holder of a key wrote these bytes. Whose key it is, the reader has to know from elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from freehold.core.errors import GovernanceError, SignatureError

ALGORITHM = "Ed25519"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """32 bytes that check signatures. Two are equal when their bytes are."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise GovernanceError(f"An Ed25519 public key has 32 bytes, this one has {len(self.raw)}.")

    @property
    def id(self) -> str:
        """The first 16 hex digits of SHA-256 of the key: to name it, not to trust it."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    @property
    def pem(self) -> str:
        """The key as a PEM file has it (SubjectPublicKeyInfo), for other tools."""
        key = Ed25519PublicKey.from_public_bytes(self.raw)
        form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        return key.public_bytes(*form).decode()

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether the holder of the key signed these bytes."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            return False
        return True

    @staticmethod
    def read(path: Path) -> PublicKey:
        """The key in a PEM file, public or private. Raises GovernanceError where there is none of Ed25519."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise GovernanceError(f"The public key {path} cannot be read: {error.strerror}.") from error
        for load in (serialization.load_pem_public_key, lambda pem: serialization.load_pem_private_key(pem, None)):
            with contextlib.suppress(ValueError, TypeError):
                key = load(data)
                public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
                if isinstance(public, Ed25519PublicKey):
                    return PublicKey(public.public_bytes_raw())
        raise GovernanceError(f"{path} holds no Ed25519 key in PEM form.")


class SigningKey:
    """A private Ed25519 key and what it signs."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @property
    def public(self) -> PublicKey:
        """The half that others need."""
        return PublicKey(self._key.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """64 bytes; the same for the same message."""
        return self._key.sign(message)

    @staticmethod
    def generate() -> SigningKey:
        """A new key from the system's randomness."""
        return SigningKey(Ed25519PrivateKey.generate())

    @staticmethod
    def load_or_create(path: Path) -> SigningKey:
        """The key in a PEM file; the file is made, with mode 0600, where there is none.

        The public half is written beside it, to `<name>.pub`. Two processes that make the file at once end with the
        same key. Raises GovernanceError for a file that others can read, or that holds something else.
        """
        with contextlib.suppress(FileExistsError):
            _write_new(path)
        try:
            if path.stat().st_mode & 0o077:
                raise GovernanceError(
                    f"The signing key {path} can be read by other users. Make it private: chmod 600 {path}"
                )
            key = serialization.load_pem_private_key(path.read_bytes(), None)
        except OSError as error:
            raise GovernanceError(f"The signing key {path} cannot be read: {error.strerror}.") from error
        except (ValueError, TypeError) as error:
            raise GovernanceError(f"{path} holds no private key in PEM form without a password.") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise GovernanceError(f"{path} holds a private key, but none of {ALGORITHM}.")
        return SigningKey(key)


def _write_new(path: Path) -> None:
    """Write a new key whole, or raise FileExistsError: a link appears at once and never replaces a file."""
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.private_bytes(*form))
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
        path.with_name(f"{path.name}.pub").write_text(SigningKey(key).public.pem)
    finally:
        draft.unlink()


def canonical(value: Any) -> bytes:
    """A JSON value in the one form of RFC 8785. Raises GovernanceError for what has none, such as NaN or 2**60."""
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, RecursionError) as error:
        raise GovernanceError(f"This value has no canonical JSON form: {error}.") from error


def signed(document: Mapping[str, Any], key: SigningKey) -> dict[str, Any]:
    """The document with a member `signature`; one that was there is replaced."""
    head = {"algorithm": ALGORITHM, "keyId": key.public.id, "publicKey": _jwk(key.public)}
    body = {name: value for name, value in document.items() if name != "signature"}
    value = key.sign(canonical(body | {"signature": head}))
    return body | {"signature": head | {"value": _text(value)}}


def signer(document: Mapping[str, Any]) -> PublicKey:
    """The key that signed a document, after its signature was checked.

    Says that nothing was changed since, not that the key is one to trust: compare it with a key you know.
    Raises SignatureError where there is no signature, one of another kind, or one that does not fit the document.
    """
    signature = document.get("signature")
    if not isinstance(signature, Mapping):
        raise SignatureError("The document has no signature.")
    if signature.get("algorithm") != ALGORITHM:
        raise SignatureError(f"The signature's algorithm is {signature.get('algorithm')!r}; only {ALGORITHM} is taken.")
    try:
        key = PublicKey(_bytes(signature["publicKey"]["x"]))
        value = _bytes(signature["value"])
    except (KeyError, TypeError, AttributeError, binascii.Error, ValueError, GovernanceError) as error:
        raise SignatureError("The signature lacks its public key or its value, or they are no base64url.") from error
    head = {name: part for name, part in signature.items() if name != "value"}
    try:
        message = canonical({**document, "signature": head})
    except GovernanceError as error:
        raise SignatureError(f"The document cannot have been signed. {error}") from error
    if not key.verifies(value, message):
        raise SignatureError("The signature does not fit the document: one of them was changed after signing.")
    return key


def _jwk(key: PublicKey) -> dict[str, str]:
    """A public key as RFC 8037 writes it."""
    return {"kty": "OKP", "crv": ALGORITHM, "x": _text(key.raw)}


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    """Base64url without padding, taken in its one right spelling only."""
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if _text(data) != text:
        raise ValueError(text)
    return data
