"""What is accepted as an address and as a store's URL, and that no password gets into a message."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from at_least_semaphore_pod_hook import addresses
from at_least_semaphore_pod_hook.addresses import Address, StoreUrl, parse_address, parse_store_url
from at_least_semaphore_pod_hook.errors import InvalidInputError, UnavailableError

if TYPE_CHECKING:
    from pathlib import Path

TLS_FILES = "ca-file=/ca&cert-file=/cert&key-file=/key&server-name=name"
TLS: dict[str, Any] = {"ca_file": "/ca", "cert_file": "/cert", "key_file": "/key", "server_name": "name"}
SCHEMES = sorted(addresses.STORE_SCHEMES)
SERVED = [scheme for scheme in SCHEMES if scheme not in {"memory", "unix"}]


def redis(address: Address, wait_replicas: int = 0) -> StoreUrl:
    return StoreUrl("redis", (address,), address, wait_replicas=wait_replicas)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("redis://a", redis(Address("a", 6379))),
        ("redis://:p@a:1/3", redis(Address("a", 1, password="p", database=3))),
        ("redis://u:p%40%2F@[::1]:1?wait-replicas=2", redis(Address("::1", 1, username="u", password="p@/"), 2)),
        (f"rediss://a?{TLS_FILES}", redis(Address("a", 6379, True, **TLS))),
        (
            "redis://a?username-file=/u&password-file=/p",
            redis(Address("a", 6379, username_file="/u", password_file="/p")),
        ),
        ("unix:///run/redis.sock?db=2", redis(Address("", 0, path="/run/redis.sock", database=2))),
        ("unix://u:p@/run/a%20b", redis(Address("", 0, path="/run/a b", username="u", password="p"))),
        (
            "redis+sentinel://u:p@a,b:1/service/2?sentinel-password=s&wait-replicas=1",
            StoreUrl(
                "sentinel",
                (Address("a", 26379, password="s"), Address("b", 1, password="s")),
                Address("", 0, username="u", password="p", database=2),
                "service",
                1,
            ),
        ),
        (
            f"rediss+sentinel://a/s?{TLS_FILES}&sentinel-username-file=/su&sentinel-password-file=/sp&password-file=/p",
            StoreUrl(
                "sentinel",
                (Address("a", 26379, True, username_file="/su", password_file="/sp", **TLS),),
                Address("", 0, True, password_file="/p", **TLS),
                "s",
            ),
        ),
        (
            "redis+cluster://:p@a,b:1",
            StoreUrl(
                "cluster",
                (Address("a", 6379, password="p"), Address("b", 1, password="p")),
                Address("", 0, password="p"),
            ),
        ),
        ("rediss+cluster://a", StoreUrl("cluster", (Address("a", 6379, True),), Address("", 0, True))),
        ("etcd://a,b:1", StoreUrl("etcd", (Address("a", 2379), Address("b", 1)), Address("", 0))),
        ("etcds://a", StoreUrl("etcd", (Address("a", 2379, True),), Address("", 0, True))),
        ("memory://", StoreUrl("memory", (), Address("", 0))),
    ],
)
def test_what_is_accepted(text: str, url: StoreUrl) -> None:
    assert parse_store_url(text) == url


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a:1", "what has no scheme"),
        ("", "what has no scheme"),
        ("http://a", "use one of redis://"),
        ("redis://", "use host:port"),
        ("redis://a,b", "use host:port"),
        ("redis://a:70000", "use host:port"),
        ("redis://a/x", "a number as the database"),
        ("redis://a/1/2", "a number as the database"),
        ("redis://a?wait-replicas=many", "a number as wait-replicas"),
        ("redis://a?wait-replicas=-1", "a number as wait-replicas"),
        ("redis://a?ca-file=/ca", "'ca-file' is not accepted"),
        ("redis://a?sentinel-password=x", "an option is not accepted"),
        ("redis://a?db=1", "an option is not accepted"),
        ("rediss://a?cert-file=/cert", "come together"),
        ("rediss://a?cert-file=", "'cert-file' is not accepted"),
        ("redis+sentinel://a", "/service"),
        ("redis+sentinel://a,/s", "/service|host:port,host:port"),
        ("redis+sentinel://a/s/x", "a number as the database"),
        ("redis+cluster://a/1", "nothing after host and port"),
        ("redis+cluster://a,b c", "host:port,host:port"),
        ("etcd://a/1", "nothing after host and port"),
        ("etcd://a?wait-replicas=1", "an option is not accepted"),
        ("unix://a/b", "unix:///path"),
        ("unix://", "unix:///path"),
        ("unix:///a?db=x", "unix:///path"),
        ("unix:///a?ca-file=/ca", "'ca-file' is not accepted"),
        ("memory://a", "memory:// and nothing else"),
        ("memory://?a=b", "there are none"),
    ],
)
def test_what_is_not_accepted_says_what_is(text: str, named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        parse_store_url(text)


@given(
    scheme=st.sampled_from(SERVED),
    password=st.text("sekrit#:@,?&%[] ", min_size=4),
    tail=st.sampled_from(["a", "a:b", "a,b", "", "a/s", "a?x=y", "a/x/y", "a:1/-1", "?wait-replicas=z", "a?db=1"]),
)
def test_no_message_contains_a_password(scheme: str, password: str, tail: str) -> None:
    for text in (f"{scheme}://user:{quote(password, safe='')}@{tail}", f"{scheme}://user:{password}@{tail}"):
        try:
            url = parse_store_url(text)
        except InvalidInputError as error:
            said = str(error)
        else:
            said = str(url)
        assert password not in said


@given(text=st.text(max_size=60) | st.builds("{}://{}".format, st.sampled_from(SCHEMES), st.text(max_size=60)))
def test_whatever_it_is_it_is_read_or_refused(text: str) -> None:
    try:
        url = parse_store_url(text)
    except InvalidInputError:
        return
    assert url.kind in {"redis", "sentinel", "cluster", "etcd", "memory"}
    assert url.addresses or url.kind == "memory"


@given(
    scheme=st.sampled_from(SERVED),
    username=st.text(max_size=12),
    password=st.text(max_size=12),
    host=st.sampled_from(["redis", "10.0.0.1", "[fd00::1]", "redis-0.redis.ns.svc"]),
    port=st.integers(1, 65535),
)
def test_what_is_quoted_is_read_as_it_was(scheme: str, username: str, password: str, host: str, port: int) -> None:
    service = "/service" if "sentinel" in scheme else ""
    url = parse_store_url(f"{scheme}://{quote(username, safe='')}:{quote(password, safe='')}@{host}:{port}{service}")
    assert (url.server.username, url.server.password) == (username, password)
    assert (url.addresses[0].host, url.addresses[0].port) == (host.strip("[]"), port)


def test_an_address_takes_the_same_options() -> None:
    address = parse_address(f"rediss://u@a:1/2?password-file=/p&{TLS_FILES}", addresses.REDIS_SCHEMES, 6379)
    assert address == Address("a", 1, True, "u", database=2, password_file="/p", **TLS)


def test_credentials_are_read_anew_each_time(tmp_path: Path) -> None:
    user, password = tmp_path / "user", tmp_path / "password"
    address = Address("a", 1, username="unused", username_file=str(user), password_file=str(password))
    with pytest.raises(UnavailableError, match=f"{user}: No such file"):
        address.credentials()
    user.write_text("user\n")
    password.write_text("p w\r\n")
    assert address.credentials() == ("user", "p w")
    password.write_text("other")
    assert address.credentials() == ("user", "other")
    password.write_bytes(b"\xff")
    with pytest.raises(UnavailableError, match="not UTF-8"):
        address.credentials()
