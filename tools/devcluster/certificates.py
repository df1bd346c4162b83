"""The control plane's certificate authority, server and client certificates, and service-account keys."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALID = datetime.timedelta(days=30)
_CLOCK_SKEW = datetime.timedelta(hours=1)


class Authority:
    """A certificate authority for one control plane; keys and certificates are EC P-256 in PEM, valid for 30 days."""

    def __init__(self, directory: Path) -> None:
        """Create the authority and write its certificate to `<directory>/ca.crt`."""
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "devcluster-ca")])
        builder = _builder(self._name, self._key.public_key())
        builder = builder.issuer_name(self._name).add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        certificate = builder.add_extension(usage, True).sign(self._key, hashes.SHA256())
        self.ca_file = directory / "ca.crt"
        self.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue_server(self, name: str, hosts: Sequence[str], *, also_client: bool = False) -> tuple[Path, Path]:
        """Write `<name>.crt` and `<name>.key` for these host names and addresses; return both paths.

        With `also_client` it can be shown to other servers as well, as etcd does to itself.
        """
        names = [x509.DNSName(host) if not _is_address(host) else _address(host) for host in hosts]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usages = [ExtendedKeyUsageOID.SERVER_AUTH] + [ExtendedKeyUsageOID.CLIENT_AUTH] * also_client
        return self._issue(name, subject, usages, x509.SubjectAlternativeName(names))

    def issue_client(self, name: str, user: str, groups: Sequence[str]) -> tuple[Path, Path]:
        """Write `<name>.crt` and `<name>.key` that make the holder `user` of `groups`; return both paths."""
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, user)]
        attributes += [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        return self._issue(name, x509.Name(attributes), [ExtendedKeyUsageOID.CLIENT_AUTH], None)

    def _issue(
        self,
        name: str,
        subject: x509.Name,
        usages: list[x509.ObjectIdentifier],
        names: x509.SubjectAlternativeName | None,
    ) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(subject, key.public_key()).issuer_name(self._name)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), False)
        # Strict verification (the default of newer Pythons) asks for the authority's key identifier.
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(identifier, False)
        if names is not None:
            builder = builder.add_extension(names, False)
        certificate = self._directory / f"{name}.crt"
        certificate.write_bytes(
            builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
        )
        return certificate, _write_key(self._directory / f"{name}.key", key)


def service_account_keys(directory: Path) -> tuple[Path, Path]:
    """Write the key pair that signs and verifies service-account tokens; return (private, public) paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = directory / "service-account.pub"
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return _write_key(directory / "service-account.key", key), public


def _builder(subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
    return builder.not_valid_before(now - _CLOCK_SKEW).not_valid_after(now + _VALID)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _address(host: str) -> x509.IPAddress:
    return x509.IPAddress(ipaddress.ip_address(host))
