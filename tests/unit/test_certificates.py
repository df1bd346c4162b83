from __future__ import annotations

import shutil
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trustme

from at_least_semaphore_pod_hook.errors import InvalidInputError
from at_least_semaphore_pod_hook.server import metrics
from at_least_semaphore_pod_hook.server.certificates import ServingCertificate

if TYPE_CHECKING:
    from pathlib import Path


def put(directory: Path, *names: str) -> None:
    """Put the files of a new certificate into a directory, or some of them."""
    leaf = trustme.CA().issue_cert("localhost")
    contents = {"tls.crt": leaf.cert_chain_pems[0].bytes(), "tls.key": leaf.private_key_pem.bytes()}
    for name in names or tuple(contents):
        (directory / name).write_bytes(contents[name])


@pytest.mark.parametrize("days", [30, -30])
def test_the_end_of_the_certificate_is_shown_whoever_has_issued_it(tmp_path: Path, days: int) -> None:
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
    starts = ends - timedelta(days=90)
    leaf = trustme.CA().issue_cert("localhost", not_before=starts, not_after=ends)
    (tmp_path / "tls.crt").write_bytes(leaf.cert_chain_pems[0].bytes())
    (tmp_path / "tls.key").write_bytes(leaf.private_key_pem.bytes())
    ServingCertificate(str(tmp_path)).load()
    assert (
        metrics.REGISTRY.get_sample_value(f"{metrics.PREFIX}certificate_expires_timestamp_seconds") == ends.timestamp()
    )


def served(context: ssl.SSLContext) -> bytes:
    """Return the certificate that a server with this context shows."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server), context.wrap_bio(to_server, to_client, server_side=True)]
    for _ in range(3):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    shown = ends[0].getpeercert(binary_form=True)
    assert shown is not None
    return shown


@pytest.mark.parametrize("name", ["tls.crt", "tls.key"])
def test_a_pair_that_does_not_match_leaves_the_old_one_in_service(tmp_path: Path, name: str) -> None:
    put(tmp_path)
    certificate = ServingCertificate(str(tmp_path))
    certificate.load()
    before = served(certificate.context)
    put(tmp_path, name)
    with pytest.raises(InvalidInputError, match="are no certificate and its key"):
        certificate.load()
    assert served(certificate.context) == before


def test_files_that_change_while_they_are_taken_up_harm_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path)
    certificate = ServingCertificate(str(tmp_path))
    certificate.load()
    put(tmp_path)
    wanted = ssl.PEM_cert_to_DER_cert((tmp_path / "tls.crt").read_text())
    checked = ssl.SSLContext.load_cert_chain

    def load_cert_chain(context: ssl.SSLContext, certfile: str, keyfile: str) -> None:
        checked(context, certfile, keyfile)
        put(tmp_path, "tls.key")

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load_cert_chain)
    certificate.load()
    assert served(certificate.context) == wanted


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="No such file"):
        ServingCertificate(str(tmp_path)).load()
    put(tmp_path)
    shutil.copy(tmp_path / "tls.crt", tmp_path / "tls.key")
    with pytest.raises(InvalidInputError, match=r"tls\.key"):
        ServingCertificate(str(tmp_path)).load()
