"""Personal data is replaced; what only looks like it stays."""

import base64
import string
import time
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moxin_lab.data import pii
from moxin_lab.data.pii import EMAIL, IP_ADDRESS, SECRET, replace

PIECES = [
    "a@b.com",
    "@",
    ".com",
    "x",
    "é",
    " ",
    "-",
    "%+",
    "_" * 70,
    "@x.org",
    "2606:4700:4700::1111",
]
PIECES += ["2606:4700:4700::1111", "2", "3fff:", "::1", ":", "2001:db8::", "dead:beef", "."]
_ALNUM = string.ascii_letters + string.digits
_LONG = (_ALNUM * 3)[:82]
_HEADER = base64.urlsafe_b64encode(b'{"alg":"HS256"}').decode().rstrip("=")
# Joined from parts, so that no scanner takes this file for a leak.
PLANTED = {
    "jane.doe+list@mail.example.co.uk": EMAIL,
    "o'neil_7@sub-domain.org": EMAIL,
    "8.8.4.4": IP_ADDRESS,
    "93.184.216.34": IP_ADDRESS,
    "2606:4700:4700::1111": IP_ADDRESS,
    "AKIA" + "QWERTYUIOPASDFGH": SECRET,
    "ghp_" + _LONG[:36]: SECRET,
    "github_pat_" + _LONG: SECRET,
    "user@xn--e1afmkfd.xn--p1ai": EMAIL,
    "2001:4860:4860:0:0:0:0:8888": IP_ADDRESS,
    "sk_test_" + _LONG[:24]: SECRET,
    "sk-ant-" + "api03-" + _LONG[:60]: SECRET,
    "GOCSPX-" + _LONG[:28]: SECRET,
    "SG." + _LONG[:22] + "." + _LONG[:43]: SECRET,
    "dop_v1_" + "0123456789abcdef" * 4: SECRET,
    "-----BEGIN " + f"PRIVATE KEY-----\\n{_LONG}\\n-----END " + "PRIVATE KEY-----": SECRET,
    "-----BEGIN EC " + f"PRIVATE KEY-----\n{_LONG[:64]}\n{_LONG[:40]}==": SECRET,
    "glpat-" + _LONG[:20]: SECRET,
    "xoxb-" + "1234567890-abcdefGHIJ": SECRET,
    "AIza" + _LONG[:35]: SECRET,
    "sk_live_" + _LONG[:24]: SECRET,
    "hf_" + _LONG[:34]: SECRET,
    "npm_" + _LONG[:36]: SECRET,
    "pypi-AgE" + _LONG[:60]: SECRET,
    "sk-proj-" + _LONG[:48]: SECRET,
    f"{_HEADER}.eyJzdWIiOiIxIn0.{_LONG[:30]}": SECRET,
    "-----BEGIN RSA " + f"PRIVATE KEY-----\n{_LONG}\n-----END RSA " + "PRIVATE KEY-----": SECRET,
}


@pytest.mark.parametrize("planted", PLANTED)
@pytest.mark.parametrize(
    "frame",
    [
        "{}",
        "see {}, or",
        "<{}>",
        "宛先は{}です",
        "({}).",
        "a\n{}\nb",
        "mail={}",
        "'{}'",
        "`{}`",
        "{}: it",
        "地址:{}；",
        "[{}]",
    ],
)
def test_no_planted_value_survives(planted: str, frame: str) -> None:
    edited, counts = replace(frame.format(planted))
    assert edited == frame.format(PLANTED[planted])
    assert counts == {PLANTED[planted]: 1}


@pytest.mark.parametrize(
    "harmless",
    [
        "127.0.0.1 10.0.0.1 192.168.1.1 172.16.0.9 169.254.1.1 203.0.113.7 0.0.0.0 255.255.255.0",
        "version 7.4.7.2, Version: 8.8.4.4, v93.184.216.34, 版本 8.8.4.4, libfoo-8.8.4.4",
        "novas==3.1.1.3, Firefox/2.0.0.11, 1.0.0.127.in-addr.arpa",
        "1.2.3 and 1.2.3.4.5 and 999.1.1.1",
        "::1 fe80::1 2001:db8::1 std::vector 12:30:45",
        "x[::2] y[1::2] a::b DB::DB f:: r::4 iso::de F2::",
        'Section 15.12.2.5, section "13.2.5.8 Tag name", the specs sections "8.2.4.44 Bogus"',
        "class sk-top-container-estimator-doc-link-fitted-2 and sk-estimator-doc-link-fitted-wide",
        "@decorator user@host a@b.1 git@",
        "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    ],
)
def test_lookalikes_stay(harmless: str) -> None:
    assert replace(harmless) == (harmless, {})


@given(st.ip_addresses())
def test_an_address_is_replaced_exactly_if_it_is_public(address: object) -> None:
    public = address.is_global and not address.is_multicast  # type: ignore[attr-defined]
    if address.version == 6:  # type: ignore[attr-defined]
        public = public and address in ip_network("2000::/3")
    assert replace(f"at {address} .")[0] == f"at {IP_ADDRESS if public else address} ."


@given(st.lists(st.sampled_from([*PLANTED, " ", "\n", "@", ".", "x", "1", "漢"]), max_size=8))
def test_a_second_run_changes_nothing(parts: list[str]) -> None:
    edited, _ = replace("".join(parts))
    assert replace(edited)[0] == edited


@pytest.mark.parametrize("part", ["-----BEGIN PRIVATE KEY-----\n", "a@", "a.", "1:", "eyJ.", "sk-"])
def test_time_is_linear(part: str) -> None:
    def seconds(times: int) -> float:
        start = time.process_time()
        replace(part * times)
        return time.process_time() - start

    seconds(100)
    # sixteen times the text; quadratic time would be 256 times as long
    assert seconds(32_000) < 60 * max(seconds(2_000), 0.001)


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_a_search_from_domains_finds_the_addresses_that_a_search_of_all_text_does(
    text: str,
) -> None:
    every, near = (list(found) for found in (pii._EMAIL.finditer(text), pii._emails(text)))
    assert [match.span() for match in near] == [match.span() for match in every]
    public = [match.span() for match in pii._IPV6.finditer(text) if pii._is_public(match)]
    assert [match.span() for match in pii._ipv6(text) if pii._is_public(match)] == public
