"""One download from an address that a stranger wrote: bounded in size, time and redirects, and never from this network.

The address that is connected to is the one that was checked: a name may resolve to another one a moment later.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from trainer.dataset.archives import RefusedError
from trainer.dataset.captions.caption_sources import clean
from trainer.dataset.limits import Limits
from trainer.protocol.report import RefusalKind

_CHUNK_BYTES = 2**16
_REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = {
    "User-Agent": "darkroom-dataset/1",
    "Accept": "image/*,*/*;q=0.5",
    # What comes is what is counted.
    "Accept-Encoding": "identity",
}


def download(url: str, limits: Limits) -> bytes:
    """What lies at an http(s) address.

    Raises:
        RefusedError: it cannot be had, is too large, takes too long, or lies in a private network.
    """
    deadline = time.monotonic() + limits.download_timeout_s
    for _ in range(limits.max_redirects + 1):
        place = _checked(url)
        answer = _ask(place, limits, deadline)
        if isinstance(answer, bytes):
            return answer
        url = urljoin(url, answer)
    raise _failed(f"it was sent on more than {limits.max_redirects} times")


def _failed(why: str) -> RefusedError:
    return RefusedError(RefusalKind.UNREACHABLE, f"it could not be downloaded ({why})")


def _checked(url: str) -> SplitResult:
    try:
        place = urlsplit(url)
        _ = place.port
    except ValueError as error:
        raise _failed("its address makes no sense") from error
    if place.scheme not in ("http", "https") or not place.hostname:
        raise RefusedError(RefusalKind.UNSAFE_PATH, "its address, or one that it was sent on to, is not http or https")
    if place.username or place.password:
        raise RefusedError(RefusalKind.UNSAFE_PATH, "its address holds a name and password")
    return place


def _ask(place: SplitResult, limits: Limits, deadline: float) -> bytes | str:
    """The body, or the address that the server sends on to."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise _too_slow(limits)
    connection = _connection(place, limits, left)
    # A server that drips a byte now and then keeps every timeout of a socket alive.
    watchdog = threading.Timer(left, partial(_cut, connection))
    watchdog.daemon = True
    watchdog.start()
    try:
        connection.request("GET", _target(place), headers=_HEADERS)
        with connection.getresponse() as response:
            return _answer(response, limits, deadline)
    except RefusedError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        if time.monotonic() >= deadline:
            raise _too_slow(limits) from error
        raise _failed(_why(error)) from error
    finally:
        watchdog.cancel()
        connection.close()


def _answer(response: http.client.HTTPResponse, limits: Limits, deadline: float) -> bytes | str:
    if response.status in _REDIRECTS and (target := response.getheader("Location")):
        return target
    if response.status != http.client.OK:
        raise _failed(f"the server answers {response.status} {clean(response.reason)[:60]}".strip())
    chunks: list[bytes] = []
    size = 0
    if (promised := response.length) is not None and promised > limits.max_download_bytes:
        raise _too_large(limits)
    while chunk := response.read(_CHUNK_BYTES):
        size += len(chunk)
        if size > limits.max_download_bytes:
            raise _too_large(limits)
        chunks.append(chunk)
    if time.monotonic() >= deadline:
        raise _too_slow(limits)
    if promised is not None and size < promised:
        raise _failed("the connection broke off")
    return b"".join(chunks)


def _too_large(limits: Limits) -> RefusedError:
    most = limits.max_download_bytes / 2**20
    return RefusedError(RefusalKind.TOO_LARGE, f"it is larger than the {most:.0f} MiB that one download may have")


def _too_slow(limits: Limits) -> RefusedError:
    return _failed(f"it took more than {limits.download_timeout_s:g} s")


def _why(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "its host is not known"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}"
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return clean(str(reason or error))[:120] or type(error).__name__


def _target(place: SplitResult) -> str:
    # Addresses come with spaces and letters beyond ASCII; what is escaped already stays so.
    path = quote(place.path or "/", safe="/%:@!$&'()*+,;=~-._")
    return f"{path}?{quote(place.query, safe='/%:@!$&()*+,;=~-._?')}" if place.query else path


def _cut(connection: _Guarded) -> None:
    if connection.plug is not None:
        with suppress(OSError):
            connection.plug.shutdown(socket.SHUT_RDWR)


def _connection(place: SplitResult, limits: Limits, timeout_s: float) -> _Guarded:
    kind = _GuardedTls if place.scheme == "https" else _Guarded
    # Without a port, http.client looks for one in the host, and takes the end of an IPv6 address for it.
    port = place.port or kind.default_port
    return kind(str(place.hostname), port, timeout_s, is_private_allowed=limits.allow_private_addresses)


class _Guarded(http.client.HTTPConnection):
    """A connection that resolves the name itself and connects to an address that it has checked; no proxies."""

    def __init__(self, host: str, port: int, timeout_s: float, *, is_private_allowed: bool) -> None:
        super().__init__(host, port, timeout=timeout_s)
        #: Kept here: http.client gives `sock` up as soon as it knows that the body ends with the connection.
        self.plug: socket.socket | None = None
        self._timeout_s = timeout_s
        self._is_private_allowed = is_private_allowed

    def connect(self) -> None:
        self.plug = self.sock = self._connected()

    def _connected(self) -> socket.socket:
        infos = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        # All are checked before any is tried: a name with one private address is meant to be one.
        if not self._is_private_allowed and not all(is_public(str(info[4][0])) for info in infos):
            reason = "its address lies in a private network, which is not asked"
            raise RefusedError(RefusalKind.UNSAFE_PATH, reason)
        failure: OSError | None = None
        for family, kind, protocol, _, address in infos:
            try:
                return self._dial(family, kind, protocol, address)
            except OSError as error:
                failure = error
        raise failure or OSError("its host has no address")

    def _dial(self, family: int, kind: int, protocol: int, address: Any) -> socket.socket:
        plug = socket.socket(family, kind, protocol)
        try:
            plug.settimeout(self._timeout_s)
            plug.connect(address)
        except BaseException:
            plug.close()
            raise
        return plug


class _GuardedTls(_Guarded):
    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        plain = self._connected()
        try:
            context = ssl.create_default_context()
            wrapped = context.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
        except BaseException:
            plain.close()
            raise
        # Within the watchdog's reach before the other side gets a word in.
        self.plug = self.sock = wrapped
        wrapped.do_handshake()


def is_public(address: str) -> bool:
    """True for addresses of the open internet: not loopback, private, link-local, shared, multicast or reserved."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # Addresses of the other kind in disguise: mapped, 6to4, NAT64.
        hidden = ip.ipv4_mapped or ip.sixtofour
        if hidden is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            hidden = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if hidden is not None:
            return is_public(str(hidden))
        if ip.is_site_local or ip.teredo is not None:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and not ip.is_unspecified
