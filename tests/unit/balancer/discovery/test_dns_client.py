"""What is read of the replies of name servers, and that none of them raises anything but what is caught."""

import dns.message
import dns.rrset
import pytest

from balancer.discovery.answers import ServiceRecord
from balancer.discovery.dns_client import read_message


def reply(
    kind: str, *answers: tuple[str, str, str, str], extra: tuple[tuple[str, str, str, str], ...] = ()
) -> bytes:
    """A reply to a question for web.test. Records are (name, class, type, data)."""
    response = dns.message.make_response(dns.message.make_query("web.test.", kind))
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
