"""Certificates: a small CA for a test or private federation, and checks of anybody's.

EC P-384 and SHA-384. The CA signs server certificates of `DAYS` days; agencies are given `ca.crt` and nothing
else. The SuperLink has a CA of its own for the hop on the loopback, which no agency ever sees.
"""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from experiments.coordinator.folder import CoordinatorError, Folder, write_whole

DAYS = 397  # what clients accept of a server's certificate
CA_DAYS = 3652
RENEW_DAYS = 30
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def make_ca(folder: Folder, name: str, common_name: str) -> None:
    """`tls/NAME.key` (mode 0600) and `tls/NAME.crt`: a CA that signs servers and nothing else."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])
    certificate = (
        _builder(subject, subject, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA384())
    )
    _keep(folder, name, key, certificate, chain=())


def issue(folder: Folder, ca: str, name: str, hosts: Sequence[str], *, days: int = DAYS) -> None:
    """`tls/NAME.key` and `tls/NAME.crt`, signed by `ca` for `hosts` (names or addresses), with the CA behind it."""
    signer = load_pem_private_key(folder.at(f"tls/{ca}.key").read_bytes(), password=None)
    issuer = x509.load_pem_x509_certificate(folder.at(f"tls/{ca}.crt").read_bytes())
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise CoordinatorError(f"tls/{ca}.key is not the key that `init` made: put it back")
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    names = x509.SubjectAlternativeName([_alternative(host) for host in dict.fromkeys(hosts)])
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(subject, issuer.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(names, critical=False)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        .sign(signer, SHA384())
    )
    _keep(folder, name, key, certificate, chain=(issuer,))


def make_all(folder: Folder, host: str, *, server: bool) -> None:
    """The loopback's CA and certificate, and with `server` those that agencies meet."""
    make_ca(folder, "loopback-ca", "fedrisk coordinator, loopback")
    issue(folder, "loopback-ca", "loopback", LOOPBACK, days=CA_DAYS)
    folder.at("tls/loopback-ca.key").unlink()  # it has signed all that it ever will
    if server:
        make_ca(folder, "ca", f"fedrisk federation at {host}")
        issue(folder, "ca", "server", (host.strip("[]"), *LOOPBACK))


def renew(folder: Folder, host: str, certificate: Path) -> bool:
    """Sign the server's certificate again when fewer than `RENEW_DAYS` are left and the CA is ours; says if it did."""
    ours = certificate == folder.at("tls/server.crt") and folder.at("tls/ca.key").exists()
    if not ours or days_left(read(certificate)[0]) >= RENEW_DAYS:
        return False
    issue(folder, "ca", "server", (host.strip("[]"), *LOOPBACK))
    return True


def read(path: Path) -> list[x509.Certificate]:
    """The certificates in `path`, the server's first."""
    try:
        return list(x509.load_pem_x509_certificates(path.read_bytes()))
    except FileNotFoundError:
        raise CoordinatorError(f"certificate {path} is missing: say where it is, or run init again") from None
    except (OSError, ValueError):
        raise CoordinatorError(
            f"certificate {path} is no certificate in PEM that this user may read"
        ) from None


def days_left(certificate: x509.Certificate) -> float:
    """Until it expires; negative once it has."""
    return (certificate.not_valid_after_utc - datetime.now(UTC)) / timedelta(days=1)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate, as `openssl x509 -fingerprint -sha256` prints it."""
    return certificate.fingerprint(SHA256()).hex(":").upper()


def problems(certificate: Path, key: Path, ca: Path | None, host: str) -> list[str]:
    """Each reason why agencies would refuse, or nginx could not use, this certificate; none is well."""
    found = []
    chain = read(certificate)
    leaf = chain[0]
    try:
        private = load_pem_private_key(key.read_bytes(), password=None)
        same = _spki(private.public_key()) == _spki(leaf.public_key())
    except FileNotFoundError:
        return [f"key {key} is missing"]
    except (OSError, ValueError, TypeError):
        return [f"key {key} is no private key in PEM without a passphrase that this user may read"]
    if not same:
        found.append(f"key {key} does not belong to certificate {certificate}")
    if days_left(leaf) <= 0:
        found.append(f"certificate {certificate} expired on {leaf.not_valid_after_utc:%Y-%m-%d}: renew it")
    if leaf.not_valid_before_utc > datetime.now(UTC):
        found.append(
            f"certificate {certificate} is valid only from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        )
    if not _covers(leaf, host.strip("[]")):
        found.append(f"certificate {certificate} is not for {host}: its subjectAltName must name it")
    if ca is not None and not _leads_to(chain, read(ca)):
        found.append(f"certificate {certificate} is not signed by {ca}, which agencies are given")
    return found


def _covers(certificate: x509.Certificate, host: str) -> bool:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return False
    try:
        return ipaddress.ip_address(host) in names.get_values_for_type(x509.IPAddress)
    except ValueError:
        pass
    known = [name.lower() for name in names.get_values_for_type(x509.DNSName)]
    return host.lower() in known or f"*.{host.lower().partition('.')[2]}" in known


def _leads_to(chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]) -> bool:
    """Whether each certificate is signed by the next, and one of them by a root (or is one)."""
    for number, certificate in enumerate(chain):
        if certificate in roots or any(_signed_by(certificate, root) for root in roots):
            return True
        if number + 1 < len(chain) and not _signed_by(certificate, chain[number + 1]):
            return False
    return False


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _spki(key: object) -> bytes:
    data: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return data


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=10))  # agencies' clocks differ
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _keep(
    folder: Folder,
    name: str,
    key: ec.EllipticCurvePrivateKey,
    certificate: x509.Certificate,
    chain: Sequence[x509.Certificate],
) -> None:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_whole(folder.at(f"tls/{name}.key"), pem, mode=0o600)
    certificates = b"".join(each.public_bytes(Encoding.PEM) for each in (certificate, *chain))
    write_whole(folder.at(f"tls/{name}.crt"), certificates, mode=0o644)
