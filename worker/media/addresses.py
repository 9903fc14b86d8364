"""Decides which network addresses the URLs of a request may use: public ones and those that the operator allows. Pure.

A client may be untrusted, while this machine can reach local services, its private network and its cloud's metadata
service. So private addresses are used only if `--media-private-hosts` names them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from llama_corral.common.base.errors import ConfigError
from msgspec import Struct

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_PUBLIC_V6 = ipaddress.ip_network("2000::/3")
_TRANSLATED_V4 = ipaddress.ip_network("64:ff9b::/96")
"""NAT64: the last four bytes are an IPv4 address."""
_PORTS = {"http": 80, "https": 443}


def is_public(address: str) -> bool:
    """Return True if `address`, in a socket's form, is a public IP address; False also if it is no IP address."""
    try:
        ip: Address = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if (embedded := _embedded(ip)) is not None:
            ip = embedded
        elif ip not in _PUBLIC_V6:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def _embedded(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that packets to this IPv6 address finally reach, or None."""
    if ip in _TRANSLATED_V4:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)


class AllowedHosts(Struct, frozen=True):
    """The private hosts and networks that may be reached."""

    everything: bool = False
    hosts: frozenset[str] = frozenset()  # host or host:port, in lower case
    networks: tuple[Network, ...] = ()

    def allows_host(self, host: str, port: int) -> bool:
        """Return True if all addresses of this host name are allowed."""
        name = host.lower().rstrip(".")
        return self.everything or name in self.hosts or f"{name}:{port}" in self.hosts

    def allows_address(self, address: str) -> bool:
        if self.everything or is_public(address):
            return True
        try:
            ip: Address = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
            ip = ip.ipv4_mapped
        return any(ip in network for network in self.networks)


def read_allowed(items: Iterable[str], hub: str = "") -> AllowedHosts:
    """Parse the values of `--media-private-hosts`. Raises ConfigError.

    `items`: `all`, addresses, networks (`10.0.0.0/8`), and host names with or without a port. `hub`: the URL of the
    operator's own model hub, which is allowed too.
    """
    hosts: set[str] = set()
    networks: list[Network] = []
    everything = False
    for item in items:
        try:
            networks.append(ipaddress.ip_network(item.strip("[]"), strict=False))
            continue
        except ValueError:
            pass
        if "/" in item or not item.isprintable() or " " in item:
            raise ConfigError(f"--media-private-hosts: must be all, a host, an address or a network, but is: {item}")
        everything |= item == "all"
        hosts.add(item.lower())
    if hub:
        hosts.add(_origin(hub))
    return AllowedHosts(everything, frozenset(hosts), tuple(networks))


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{(parts.hostname or '').lower()}:{parts.port or _PORTS.get(parts.scheme, 443)}"
