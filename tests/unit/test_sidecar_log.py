"""The sidecar's log lines."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from at_least_semaphore_pod_hook.addresses import Address, StoreUrl
from at_least_semaphore_pod_hook.settings import Common, Sidecar
from at_least_semaphore_pod_hook.sidecar.log import Log, quote, timestamp


def _settings(log_format: str = "json", key: str = "key") -> Sidecar:
    address = Address("127.0.0.1", 1)
    common = Common("redlock", (), (), StoreUrl("redis", (address,), address), "info", log_format)
    return Sidecar(common, "ns", key, "p1", "pod-1", 30.0)


@given(st.text(st.characters()))
def test_quoted_text_is_json(text: str) -> None:
    assert quote(text).isascii()
    assert quote(text).isprintable()
    # A lone surrogate comes back as it is; two that make a pair come back as what they make.
    assert json.loads(quote(text)) == text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def test_time_is_rfc_3339_in_utc() -> None:
    assert timestamp(0.0) == "1970-01-01T00:00:00.000Z"
    assert timestamp(1_700_000_000.9999) == "2023-11-14T22:13:20.999Z"


@given(st.text(), st.text())
def test_a_line_is_one_json_object(message: str, key: str) -> None:
    line = Log(_settings(key=key)).line("info", message, 0.0)
    assert "\n" not in line
    document = json.loads(line)
    assert list(document) == ["time", "level", "message", "semaphore", "namespace", "key", "permit", "pod"]
    assert (document["semaphore"], document["namespace"], document["key"]) == (f"ns/{key}", "ns", key)


def test_what_a_call_came_to_has_an_outcome_and_how_long_it_took() -> None:
    document = json.loads(Log(_settings()).line("info", "gave the permit back", 0.0, "released", 0.01234))
    assert (document["outcome"], document["milliseconds"]) == ("released", 12.3)
    assert Log(_settings("text")).line("info", "m", 0.0, "lost", 0.5).endswith(' outcome="lost" milliseconds=500.0')


@given(st.text())
def test_a_line_of_text_is_one_line(message: str) -> None:
    line = Log(_settings("text")).line("error", message, 0.0)
    assert line.isprintable()
    assert line.startswith("1970-01-01T00:00:00.000Z ERROR ")
    assert line.endswith(' semaphore="ns/key" namespace="ns" key="key" permit="p1" pod="pod-1"')
