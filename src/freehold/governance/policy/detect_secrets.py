"""What opens doors: private keys, tokens of known forms, passwords in addresses."""

from __future__ import annotations

import re
from collections.abc import Iterator

from freehold.governance.policy.detector import Detector

_PRIVATE_KEY = re.compile(r"-----BEGIN[A-Z0-9\s]{0,24}\sPRIVATE\s+KEY(?:\s+BLOCK)?-----|PuTTY-User-Key-File-[23]:")

# The beginning that its maker gave to a kind of tokens -> its form. Most beginnings are found wherever they stand, also
# where a word runs on into them; the short one is a part of words.
_FORMS = (
    (("gh",), r"gh[pousr]_[A-Za-z0-9]{36,251}"),  # GitHub
    (("github_pat_",), r"github_pat_[A-Za-z0-9_]{22,255}"),
    (("gl",), r"gl(?:pat|ptt|dt|rt|oas|cbt|agent)-[A-Za-z0-9_.-]{20,64}"),  # GitLab
    (("AKIA", "ASIA", "ABIA", "ACCA"), r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}(?![A-Za-z0-9])"),  # AWS
    # Anthropic, OpenAI, and those who took its form
    (("sk-",), r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{20,230}|sk-(?:ant|proj|svcacct|admin|or-v1)-[A-Za-z0-9_-]{20,220}"),
    (("k_live_", "k_test_"), r"(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,120}"),  # Stripe
    (("AIza",), r"AIza[A-Za-z0-9_-]{35}"),  # Google
    (("ya29.",), r"ya29\.[A-Za-z0-9_-]{20,400}"),
    (("GOCSPX-",), r"GOCSPX-[A-Za-z0-9_-]{28}"),
    (("xox",), r"xox[abeoprs]-[A-Za-z0-9-]{10,250}"),  # Slack
    (("xapp-",), r"xapp-[0-9]-[A-Z0-9]{1,64}-[0-9]{1,64}-[a-z0-9]{20,128}"),
    (("hf_",), r"hf_[A-Za-z0-9]{30,64}"),  # Hugging Face
    (("npm_",), r"npm_[A-Za-z0-9]{36}"),
    (("pypi-AgEI",), r"pypi-AgEI[A-Za-z0-9_-]{50,300}"),
    (("dop_v1_",), r"dop_v1_[a-f0-9]{64}"),  # DigitalOcean
    (("SG.",), r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{32,64}"),  # SendGrid
    (("shp",), r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}"),  # Shopify
    (("dapi",), r"dapi[a-f0-9]{32}"),  # Databricks
    (("hvs.",), r"hvs\.[A-Za-z0-9_-]{24,200}"),  # Vault
    (("glsa_",), r"glsa_[A-Za-z0-9]{32}_[a-fA-F0-9]{8}"),  # Grafana
    (("lin_api_",), r"lin_api_[A-Za-z0-9]{40}"),
    (("AGE-SECRET-KEY-1",), r"AGE-SECRET-KEY-1[0-9A-Z]{58}"),
    (("fh-",), r"fh-[0-9a-f]{16}-[A-Za-z0-9_-]{43}"),  # Freehold
    (("eyJ",), r"eyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{16,1024}"),  # JWT
    ((":AA",), r"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}(?![A-Za-z0-9_-])"),  # Telegram
)
_TOKENS = tuple((heads, re.compile(form)) for heads, form in _FORMS)
_STORAGE_KEY = re.compile(r"(?i)\b(?:AccountKey|SharedAccessKey)\s*=\s*([A-Za-z0-9+/]{40,100}={0,2})")
_AWS_SECRET = re.compile(r"(?i)aws.{0,20}?secret.{0,20}?[^A-Za-z0-9/+]([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])")

_URL_PASSWORD = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s/:@\"'<>]{0,64}:([^\s/@\"'<>]{3,128})@[^\s/]")
# What stands in examples for a password.
_NO_PASSWORD = re.compile(r"\$\{?\w+\}?|<.*|\{\{?.*|%\w+%?|\*+|x+|pass(?:word)?|secret|pwd|user", re.IGNORECASE)


def find_private_keys(text: str) -> Iterator[str]:
    """Heads of private keys in PEM, OpenSSH, PGP and PuTTY form; each its place, since all heads look alike."""
    for match in _PRIVATE_KEY.finditer(text):
        yield text[match.start() : match.end() + 96]


def find_tokens(text: str) -> Iterator[str]:
    """Keys and tokens that show by their form what they are."""
    for heads, form in _TOKENS:
        if any(head in text for head in heads):
            for match in form.finditer(text):
                yield match[0]
    for pattern in (_STORAGE_KEY, _AWS_SECRET):
        for match in pattern.finditer(text):
            yield match[1]


def find_url_passwords(text: str) -> Iterator[str]:
    """Passwords in addresses, as in postgres://user:password@host/."""
    for match in _URL_PASSWORD.finditer(text):
        if not _NO_PASSWORD.fullmatch(match[1]):
            yield match[1]


DETECTORS = (
    Detector("private-key", find_private_keys, is_prompt=True),
    Detector("access-token", find_tokens, is_prompt=True),
    Detector("url-password", find_url_passwords, is_prompt=True),
)
