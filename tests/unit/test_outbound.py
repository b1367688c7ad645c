"""Which addresses a client may have called: one reading of every URL, an allow-list, and no way around either."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from ackline.infra.hosts import AllowedHosts, is_public, parse_host
from ackline.producer.outbound import MAX_URL, NoAnswer, NotAllowed, Outbound, check

NAMES = ("hooks.example.com", "*.example.org", "bücher.example", "localhost", "my_service")
NETWORKS = ("127.0.0.1", "10.0.0.0/8", "::1", "fd00::/8")


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com",
        "https://hooks.example.com/",
        "http://hooks.example.com/paid?order=7&x=%20",
        "HTTPS://HOOKS.Example.COM/Path",
        "https://hooks.example.com./",
        "https://hooks.example.com:443/",
        "https://hooks.example.com:8443/",
        "https://hooks.example.com?query",
        "https://hooks.example.com/?url=http://127.0.0.1/",
        "https://a.example.org/",
        "https://a.b.example.org/",
        "https://bücher.example/",
        "https://BÜCHER.example/",
        "https://xn--bcher-kva.example/",
        "http://localhost/",
        "http://my_service:8000/",
        "http://127.0.0.1:8000/",
        "http://127.0.0.1./",
        "http://10.255.0.1/",
        "http://[::1]/",
        "http://[0:0:0:0:0:0:0:1]:8080/",
        "http://[fd12:3456::1]/",
    ],
)
def test_an_address_that_the_operator_named_may_be_called(url: str) -> None:
    check(url, NAMES + NETWORKS)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/",
        "https://example.org/",
        "https://badexample.org/",
        "https://hooks.example.com.evil.test/",
        "https://evil.test/hooks.example.com",
        "https://xhooks.example.com/",
        "https://localhost.evil.test/",
        "http://8.8.8.8/",
        "http://127.0.0.2/",
        "http://11.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://0.0.0.0/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[fe80::1]/",
        "http://[fc00::1]/",
    ],
)
def test_a_host_that_the_operator_did_not_name_is_refused(url: str) -> None:
    with pytest.raises(NotAllowed, match=r"may not be called: ACKLINE_CALLBACK_HOSTS .*\.$"):
        check(url, NAMES + NETWORKS)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "must begin with https:// or http://"),
        ("hooks.example.com", "must begin with"),
        ("//hooks.example.com/", "must begin with"),
        ("ftp://hooks.example.com/", "must begin with"),
        ("file:///etc/passwd", "must begin with"),
        ("gopher://127.0.0.1/", "must begin with"),
        ("javascript:alert(1)", "must begin with"),
        ("https:hooks.example.com", "must begin with"),
        ("https:/hooks.example.com", "must begin with"),
        ("https:\\\\hooks.example.com", "must begin with"),
        ("https://", "has no host"),
        ("https:///path", "has no host"),
        ("https://?query", "has no host"),
        ("https://:8443/", "has no host"),
        ("https://hooks.example.com:/", "a port that is no number"),
        ("https://hooks.example.com:http/", "a port that is no number"),
        ("https://hooks.example.com:-1/", "a port that is no number"),
        ("https://hooks.example.com:+443/", "a port that is no number"),
        ("https://hooks.example.com:٤٤٣/", "a port that is no number"),
        ("https://hooks.example.com:443:443/", "a port that is no number"),
        ("https://hooks.example.com:0/", "has the port 0"),
        ("https://hooks.example.com:22/", "has the port 22"),
        ("https://hooks.example.com:25/", "has the port 25"),
        ("https://hooks.example.com:65536/", "has the port 65536"),
        ("https://user@hooks.example.com/", "a user or a password"),
        ("https://user:password@hooks.example.com/", "a user or a password"),
        ("https://hooks.example.com@evil.test/", "a user or a password"),
        ("https://hooks.example.com:443@evil.test/", "a user or a password"),
        ("https://evil.test\\@hooks.example.com/", "must be percent-encoded"),
        ("https://hooks.example.com\\@evil.test/", "must be percent-encoded"),
        ("https://hooks.example.com#@evil.test/", "a fragment"),
        ("https://hooks.example.com/#top", "a fragment"),
        ("https://hooks.example.com/a b", "a space or a control character"),
        (" https://hooks.example.com/", "a space or a control character"),
        ("https://hooks.example.com/\r\nX-Injected: 1", "a space or a control character"),
        ("https://hooks.example.com\r\n/", "a space or a control character"),
        ("https://hooks.example.com/\x00", "a space or a control character"),
        ("https://hooks.example.com/\x7f", "a space or a control character"),
        ("https://hooks.example.com\u200b/", "a space or a control character"),
        ("https://hooks.example.com\u3000/", "a space or a control character"),
        ("https://hooks.example.com/ü", "must be percent-encoded"),
        ("https://hooks.example.com/<x>", "must be percent-encoded"),
        ("https://hooks.example.com/%0", "must be percent-encoded"),
        ("https://hooks.example.com/%zz", "must be percent-encoded"),
        ("https://hooks.example.com%2eevil.test/", "is no host name"),
        ("https://%6cocalhost/", "is no host name"),
        ("https://hooks.example.com%00.evil.test/", "is no host name"),
        ("https://hooks..example.com/", "is no host name"),
        ("https://.hooks.example.com/", "is no host name"),
        ("https://hooks.example.com../", "is no host name"),
        ("https://-a.example.org/", "is no host name"),
        ("https://*.example.org/", "is no host name"),
        ("https://a,b.example.org/", "is no host name"),
        (f"https://{'a' * 64}.example.org/", "is no host name"),
        (f"https://{'a.' * 130}example.org/", "is no host name"),
        ("https://a\u2025example.org/", "is no host name"),
        ("http://2130706433/", "is no IP address as it is usually written"),
        ("http://0x7f000001/", "is no IP address as"),
        ("http://0x7f.1/", "is no IP address as"),
        ("http://0X7F.0.0.1/", "is no IP address as"),
        ("http://127.0.0.0x1/", "is no IP address as"),
        ("http://017700000001/", "is no IP address as"),
        ("http://0177.0.0.1/", "is no IP address as"),
        ("http://127.1/", "is no IP address as"),
        ("http://127.0.0.01/", "is no IP address as"),
        ("http://127.0.0.1.1/", "is no IP address as"),
        ("http://256.0.0.1/", "is no IP address as"),
        ("http://1.2.3/", "is no IP address as"),
        ("http://a.example.0x/", "is no IP address as"),
        ("http://０x７f.1/", "is no host name"),
        ("http://[::1/", "has no host"),
        ("http://::1/", "has no host"),
        ("http://[]/", "is no IP address as"),
        ("http://[::1%25eth0]/", "is no IPv6 address in brackets"),
        ("http://[::1%eth0]/", "is no IPv6 address in brackets"),
        ("http://[127.0.0.1]/", "is no IP address as"),
        ("http://[::1]x/", "has no host"),
        ("http://[v1.fe80::a]/", "is no IP address as"),
        ("http://[[::1]]/", "has no host"),
        (f"https://hooks.example.com/{'a' * MAX_URL}", "has more than 2,048 characters"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused_in_a_sentence(url: str, said: str) -> None:
    with pytest.raises(NotAllowed) as caught:
        check(url, (*NAMES, *NETWORKS, "0.0.0.0/0", "::/0"))
    sentence = str(caught.value)
    assert said in sentence
    assert sentence.startswith("The address to call back ")
    assert sentence.endswith(".")
    assert sentence.isprintable()


def test_without_hosts_callbacks_are_off_and_the_sentence_says_how_to_turn_them_on() -> None:
    with pytest.raises(NotAllowed, match="ACKLINE_CALLBACK_HOSTS must name the hosts"):
        check("https://hooks.example.com/", ())


def test_digits_and_dots_of_other_scripts_mean_what_they_are_read_as() -> None:
    check("http://127。0。0。1/", ("127.0.0.1",))  # U+3002, a dot in IDNA
    with pytest.raises(NotAllowed):
        check("http://１２７.0.0.1/", NAMES)
    with pytest.raises(NotAllowed, match="does not name it"):
        check("https://hооks.example.com/", NAMES)  # two Cyrillic letters


@pytest.mark.parametrize(
    "entry",
    [
        "https://hooks.example.com",
        "hooks.example.com:443",
        "*",
        "*.",
        "a.*.example.com",
        "*.10",
        "*.127.0.0.1",
        "10.0.0.1/8",
        "10.0.0.0/33",
        "example.com/8",
        "0x7f.1",
        "300.1.1.1",
        "",
        "a b",
        "fe80::1%eth0/64",
    ],
)
def test_an_entry_that_is_no_host_is_named(entry: str) -> None:
    with pytest.raises(ValueError) as caught:
        AllowedHosts([entry])
    assert str(caught.value).startswith(repr(entry))
    assert "an entry reads hooks.example.com, " in str(caught.value)


def test_an_entry_may_be_written_as_in_a_url() -> None:
    allowed = AllowedHosts(["HOOKS.example.com.", "[::1]", "*.Bücher.example"])
    assert allowed.has_name("hooks.example.com")
    assert allowed.has_name("a.xn--bcher-kva.example")
    assert allowed.has_address(ip_address("::1"))
    assert not allowed.has_address(ip_address("127.0.0.1"))


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.255"),
        *("168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1"),
        *("192.88.99.1", "192.168.0.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1"),
        *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:127.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1", "2001:0:4136:e378::1"),
        *("2001:db8::1", "2002:7f00:1::", "2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254"),
        *("fe80::1", "fe80::1%1", "fec0::1", "ff02::1", "4000::1"),
    ],
)
def test_an_address_with_a_special_purpose_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1", "2a00::1"])
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "answers",
    [
        ["127.0.0.1"],
        ["169.254.169.254"],
        ["10.1.2.3"],
        ["::1"],
        ["::ffff:10.1.2.3"],
        ["fe80::1%1"],
        ["8.8.8.8", "127.0.0.1"],  # one that is not public spoils the name: the other order would reach it
    ],
)
def test_a_name_that_leads_to_an_address_that_is_not_public_is_not_called(answers: list[str]) -> None:
    outbound = Outbound(["hooks.example.com"], resolve=lambda name: answers)
    with pytest.raises(NotAllowed, match=r"hooks.example.com has the address \S+, which is not public"):
        outbound.post("http://hooks.example.com/", b"", {})


def test_a_name_without_an_address_is_a_call_without_an_answer() -> None:
    def fails(name: str) -> list[str]:
        raise OSError(-2, "Name or service not known")

    def finds_none(name: str) -> list[str]:
        return []

    for resolve in (fails, finds_none):
        with pytest.raises(NoAnswer, match=r"The address of hooks.example.com cannot be found: .*\.$"):
            Outbound(["hooks.example.com"], resolve=resolve).post("http://hooks.example.com/", b"", {})


def test_a_host_is_read_in_one_form() -> None:
    assert parse_host("Hooks.EXAMPLE.com.") == "hooks.example.com"
    assert parse_host("127.0.0.1") == ip_address("127.0.0.1")
    assert parse_host("[0::1]") == ip_address("::1")
