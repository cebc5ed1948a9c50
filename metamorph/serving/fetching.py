"""Pictures from elsewhere: from the hosts of a list, by https, and from no address of this network.

A server that fetches whatever a request names can be made to ask its own network (SSRF). So a name
is looked up once, its addresses have to be public, and the connection goes to the one that was
checked; a host that sends us on is left only for another of the list.
"""

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Collection
from urllib.parse import urljoin, urlsplit

from metamorph.errors import UserError
from metamorph.serving.refusals import invalid

HTTPS = 443
MOST_REDIRECTS = 3
SECONDS = 10.0  # for a whole picture
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # IPv4 addresses as IPv6 writes them there
ENTRY = re.compile(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?")  # of the list of hosts
REDIRECTS = (301, 302, 303, 307, 308)


class Fetcher:
    """Fetches by https from `hosts`, each a name or `name:port`; from no other, and from none where
    there is none."""

    def __init__(self, hosts: Collection[str] = (), *, seconds: float = SECONDS):
        self.hosts = frozenset(map(_host, hosts))
        self.seconds = seconds
        self.context = ssl.create_default_context()

    def fetch(self, url: str, most_bytes: int, param: str) -> bytes:
        """What stands there. Blocks, for at most `seconds` after the name is looked up. Raises
        `Refused`, naming `param`."""
        if not self.hosts:
            message = f"{param}: no URL is fetched here, expected a data URL (data:image/png;...)"
            raise invalid(param, message, "url_not_allowed")
        deadline = time.monotonic() + self.seconds
        for _ in range(MOST_REDIRECTS + 1):
            host, port, path = self._target(url, param)
            connection = Pinned(host, port, _public_address(host, port, param), self.context)
            left = max(deadline - time.monotonic(), 0.001)
            connection.timeout = left  # of each wait; all of them together may take no longer
            watch = threading.Timer(left, connection.cut)
            watch.start()
            try:
                connection.request("GET", path, headers={"accept": "image/*"})
                response = connection.getresponse()
                if response.status not in REDIRECTS:
                    return _content(response, most_bytes)
                url = urljoin(url, response.headers.get("location", ""))
            except (OSError, http.client.HTTPException, ValueError) as error:
                message = f"{param}: the picture cannot be fetched from {host}: {error}"
                raise invalid(param, message, "url_not_fetched") from error
            finally:
                watch.cancel()
                connection.close()
        raise invalid(param, f"{param}: its host sends on and on", "url_not_fetched")

    def _target(self, url: str, param: str) -> tuple[str, int, str]:
        """Host, port and path of a URL that may be fetched."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port or HTTPS
        except ValueError as error:
            raise invalid(param, f"{param}: this is no URL: {error}", "url_not_allowed") from error
        if parts.scheme != "https" or parts.username is not None or parts.password is not None:
            message = f"{param}: expected a data URL, or https:// without a user name"
            raise invalid(param, message, "url_not_allowed")
        if (host, port) not in self.hosts:
            message = f"{param}: nothing is fetched from {host}:{port}, it is not on the list"
            raise invalid(param, message, "url_not_allowed")
        path = parts.path or "/"
        return host, port, f"{path}?{parts.query}" if parts.query else path


class Pinned(http.client.HTTPSConnection):
    """To an address that was checked, whatever the name stands for by now."""

    def __init__(self, host: str, port: int, address: str, context: ssl.SSLContext):
        super().__init__(host, port, context=context)
        self.address, self.context = address, context
        self._wire: socket.socket | None = None  # `sock` is forgotten while an answer is read

    def connect(self) -> None:
        self._wire = socket.create_connection((self.address, self.port), self.timeout)
        self._wire = self.context.wrap_socket(self._wire, server_hostname=self.host)
        self.sock = self._wire

    def cut(self) -> None:
        """Whoever waits for its bytes waits no longer; called from another thread."""
        if self._wire is not None:
            with contextlib.suppress(OSError):  # it was closed meanwhile
                self._wire.shutdown(socket.SHUT_RDWR)


def _host(entry: str) -> tuple[str, int]:
    """Name and port of an entry with or without a port."""
    found = ENTRY.fullmatch(entry.strip().lower())
    if found is None:
        raise UserError(f"--allow-host: expected a name, or name:port, got {entry!r}")
    return found[1].strip("[]"), int(found[2] or HTTPS)


def _public_address(host: str, port: int, param: str) -> str:
    """An address of the host; all of them have to be public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        message = f"{param}: the host {host} is not known: {error}"
        raise invalid(param, message, "url_not_fetched") from error
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not is_public(address):
            message = f"{param}: {host} is an address of a private network"
            raise invalid(param, message, "url_not_allowed")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether it belongs to a host of the internet, whichever way it is written."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo and found.teredo[1])
        if inner:
            return is_public(str(inner))
        if found in NAT64:
            return is_public(str(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)))
    return found.is_global and not found.is_multicast and not found.is_reserved


def _content(response: http.client.HTTPResponse, most_bytes: int) -> bytes:
    if response.status != 200:
        raise ValueError(f"status {response.status}")
    content = response.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"more than {most_bytes} bytes")
    if response.length:  # what was announced and did not come
        raise ValueError("the connection was cut or too slow")
    return content
