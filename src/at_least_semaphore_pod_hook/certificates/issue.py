"""Certificates made and read (EC P-256, X.509), by `cryptography`."""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from at_least_semaphore_pod_hook.certificates.decide import Authority, Pair

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BACKDATED_SECONDS = 3600.0
"""How much earlier than now a certificate begins, for clocks that are behind ours."""
MAX_COMMON_NAME = 64
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def issue(names: Sequence[str], lifetime_seconds: float, now: float) -> Pair:
    """Make a certificate for a server with these names, of an authority of its own.

    The authority's key is not kept, so that nobody can ever sign another certificate with it.

    Args:
        names: DNS names.
        lifetime_seconds: From now on.
        now: Seconds since the epoch.
    """
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    # Each authority has a name of its own, so that whoever verifies tries the right one.
    authority_name = _name(f"at-least-semaphore-pod-hook {x509.random_serial_number():x}")
    begin = dt.datetime.fromtimestamp(int(now - BACKDATED_SECONDS), dt.UTC)
    end = dt.datetime.fromtimestamp(int(now + lifetime_seconds), dt.UTC)

    def builder(subject: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return x509.CertificateBuilder(
            issuer_name=authority_name,
            subject_name=subject,
            public_key=public_key,
            serial_number=x509.random_serial_number(),
            not_valid_before=begin,
            not_valid_after=end,
            extensions=[x509.Extension(SKI, False, x509.SubjectKeyIdentifier.from_public_key(public_key))],
        )

    authority = (
        builder(authority_name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    certificate = (
        builder(_name(names[0][:MAX_COMMON_NAME]), key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(alternatives, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Pair(_pem(certificate), private, _authority(authority), begin.timestamp(), end.timestamp())


SKI = x509.SubjectKeyIdentifier.oid


def read_authorities(pem: bytes) -> tuple[Authority, ...]:
    """Return the certificates in a PEM text, each once; what is none is passed over."""
    found = []
    for block in _CERTIFICATE.findall(pem):
        try:
            found.append(_authority(x509.load_pem_x509_certificate(block)))
        except ValueError:
            continue
    return tuple(dict.fromkeys(found))


def read_pair(certificate: bytes, key: bytes, authorities: Iterable[Authority], names: Iterable[str]) -> Pair | None:
    """Return a pair that can be served, and that one of these authorities has signed; None where it is anything else.

    Args:
        certificate: PEM.
        key: PEM.
        authorities: Which may have signed it.
        names: What it should be for.
    """
    try:
        loaded = x509.load_pem_x509_certificate(certificate)
        private = serialization.load_pem_private_key(key, None)
        if private.public_key() != loaded.public_key():
            return None
        authority = next(each for each in authorities if _has_issued(each, loaded))
        alternatives = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, UnsupportedAlgorithm, StopIteration, x509.ExtensionNotFound):
        return None
    named = set(names) <= set(alternatives.get_values_for_type(x509.DNSName))
    begin, end = loaded.not_valid_before_utc.timestamp(), loaded.not_valid_after_utc.timestamp()
    return Pair(_pem(loaded), key, authority, begin, min(end, authority.not_after), named)


def _has_issued(authority: Authority, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.pem.encode()))
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(certificate: x509.Certificate) -> Authority:
    return Authority(_pem(certificate).decode(), certificate.not_valid_after_utc.timestamp())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:MAX_COMMON_NAME])])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
