"""What is read of the replies of name servers, and that none of them raises anything but what is caught."""

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from balancer.discovery.answers import ServiceRecord
from balancer.discovery.dns_client import is_cut, read_message


def reply(
    kind: str,
    *answers: tuple[str, str, str, str],
    extra: tuple[tuple[str, str, str, str], ...] = (),
    rcode: int = 0,
) -> bytes:
    """A reply to a question for web.test. Records are (name, class, type, data)."""
    response = dns.message.make_response(dns.message.make_query("web.test.", kind))
    response.set_rcode(dns.rcode.Rcode.make(rcode))
    for section, records in ((response.answer, answers), (response.additional, extra)):
        for name, of_class, of_kind, data in records:
            section.append(dns.rrset.from_text(name, 5, of_class, of_kind, data))
    return response.to_wire()


SERVICE = ("Web.TEST.", "IN", "SRV", "0 1 80 Host.Test.")


@pytest.mark.parametrize(
    "stranger", [("host.test.", "CH", "A", "x. 16"), ("host.test.", "CLASS999", "AAAA", r"\# 4 01020304")]
)
def test_addresses_of_other_classes_are_none(stranger: tuple[str, str, str, str]) -> None:
    data = reply("SRV", SERVICE, extra=(stranger, ("HOST.test.", "IN", "A", "10.0.0.1")))
    found = read_message(dns.message.from_wire(data), "10.0.0.53")
    assert found.services == (ServiceRecord(0, 1, 80, "host.test"),)
    assert found.extra == {"host.test": ("10.0.0.1",)}


def test_an_alias_of_another_case_is_followed() -> None:
    data = reply("A", ("WEB.test.", "IN", "CNAME", "A.test."), ("a.TEST.", "IN", "A", "10.0.0.1"))
    assert read_message(dns.message.from_wire(data), "").addresses == ("10.0.0.1",)


def alias(name: str, target: str) -> tuple[str, str, str, str]:
    return name, "IN", "CNAME", target


HOST = ("a.test.", "IN", "A", "10.0.0.1")


@pytest.mark.parametrize(
    "answers, rcode, error",
    [
        ([HOST, alias("web.test.", "a.test.")], 0, ""),
        ([alias("web.test.", "b.test."), alias("b.test.", "a.test."), HOST], 0, ""),
        ([alias("web.test.", "a.test.")], 0, "NODATA"),
        ([alias("web.test.", "a.test.")], 3, "NXDOMAIN"),
        ([HOST], 0, "NODATA"),
        ([], 0, "NODATA"),
        ([], 3, "NXDOMAIN"),
        ([], 2, "SERVFAIL"),
        ([alias("web.test.", "web.test.")], 0, "FORMERR"),
        ([alias("web.test.", "a.test."), alias("a.test.", "web.test.")], 0, "FORMERR"),
        ([alias("web.test.", "a.test."), HOST], 3, "FORMERR"),
    ],
)
def test_what_aliases_lead_to(answers: list[tuple[str, str, str, str]], rcode: int, error: str) -> None:
    found = read_message(dns.message.from_wire(reply("A", *answers, rcode=rcode)), "10.0.0.53")
    assert (found.error, found.addresses) == (error, () if error else ("10.0.0.1",))


def test_a_ttl_below_0_is_0() -> None:
    data = reply("A", ("web.test.", "IN", "A", "10.0.0.1"))
    at = data.rindex((5).to_bytes(4, "big"))
    for ttl in (0x80000000, 0xFFFFFFFF, 0):
        changed = data[:at] + ttl.to_bytes(4, "big") + data[at + 4 :]
        assert read_message(dns.message.from_wire(changed), "").ttl == 0.0


def test_an_answer_is_cut_when_its_head_says_so_wherever_it_ends() -> None:
    query = dns.message.make_query("web.test.", "A")
    response = dns.message.make_response(query)
    response.answer.append(dns.rrset.from_text("web.test.", 5, "IN", "A", "10.0.0.1", "10.0.0.2"))
    whole = response.to_wire()
    response.flags |= dns.flags.TC
    cut = response.to_wire()
    for size in range(len(cut) + 1):
        assert is_cut(cut[:size], query.to_wire()) == (size >= 12)
        assert not is_cut(whole[:size], query.to_wire())
    assert not is_cut(cut, dns.message.make_query("web.test.", "A", id=query.id ^ 1).to_wire())
    query.flags |= dns.flags.TC
    assert not is_cut(query.to_wire(), query.to_wire())
