"""The contexts of a listener: which one a name gets, what a change does to tickets, and two ways round a certificate."""

import ssl
from collections.abc import Sequence

import pytest

from balancer.edge.certificates import CertificateFile, TrustFile, read_certificate
from balancer.edge.tls import (
    TICKETS_LAST,
    ContextTable,
    ListenerTls,
    ServerContexts,
    make_context,
    parse_ciphers,
    parse_protocol,
    parse_tls_name,
)
from tests.authority import Authority
from tests.unit.balancer.edge.handshakes import client_context, shake_hands

AUTHORITY = Authority()
CLIENTS = Authority("Authority of clients")
TRUST = TrustFile("clients.pem", CLIENTS.pem)


def file_for(*names: str, key: str = "EC") -> CertificateFile:
    return read_certificate(f"{names[0]}.pem", AUTHORITY.issue(*names, key=key), 0.0)


A, WILD, OTHER = file_for("a.example"), file_for("*.b.example", "b.example"), file_for("x.b.example")
A_RSA = file_for("a.example", "c.example", key="RSA")


def names(settings: ListenerTls, files: Sequence[CertificateFile]) -> tuple[str, ...]:
    return tuple(file.path for file in files)


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("", ("a.example.pem", "a.example.pem")),
        ("a.example", ("a.example.pem", "a.example.pem")),
        ("unknown.example", ("a.example.pem", "a.example.pem")),
        ("c.example", ("a.example.pem",)),
        ("b.example", ("*.b.example.pem",)),
        ("y.b.example", ("*.b.example.pem",)),
        ("x.b.example", ("x.b.example.pem",)),
        ("x.y.b.example", ("a.example.pem", "a.example.pem")),  # a wildcard is for one label
    ],
)
def test_exact_name_then_wildcard_of_the_parent_then_the_first(name: str, paths: tuple[str, ...]) -> None:
    table = ContextTable(ListenerTls(tls_cert=(A, WILD, OTHER, A_RSA)), names)
    assert table.choose(name) == paths


def test_of_two_files_for_a_name_and_type_of_key_the_first_counts() -> None:
    table = ContextTable(ListenerTls(tls_cert=(A, file_for("a.example", "d.example"))), names)
    assert table.choose("a.example") == ("a.example.pem",)
    assert len(table.contexts) == 2


def test_a_file_without_names_can_be_the_first() -> None:
    nameless = CertificateFile("nameless.pem", "nameless.pem", b"")
    assert ContextTable(ListenerTls(tls_cert=(nameless, A)), names).choose("z") == ("nameless.pem",)


def test_clients_get_the_type_of_key_that_they_can_read() -> None:
    table = ContextTable(ListenerTls(tls_cert=(A, A_RSA)), make_context)
    for ciphers, kind in (("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDSA"), ("ECDHE-RSA-AES128-GCM-SHA256", "RSA")):
        client = client_context(AUTHORITY)
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        client.set_ciphers(ciphers)
        found = shake_hands(table.choose("a.example"), client, "a.example").client.cipher()
        assert found is not None and kind in found[0]


def test_versions_alpn_and_ciphers() -> None:
    context = make_context(ListenerTls(tls_cert=(A,), tls_min="1.3", tls_alpn=("h2", "http/1.1")), [A])
    client = client_context(AUTHORITY)
    client.set_alpn_protocols(["http/1.1", "h2"])
    made = shake_hands(context, client, "a.example")
    assert (made.server.version(), made.server.selected_alpn_protocol()) == ("TLSv1.3", "h2")
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"UNSUPPORTED_PROTOCOL|PROTOCOL_VERSION"):
        shake_hands(context, client, "a.example")
    context = make_context(ListenerTls(tls_cert=(A,), tls_ciphers="ECDHE-ECDSA-CHACHA20-POLY1305"), [A])
    found = shake_hands(context, client, "a.example").client.cipher()
    assert found is not None and "CHACHA20" in found[0]
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_texts_of_options() -> None:
    with pytest.raises(ValueError, match="selects no cipher"):
        parse_ciphers("NONESUCH")
    assert parse_ciphers("") == "" and parse_ciphers("ECDHE+AESGCM") == "ECDHE+AESGCM"
    for wrong in ("", "h 2", "x" * 256, "ü"):
        with pytest.raises(ValueError, match="no protocol name"):
            parse_protocol(wrong)


def clients(required: str = "required", **more: object) -> ListenerTls:
    return ListenerTls(tls_cert=(A,), tls_client_ca=TRUST, tls_client=required, **more)  # type: ignore[arg-type]


def test_client_certificates() -> None:
    known, unknown = client_context(AUTHORITY, CLIENTS), client_context(AUTHORITY, AUTHORITY)
    nobody = client_context(AUTHORITY)
    required, optional = make_context(clients(), [A]), make_context(clients("optional"), [A])
    for context in (required, optional):
        peer = shake_hands(context, known, "a.example").server.getpeercert()
        assert peer is not None and peer["subject"] == ((("commonName", "client"),),)
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
            shake_hands(context, unknown, "a.example")
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake_hands(required, nobody, "a.example")
    assert not shake_hands(optional, nobody, "a.example").server.getpeercert()


def test_revoked_client_certificates() -> None:
    good, revoked = client_context(AUTHORITY, CLIENTS, "good"), client_context(AUTHORITY, CLIENTS, "revoked")
    CLIENTS.revoked.append(CLIENTS.serials["revoked"])
    lists = TrustFile("crl.pem", CLIENTS.revocations())
    context = make_context(clients(tls_client_crl=lists), [A])
    shake_hands(context, good, "a.example")
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake_hands(context, revoked, "a.example")


# Two ways round a client certificate: each test shows the naive form first, so that it is known to be one.


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_context_exchanged_in_the_handshake_lets_clients_in_and_one_chosen_before_does_not(
    version: ssl.TLSVersion,
) -> None:
    table = ContextTable(clients(), make_context)
    nobody = client_context(AUTHORITY)
    nobody.maximum_version = version
    naive = make_context(ListenerTls(tls_cert=(A,)), [A])

    def exchange(tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        tls.context = table.choose(name or "")

    naive.sni_callback = exchange  # type: ignore[assignment]
    assert not shake_hands(naive, nobody, "a.example").server.getpeercert(), (
        "the naive form is no bypass any more"
    )
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake_hands(table.choose("a.example"), nobody, "a.example")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_old_tickets_do_not_outlive_a_change_of_trust(version: ssl.TLSVersion) -> None:
    contexts = ServerContexts(lambda: 0.0)
    nobody = client_context(AUTHORITY)
    nobody.maximum_version = version
    open_to_all = ListenerTls(tls_cert=(A,))
    before = contexts.tables([("web", open_to_all)], 1)["web"].default
    ticket = shake_hands(before, nobody, "a.example").client.session
    assert shake_hands(before, nobody, "a.example", ticket).server.session_reused
    after = contexts.tables([("web", clients())], 1)["web"].default
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake_hands(after, nobody, "a.example", ticket)
    # the naive form: the same context, told to verify
    TRUST.load_into(before)
    before.verify_mode = ssl.CERT_REQUIRED
    assert shake_hands(before, nobody, "a.example", ticket).server.session_reused, "no bypass any more"


@pytest.mark.parametrize(
    "change",
    [
        {"tls_client_ca": TRUST},
        {"tls_client_ca": TRUST, "tls_client": "optional"},
        {"tls_client_ca": TRUST, "tls_client_crl": TrustFile("c", CLIENTS.revocations())},
        {"tls_client_ca": TrustFile("clients.pem", AUTHORITY.pem)},
        {"tls_min": "1.3"},
        {"tls_cert": (A, WILD)},
        {"tls_alpn": ("h2",)},
    ],
)
def test_every_change_makes_new_contexts(change: dict[str, object]) -> None:
    contexts = ServerContexts(lambda: 0.0)
    before = contexts.tables([("web", ListenerTls(tls_cert=(A,)))], 1)["web"]
    after = contexts.tables([("web", ListenerTls(**{"tls_cert": (A,), **change}))], 1)["web"]  # type: ignore[arg-type]
    assert after is not before and not set(after.contexts) & set(before.contexts)


@pytest.mark.parametrize("name", ["", "a.example", "A_1.example.", "127.0.0.1", "2001:db8::1", "::1"])
def test_names_to_verify_by(name: str) -> None:
    assert parse_tls_name(name) == name


@pytest.mark.parametrize(
    "name", [".example", "a..b", f"{'a' * 64}.example", "*.example", "a b", "a:443", "[::1]", "."]
)
def test_names_that_openssl_would_refuse_at_each_connect(name: str) -> None:
    with pytest.raises(ValueError, match="no host name"):
        parse_tls_name(name)


def test_equal_settings_keep_their_contexts_for_a_day_and_no_longer() -> None:
    time = [0.0]
    contexts = ServerContexts(lambda: time[0])
    settings = ListenerTls(tls_cert=(A,))
    equal = ListenerTls(tls_cert=(A,), tls_handshake_timeout=1.0)
    first = contexts.tables([("web", settings), ("plain", ListenerTls())], 1)
    assert list(first) == ["web"]
    time[0] = TICKETS_LAST - 1
    assert contexts.tables([("web", equal)], 1)["web"] is first["web"]
    time[0] = TICKETS_LAST
    assert contexts.tables([("web", equal)], 1)["web"] is not first["web"]
