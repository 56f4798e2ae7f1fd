"""A certificate and its key, checked as a client would check them before anything slow happens."""

from __future__ import annotations

import logging
import ssl
import time
from pathlib import Path

from freehold.core.errors import ConfigError

logger = logging.getLogger("freehold.server")

_WARNING_DAYS = 14
_NOT_YET_VALID, _EXPIRED = 9, 10  # OpenSSL's X509_V_ERR_*


def tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    """What a server with these PEM files needs; TLS 1.2 or newer.

    Raises ConfigError for files that are missing, unreadable, no PEM or not a pair, for a key with a passphrase,
    and for a certificate that has expired or is not valid yet. Warns when it ends within two weeks.
    """
    for what, path in (("certificate", cert), ("key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"the TLS {what} {path} cannot be read: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key, password=_no_passphrase)
    except _PassphraseError:
        raise ConfigError(
            f"the TLS key {key} has a passphrase, which nobody can type for a server; give a key without one"
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"the TLS key {key} does not belong to the certificate {cert}") from error
        raise ConfigError(f"the TLS certificate {cert} and key {key} are not usable PEM files: {error}") from error
    _check_dates(context, cert)
    return context


class _PassphraseError(Exception):
    pass


def _no_passphrase() -> str:
    raise _PassphraseError


def _check_dates(context: ssl.SSLContext, cert: Path) -> None:
    """Let a client of our own, which trusts this very certificate, connect in memory and say what is wrong."""
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.load_verify_locations(cert)
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    try:
        for _ in range(10):
            done = [_step(client), _step(server)]
            if all(done):
                break
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == _EXPIRED:
            raise ConfigError(f"the TLS certificate {cert} has expired; renew it") from error
        if error.verify_code == _NOT_YET_VALID:
            raise ConfigError(
                f"the TLS certificate {cert} is not valid yet; check it and this machine's clock"
            ) from error
        logger.warning("clients may refuse the TLS certificate %s: %s", cert, error.verify_message)
        return
    end = (client.getpeercert() or {}).get("notAfter")
    days = (ssl.cert_time_to_seconds(str(end)) - time.time()) / 86400
    if days < _WARNING_DAYS:
        logger.warning("the TLS certificate %s expires in %.1f days", cert, days)


def _step(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
