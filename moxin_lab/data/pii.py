"""Personal data and secrets in text: e-mail addresses, public IP addresses, keys and tokens.

Each find is checked before it is replaced: an IP address must be globally routable, an e-mail
address must have a domain with a top level of letters, a JSON web token must decode.

Guarantees: `replace` is a pure function; a second run changes nothing; private, loopback,
link-local and documentation addresses stay, and so do versions of fewer or more than four numbers;
time is linear in the text.
Out of scope: names, telephone numbers, postal addresses, addresses written out ("at", "dot"), and
secrets without a known format. A version or section of four numbers that is also a public address
(`8.1.2.3`) is replaced unless a word for it stands before. `git@github.com` is replaced too.
"""

import base64
import binascii
import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

EMAIL = "<EMAIL>"
IP_ADDRESS = "<IP_ADDRESS>"
SECRET = "<SECRET>"

# Patterns begin with what `re` finds fast, and look back from there; see `_emails` and `_ipv6`.
_DOMAIN = re.compile(
    r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.)+(?:xn--[A-Za-z0-9-]{2,59}|[A-Za-z]{2,24})"
    r"(?![A-Za-z0-9-])"
)
_MAX_LOCAL = 64
_EMAIL = re.compile(
    rf"(?<![A-Za-z0-9_])[A-Za-z0-9_](?:[A-Za-z0-9._%+'-]{{0,{_MAX_LOCAL - 1}}}){_DOMAIN.pattern}"
)
_IPV4 = re.compile(
    r"\d(?<![\d.A-Za-z_-]\d)\d{0,2}\.(?:\d{1,3}\.){2}\d{1,3}(?!\.?\d)(?![A-Za-z_]|\.in-addr)"
)
_IPV6 = re.compile(
    r"(?<![A-Za-z0-9_.])(?=::|[0-9A-Fa-f])(?:[0-9A-Fa-f]{0,4}:){2,7}"
    r"(?:[0-9A-Fa-f]{1,4}|(?<=::))(?!:?[A-Za-z0-9_])"
)
# Slices and types (`a::2`, `DB::DB`) read as IPv6 too; IANA assigns unicast addresses in 2000::/3.
_UNICAST = ipaddress.ip_network("2000::/3")
_UNICAST_START = re.compile(r"[23](?<![A-Za-z0-9_.][23])[0-9A-Fa-f]{3}:[0-9A-Fa-f:]")
_VERSION = re.compile(
    r"(?:versions?|releases?|revision|\bver\b|\bv|版本|バージョン|버전"
    r"|sections?|§|clause|chapter|appendix|\bspec|specification)[\s:=.'\"(]*$"
    r"|==$|[A-Za-z]/$",
    re.I,
)

# Formats as the issuers document them: what a key begins with, and a pattern of the rest.
_SECRETS = (
    ("AKIA", r"[A-Z2-7]{16}(?![A-Za-z0-9])"),  # AWS access key id
    ("ASIA", r"[A-Z2-7]{16}(?![A-Za-z0-9])"),  # AWS, temporary
    *((f"gh{kind}_", r"[A-Za-z0-9]{36,255}(?![A-Za-z0-9])") for kind in "pousr"),  # GitHub
    ("github_pat_", r"[A-Za-z0-9_]{82}(?![A-Za-z0-9_])"),  # GitHub, fine-grained
    ("glpat-", r"[A-Za-z0-9_-]{20,}"),  # GitLab
    ("xox", r"[abprs]-[A-Za-z0-9-]{10,}"),  # Slack
    ("AIza", r"[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),  # Google API
    ("GOCSPX-", r"[A-Za-z0-9_-]{28}(?![A-Za-z0-9_-])"),  # Google OAuth client
    ("sk_", r"(?:live|test)_[A-Za-z0-9]{24,}"),  # Stripe
    ("rk_", r"(?:live|test)_[A-Za-z0-9]{24,}"),  # Stripe, restricted
    ("hf_", r"[A-Za-z0-9]{34,40}(?![A-Za-z0-9])"),  # Hugging Face
    ("npm_", r"[A-Za-z0-9]{36}(?![A-Za-z0-9])"),  # npm
    ("pypi-AgE", r"[A-Za-z0-9_-]{50,}"),  # PyPI
    ("sk-", r"[A-Za-z0-9_-]{32,}"),  # OpenAI, Anthropic
    ("SG.", r"[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])"),  # SendGrid
    ("dop_v1_", r"[a-f0-9]{64}(?![a-f0-9])"),  # DigitalOcean
)


def _key(start: str, rest: str) -> re.Pattern[str]:
    """A key that no letter or digit precedes; the literal comes first, which `re` finds fast."""
    start = re.escape(start)
    return re.compile(f"{start}(?<![A-Za-z0-9]{start}){rest}")


# With the line breaks of JSON (`\\n`), and without its end where a page cuts it.
_PRIVATE_KEY = re.compile(
    r"-----BEGIN ((?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?)-----"
    r"(?:(?:[A-Za-z0-9+/=\s:,.()\\]|-(?!----))*-----END \1-----"
    r"|(?:(?:\s|\\n)+[A-Za-z0-9+/]{32,}={0,2})+)"
)
_JWT = re.compile(
    r"(?<![A-Za-z0-9_.-])eyJ[A-Za-z0-9_-]+\.eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{16,}(?![A-Za-z0-9_-])"
)


def replace(text: str) -> tuple[str, Counter[str]]:
    """The text with personal data replaced by `EMAIL`, `IP_ADDRESS` and `SECRET`, and how often."""
    counts: Counter[str] = Counter()
    before = -1
    # A find that ran into its neighbour shows only after the neighbour was replaced.
    while counts.total() != before:
        before = counts.total()
        for needed, find, placeholder, valid in _KINDS:
            if needed in text:
                text = _substitute(text, find(text), placeholder, valid, counts)
    return text, counts


def _substitute(
    text: str,
    found: Iterable[re.Match[str]],
    placeholder: str,
    valid: Callable[[re.Match[str]], bool],
    counts: Counter[str],
) -> str:
    parts, end = [], 0
    for match in filter(valid, found):
        parts += [text[end : match.start()], placeholder]
        end = match.end()
        counts[placeholder] += 1
    return "".join([*parts, text[end:]]) if parts else text


def _emails(text: str) -> Iterator[re.Match[str]]:
    """`_EMAIL.finditer(text)`, looking only before domains."""
    end = 0
    for domain in _DOMAIN.finditer(text):
        if domain.start() >= end:
            match = _EMAIL.search(text, max(end, domain.start() - _MAX_LOCAL))
            if match is None:
                return
            yield match
            end = match.end()


def _ipv6(text: str) -> Iterator[re.Match[str]]:
    """`_IPV6.finditer(text)`; nothing where no address can be public."""
    return _IPV6.finditer(text) if _UNICAST_START.search(text) else iter(())


def _always(match: re.Match[str]) -> bool:
    return bool(match)


def _is_email(match: re.Match[str]) -> bool:
    local, _, domain = match.group().partition("@")
    return ".." not in local and not local.endswith(".") and len(domain) <= 253


def _is_public(match: re.Match[str]) -> bool:
    """Globally routable (IANA's registries), and not called a version just before."""
    try:
        address = ipaddress.ip_address(match.group())
    except ValueError:
        return False
    if address.version == 6 and address not in _UNICAST:
        return False
    before = match.string[max(0, match.start() - 20) : match.start()]
    return address.is_global and not address.is_multicast and not _VERSION.search(before)


def _is_varied(match: re.Match[str]) -> bool:
    """A run of the same few characters (`ghp_xxxx...`) is an example, not a key; a name without a
    capital (`sk-estimator-doc-link-...`) is a class of a style sheet.
    """
    found = match.group()
    return len(set(found)) >= 10 and not (found.startswith("sk-") and found.islower())


def _is_web_token(match: re.Match[str]) -> bool:
    """The header of a JSON web token is a JSON object that names an algorithm (RFC 7519)."""
    header = match.group().split(".")[0]
    try:
        parsed = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    except (binascii.Error, ValueError):
        return False
    return isinstance(parsed, dict) and "alg" in parsed


# A string that every find has, how they are found, the placeholder and the check.
_KINDS: tuple[tuple[str, Callable[[str], Iterator[re.Match[str]]], str, Any], ...] = (
    ("-----BEGIN ", _PRIVATE_KEY.finditer, SECRET, _always),
    ("eyJ", _JWT.finditer, SECRET, _is_web_token),
    *((start, _key(start, rest).finditer, SECRET, _is_varied) for start, rest in _SECRETS),
    ("@", _emails, EMAIL, _is_email),
    (".", _IPV4.finditer, IP_ADDRESS, _is_public),
    (":", _ipv6, IP_ADDRESS, _is_public),
)
