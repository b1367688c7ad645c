"""Hosts as a client or an operator writes them, and which of them Ackline may call.

A host is read in one way only, and what could be read in two ways is refused: `0x7f.1`, `2130706433` and `0177.0.0.1`
are 127.0.0.1 to some resolvers, and no name to anybody.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address

#: Underscores are no host name's, but Docker and Kubernetes have names with them.
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
#: The last label of what resolvers take for a number, whatever stands before it (WHATWG URL, "ends in a number").
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_LONGEST_NAME = 253

#: IPv4 that is not for everybody: IANA's special-purpose registry without what is globally reachable, class D and E,
#: and Azure's metadata service, which has an address like anybody's. Written out, for `is_global` of `ipaddress`
#: changes with Python's patch versions.
_SPECIAL_IPV4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "168.63.129.16/32",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",
        ),
    )
)
#: Global unicast. All else is loopback, link-local, unique local, multicast, or an IPv4 address in IPv6 clothes
#: (mapped, compatible, NAT64).
_GLOBAL_IPV6 = IPv6Network("2000::/3")
#: Of that: IETF protocols with Teredo, documentation, 6to4, and documentation again.
_SPECIAL_IPV6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))


def parse_host(text: str) -> Address | str:
    """The host that *text* is: an address, or a name in lower case, in ASCII (IDNA 2008), without a dot at its end.

    IPv6 stands in brackets, as in a URL. Raises `ValueError`, with what is wrong, when it is none.
    """
    if text.startswith("["):
        inner = text[1:-1]
        if not text.endswith("]") or "%" in inner:
            raise ValueError("is no IPv6 address in brackets")
        return _address(inner, IPv6Address)
    name = _ascii(text).lower().removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _address(name, IPv4Address)
    if len(name) > _LONGEST_NAME or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError("is no host name")
    return name


def _address(text: str, kind: type[IPv4Address] | type[IPv6Address]) -> Address:
    try:
        return kind(text)
    except ValueError:
        raise ValueError("is no IP address as it is usually written") from None


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError:
        raise ValueError("is no network, or has bits set beyond its prefix") from None


def _ascii(text: str) -> str:
    if text.isascii():
        return text
    import idna  # large, and hardly ever needed

    try:
        return idna.encode(text.lower()).decode()
    except (idna.IDNAError, UnicodeError):
        raise ValueError("is no host name") from None


def is_public(address: Address) -> bool:
    """Whether *address* is one of the public internet: no network's own, no machine's own, nobody's reserve."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _SPECIAL_IPV4)
    return address in _GLOBAL_IPV6 and not any(address in network for network in _SPECIAL_IPV6)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on *host*, an IP address (IPv6 without brackets) or a name."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class AllowedHosts:
    """Which hosts may be called. An entry is a name, `*.` and a domain for every name below it, an IP address, or a
    network (`10.0.0.0/8`).

    A name stands for its public addresses only. An address that is not public must be an entry itself, or in a network
    that is one, whatever name leads to it.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        """Raises `ValueError`, which names the entry, for one that is none of these."""
        self._names: set[str] = set()
        self._domains: list[str] = []
        self._networks: list[IPv4Network | IPv6Network] = []
        for entry in entries:
            try:
                self._add(entry)
            except ValueError as error:
                raise ValueError(
                    f"{entry!r} {error}; an entry reads hooks.example.com, *.example.com, 192.0.2.1 or 10.0.0.0/8"
                ) from None

    def _add(self, entry: str) -> None:
        if "/" in entry:
            self._networks.append(_network(entry))
        elif entry.startswith("*."):
            domain = parse_host(entry[2:])
            if not isinstance(domain, str):
                raise ValueError("is no domain")
            self._domains.append(f".{domain}")
        else:
            host = ip_address(entry) if ":" in entry and not entry.startswith("[") else parse_host(entry)
            if isinstance(host, str):
                self._names.add(host)
            else:
                self._networks.append(ip_network(host))

    def __bool__(self) -> bool:
        return bool(self._names or self._domains or self._networks)

    def has_name(self, name: str) -> bool:
        """Whether *name*, as `parse_host` gives it, may be called at its public addresses."""
        return name in self._names or any(name.endswith(domain) for domain in self._domains)

    def has_address(self, address: Address) -> bool:
        """Whether *address* is an entry, or in one, public or not."""
        return any(address in network for network in self._networks)
