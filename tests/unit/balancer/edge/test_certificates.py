"""Certificates read from files: what they are for, and the sentence for each that cannot be served."""

import os
import ssl
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.x509 import TLSFeatureType

from balancer.edge.certificates import (
    CertificateFile,
    TrustFile,
    calendar_time,
    parse_certificate,
    parse_revoked,
    parse_trust,
    read_certificate,
    server_context,
)
from tests.authority import DAY, Authority, key_pem, new_key

AUTHORITY = Authority()


def read(pem: bytes, now: float | None = None) -> CertificateFile:
    return read_certificate("/etc/x.pem", pem, calendar_time() if now is None else now)


def refusal(pem: bytes) -> str:
    with pytest.raises(ValueError) as refused:
        read(pem)
    return str(refused.value)


def test_names_type_of_key_and_dates() -> None:
    now = calendar_time()
    found = read(AUTHORITY.issue("A.example", "*.b.example", "192.0.2.1", key="RSA"))
    assert (found.names, found.key_type) == (("a.example", "*.b.example"), "RSA")
    assert found.not_before == pytest.approx(now - 86400, abs=60)
    assert found.not_after == pytest.approx(now + 30 * 86400, abs=60)
    assert read(AUTHORITY.issue("a.example")).key_type == "EC"
    assert read(AUTHORITY.issue(common_name="Old.example")).names == ("old.example",)


def test_the_first_certificate_counts_and_the_key_may_be_anywhere() -> None:
    key = new_key()
    chain = AUTHORITY.issue("a.example", key=key, with_key=False) + AUTHORITY.pem
    for pem in (chain + key_pem(key), key_pem(key) + chain, b"a remark\n" + chain + b"\n" + key_pem(key)):
        assert read(pem).names == ("a.example",)


@pytest.mark.parametrize(
    ("pem", "sentence"),
    [
        (b"", "/etc/x.pem holds no certificate in PEM"),
        (b"\x30\x82binary", "/etc/x.pem holds no certificate in PEM"),
        (AUTHORITY.issue("a", with_key=False), "/etc/x.pem holds no private key in PEM"),
        (AUTHORITY.issue("a", with_key=False) + key_pem(new_key()), "the key does not belong to the certificate"),
        (AUTHORITY.issue("a", with_key=False) + key_pem(new_key("RSA")), "does not belong to the certificate"),
        (AUTHORITY.issue("a", ends=-timedelta(hours=1)), "the certificate in /etc/x.pem has expired on 20"),
        (
            AUTHORITY.issue("a", features=(TLSFeatureType.status_request,)),
            "the certificate in /etc/x.pem demands a stapled OCSP answer",
        ),
        (AUTHORITY.issue("a", key=new_key("RSA", 1024)), "OpenSSL takes its key for too short"),
        (
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" + key_pem(new_key()),
            "the first certificate in /etc/x.pem cannot be read",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_served(pem: bytes, sentence: str) -> None:
    assert sentence in refusal(pem)


def test_an_encrypted_key_is_refused_and_asks_nobody() -> None:
    key = new_key()
    assert "is encrypted" in refusal(AUTHORITY.issue("a", key=key, with_key=False) + key_pem(key, b"secret"))


def test_it_expires_by_the_clock() -> None:
    found = read(AUTHORITY.issue("a.example"))
    assert read(found.pem, found.not_after - 1) == found
    with pytest.raises(ValueError, match="has expired"):
        read(found.pem, found.not_after)


def test_key_in_a_file_of_its_own_and_paths_with_blanks(tmp_path: Path) -> None:
    key = new_key()
    chain, secret = tmp_path / "full chain.pem", tmp_path / "key.pem"
    chain.write_bytes(AUTHORITY.issue("a.example", key=key, with_key=False))
    secret.write_bytes(key_pem(key))
    text = f'"{chain}" key={secret}'
    found = parse_certificate(text)
    assert (found.names, str(found)) == (("a.example",), text)
    assert parse_certificate(str(found)) == found


@pytest.mark.parametrize("text", ["", "a.pem b.pem", "a.pem key=b key=c", "a.pem other=b"])
def test_words_that_are_not_understood(text: str) -> None:
    with pytest.raises(ValueError, match="write FILE, or FILE key=FILE"):
        parse_certificate(text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read /nowhere/x\.pem: No such file or directory"):
        parse_certificate("/nowhere/x.pem")
    with pytest.raises(ValueError, match="Is a directory"):
        parse_trust(str(tmp_path))
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(ValueError, match="more than 1 MB"):
        parse_trust(str(big))


def test_what_was_read_is_loaded_whatever_the_file_is_by_then(tmp_path: Path) -> None:
    path = tmp_path / "x.pem"
    path.write_bytes(AUTHORITY.issue("a.example"))
    found = parse_certificate(str(path))
    path.unlink()
    before = sorted(os.listdir("/proc/self/fd"))
    found.load_into(server_context())
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_authorities_and_revocation_lists(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(AUTHORITY.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found = parse_trust(str(path))
    found.load_into(context)
    assert isinstance(found, TrustFile) and context.cert_store_stats()["x509_ca"] == 1
    with pytest.raises(ValueError, match="holds no revocation list"):
        parse_revoked(str(path))
    path.write_bytes(AUTHORITY.revocations())
    assert parse_revoked(str(path)).path == str(path)
    with pytest.raises(ValueError, match="holds no certificate"):
        parse_trust(str(path))


def test_no_secret_in_what_a_log_could_show() -> None:
    found = read(AUTHORITY.issue("a.example", ends=400 * DAY))
    assert "PRIVATE" not in repr(found) + str(found)
