from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from at_least_semaphore_pod_hook.errors import InvalidInputError
from at_least_semaphore_pod_hook.server.callers import Callers, admits, names
from at_least_semaphore_pod_hook.server.certificates import new_context

SHOWN = {
    "subject": ((("organizationName", "system:masters"),), (("commonName", "front"),)),
    "subjectAltName": (("DNS", "api.example"), ("IP Address", "10.0.0.1"), ("URI", "spiffe://cluster/api")),
}


def test_a_certificate_has_its_common_and_alternative_names() -> None:
    assert names(SHOWN) == {"front", "api.example", "spiffe://cluster/api"}
    assert names({}) == frozenset()


@pytest.mark.parametrize(
    ("allowed", "certificate", "expected"),
    [
        ((), None, True),
        ((), SHOWN, True),
        (("front",), SHOWN, True),
        (("other", "api.example"), SHOWN, True),
        (("system:masters",), SHOWN, False),
        (("fron",), SHOWN, False),
        (("front",), None, False),
        (("front",), {}, False),
    ],
)
def test_who_is_admitted(allowed: tuple[str, ...], certificate: dict[str, object] | None, expected: bool) -> None:
    assert admits(allowed, certificate) is expected


@pytest.mark.parametrize("content", [None, b"", b"rubbish", b"\xff"])
def test_a_file_without_certificates_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "clients.crt"
    if content is not None:
        file.write_bytes(content)
    context = new_context()
    with pytest.raises(InvalidInputError, match=f"--client-ca-file: {file} holds no certificates"):
        Callers(str(file), context).load()
    assert context.verify_mode is ssl.CERT_NONE
