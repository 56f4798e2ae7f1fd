"""The port of a server, and what has to be known before anything slow: it imports neither the server nor a model."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import resource
import socket

from freehold.core.errors import ConfigError
from freehold.server.operation.keys import Keys

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000

# Connections that may wait until they are accepted; a client whose connection finds no place tries again after seconds.
BACKLOG = 4096

# The store's files, the model's, the standard streams, and what libraries open.
_OTHER_FILES = 256


def require_key(host: str, api_key: str | None, keys: Keys | None = None) -> None:
    """Raises ConfigError when `host` can be reached from other machines and there is no usable API key.

    keys: those of a key file, beside or instead of `api_key`.
    """
    has_key = api_key is not None or (keys is not None and keys.num_usable > 0)
    if not has_key and not all(ipaddress.ip_address(address).is_loopback for address in _addresses(host)):
        raise ConfigError(
            f"the host is {host!r}, which other machines can reach, and there is no API key; "
            "make one (freehold keys add NAME) or give one (--api-key), or serve this machine only (--host 127.0.0.1)"
        )


def reserve_port(host: str = DEFAULT_HOST, port: int = DEFAULT_PORT) -> socket.socket:
    """Bind and listen, so that a taken port is known before a model is loaded. Early clients wait.

    port: 0 takes any free one. The caller closes the socket, or hands it to `serve`, which does.

    Raises ConfigError when the host is unknown or the port is taken, forbidden or no port at all.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"the port is {port}; it must be between 0 and 65535")
    address = _addresses(host)[0]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # Naming the protocol lets asyncio switch Nagle's delay off, which costs kept connections 40 ms an answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # A port whose last connections are still closing is free to use. That of a living server is not.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        # A bound port can still be lost to another process; a listening one cannot.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            reason = f"port {port} of {host} is in use; stop its program, or choose another with --port"
        elif error.errno == errno.EACCES:
            reason = f"port {port} needs rights that this user lacks; choose one above 1023 with --port"
        elif error.errno == errno.EADDRNOTAVAIL:
            reason = f"the host {host!r} is no address of this machine; choose another with --host"
        else:
            reason = f"cannot listen on {host!r}, port {port}: {error.strerror}"
        raise ConfigError(reason) from error
    return listener


def server_url(listener: socket.socket, scheme: str = "http") -> str:
    """The URL under which `listener` is reached from this machine."""
    address, port = listener.getsockname()[:2]
    parsed = ipaddress.ip_address(address)
    if parsed.is_unspecified:
        address = "127.0.0.1" if parsed.version == 4 else "::1"
    return f"{scheme}://[{address}]:{port}" if ":" in address else f"{scheme}://{address}:{port}"


def allow_open_files(max_connections: int) -> None:
    """Raise this process's limit of open files as far as `max_connections` needs it. Raises ConfigError where the
    system does not allow that: a server that cannot accept connections is worse than one that does not start."""
    needed = max_connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"max_connections is {max_connections}, which needs {needed} open files, but this process may have {hard}; "
            "lower --max-connections, or raise the limit (ulimit -n, or LimitNOFILE= of systemd)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _addresses(host: str) -> list[str]:
    """The addresses that `host` stands for, IPv4 first."""
    # A number is no question for the resolver, which opens sockets of its own to answer it.
    with contextlib.suppress(ValueError):
        return [str(ipaddress.ip_address(host.partition("%")[0]))]
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"the host {host!r} is unknown; give one of this machine with --host") from error
    addresses = [str(info[4][0]).partition("%")[0] for info in found]
    return sorted(addresses, key=lambda address: ":" in address)
