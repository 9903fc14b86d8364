"""Which network addresses a URL of a request may lead to: public ones, and those that the operator has allowed. Pure.

The one who asks may be a stranger, and this machine stands where a stranger does not: beside its own services, in its
own network, next to its cloud's metadata. So what is not public is reached only if `--media-private-hosts` names it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from llama_corral.common.base.errors import ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_PUBLIC_V6 = ipaddress.ip_network("2000::/3")
_TRANSLATED_V4 = ipaddress.ip_network("64:ff9b::/96")
"""NAT64: the last four bytes are an IPv4 address."""
_PORTS = {"http": 80, "https": 443}


def is_public(address: str) -> bool:
    """Of an address as a socket knows it; what is no IP address is not public either."""
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
    """The IPv4 address that packets to this one end up at."""
    if ip in _TRANSLATED_V4:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)


@dataclass(frozen=True)
class AllowedHosts:
    """What may be reached although it is private."""

    everything: bool = False
    hosts: frozenset[str] = frozenset()  # host or host:port, in lower case
    networks: tuple[Network, ...] = ()

    def allows_host(self, host: str, port: int) -> bool:
        """Whether all addresses of this name are allowed."""
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
    """`all`, addresses, networks (`10.0.0.0/8`), host names, either with a port or without; `hub`: the operator's own.

    Raises ConfigError.
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
            raise ConfigError(f"--media-private-hosts: neither all nor a host, an address or a network: {item}")
        everything |= item == "all"
        hosts.add(item.lower())
    if hub:
        hosts.add(_origin(hub))
    return AllowedHosts(everything, frozenset(hosts), tuple(networks))


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{(parts.hostname or '').lower()}:{parts.port or _PORTS.get(parts.scheme, 443)}"
