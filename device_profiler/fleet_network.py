"""Where a fleet listens, and how it connects. Whoever reaches a dask scheduler or worker runs code there: so on this
machine alone, unless certificates say who may connect or the user says that the network is trusted."""

from __future__ import annotations

import ipaddress
import logging
import socket
from typing import Any

from device_profiler.errors import ProfileError

CONNECT_S = 10.0


def need_dask() -> None:
    """Raise ``ProfileError`` with the remedy where dask.distributed is not installed."""
    import importlib.util

    if importlib.util.find_spec("distributed") is None:
        raise ProfileError(
            "a fleet needs the extra 'distributed': pip install 'temporal-nas[distributed]'; "
            "without it run one nas profile a device."
        )


def own_interface(address: str, trusted: bool) -> str:
    """The address of this machine on which a worker of that scheduler listens.

    Raises:
        ProfileError: if it is no address, or leads beyond this machine without TLS and the network is not trusted.
    """
    scheme, host, port = split(address)
    if scheme == "inproc":
        return ""
    found = _addresses(host, port)
    here = [ip for ip in found if ipaddress.ip_address(ip).is_loopback]
    if found and len(here) == len(found):
        return here[0]
    if scheme != "tls" and not trusted:
        raise ProfileError(
            f"{address} is beyond this machine, and whoever reaches a worker there runs code on it: give the fleet TLS "
            "certificates and a tls:// address (docs/profiler.md), or say --trusted-network where nobody else can "
            "connect; on one machine start dask scheduler --host 127.0.0.1."
        )
    return _towards(found[0] if found else host, port)


def _addresses(host: str, port: int) -> list[str]:
    """What a name stands for, IPv4 first; none where it is not known."""
    try:
        found = {str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError:
        return []
    return sorted(found, key=lambda ip: (":" in ip, ip))


def _towards(host: str, port: int) -> str:
    """This machine's own address on the way to another; nothing is sent."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            return str(probe.getsockname()[0])
    except OSError:
        raise ProfileError(f"no way leads from here to {host}; look at the address and the network.") from None


def connect(address: str) -> Any:
    """A client of the scheduler at the address.

    Raises:
        ProfileError: if it is no address, or nothing answers there.
    """
    need_dask()
    scheme, _, _ = split(address)
    from distributed import Client

    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # why it cannot connect is said below
    try:
        return Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TimeoutError):
        raise ProfileError(f"no scheduler answers at {address}; start one with: dask scheduler --host HOST") from None
    except (TypeError, ValueError, RuntimeError) as error:
        if scheme != "tls":
            raise
        raise ProfileError(
            f"{address}: TLS is not configured ({error}); docs/profiler.md names the certificates that it needs."
        ) from None
    finally:
        logger.setLevel(level)


def split(address: str) -> tuple[str, str, int]:
    """Scheme, host and port of a scheduler's address.

    Raises:
        ProfileError: if it is none.
    """
    from distributed.comm.addressing import parse_address, parse_host_port

    try:
        scheme, rest = parse_address(address)
        host, port = parse_host_port(rest)
    except ValueError:
        scheme, host, port = "", "", 0
    if scheme not in ("tcp", "tls", "inproc") or (scheme != "inproc" and not (host and port)):
        raise ProfileError(f"{address!r} is no scheduler address; it looks like tcp://host:8786.")
    return scheme, host, port
