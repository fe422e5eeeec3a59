"""The secrets that are looked for unless told otherwise. Order matters: the specific before the generic.

Every expression is bounded or anchored at a literal, so that no text takes more than linear time, and asks for more than
length: ids, hashes and UUIDs merely look long.
"""

import re
from base64 import b64decode
from binascii import Error
from collections.abc import Iterator

from stillhouse.sdk.redaction import Rule, Span

_START = r"(?<![A-Za-z0-9_-])"
_MIXED = r"(?=[A-Za-z_-]*[0-9])(?=[0-9_-]*[A-Za-z])"  # letters and digits, unlike a slug

_NAMES = (
    r"api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|account[_-]?key|client[_-]?secret|secret|"
    r"access[_-]?token|auth[_-]?token|refresh[_-]?token|id[_-]?token|session[_-]?token|bot[_-]?token|password|passwd|passphrase|pwd"
)
_FIELDS = rf"(?i)(?:{_NAMES}|authorization)$"

# A value after `=`: any of six or more characters that is no call or lookup in code. After `:` prose is likelier: it must hold a digit.
_VALUE = r"[^\s\"'\\,;&<>()\[\]{}]"
_ASSIGNED = (
    rf"(?i)(?:{_NAMES})[a-z0-9_]{{0,20}}[\"'\\]{{0,4}}\s{{0,4}}"
    rf"(?:=>?\s{{0,4}}[\"'\\]{{0,4}}(?!(?:{_NAMES}|self|os|env|config|settings|none|null|true|false)\b)(?P<a>(?>{_VALUE}{{6,}}))(?![(\[])"
    rf"|:\s{{0,4}}[\"'\\]{{0,4}}(?P<b>(?=[^\s\"'\\,;]{{0,64}}[0-9])(?>{_VALUE}{{6,}})))"
)
_assigned = re.compile(_ASSIGNED, re.ASCII)
_basic = re.compile(r"(?i)\bbasic\s{1,4}(?P<secret>[A-Za-z0-9+/]{8,512}={0,2})", re.ASCII)


def _assignments(text: str) -> Iterator[Span]:
    for match in _assigned.finditer(text):
        yield match.span("a" if match["a"] is not None else "b")


def _basic_credentials(text: str) -> Iterator[Span]:
    """`Basic` with what decodes as user:password; "basic" before an ordinary word does not."""
    for match in _basic.finditer(text):
        encoded = match["secret"].rstrip("=")
        try:
            decoded = b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except Error:
            continue
        if b":" in decoded and all(32 <= byte < 127 for byte in decoded):
            yield match.span("secret")


DEFAULT_RULES: tuple[Rule, ...] = (
    Rule(
        "private-key",
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?s:.*?)(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\Z)",
        hints=("private key",),
    ),
    Rule("anthropic-key", rf"{_START}sk-ant-[A-Za-z0-9_-]{{16,}}", hints=("sk-ant-",)),
    Rule("openai-key", rf"{_START}sk-{_MIXED}[A-Za-z0-9_-]{{20,}}", hints=("sk-",)),
    Rule("stripe-key", rf"{_START}[sr]k_(?:live|test)_[A-Za-z0-9]{{16,}}", hints=("k_live_", "k_test_")),
    Rule("aws-key", r"(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])", hints=("akia", "asia", "abia", "acca")),
    Rule(
        "github-token",
        rf"{_START}(?:gh[pousr]_[A-Za-z0-9]{{20,}}|github_pat_[A-Za-z0-9_]{{20,}})",
        hints=("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"),
    ),
    Rule("gitlab-token", rf"{_START}gl(?:pat|ptt|dt|rt)-[A-Za-z0-9_-]{{20,}}", hints=("glpat-", "glptt-", "gldt-", "glrt-")),
    Rule(
        "slack-token",
        rf"{_START}(?:xox[a-z]-|xapp-)[A-Za-z0-9-]{{10,}}|(?<=hooks\.slack\.com/services/)[A-Za-z0-9/]{{16,}}",
        hints=("xox", "xapp-", "hooks.slack.com"),
    ),
    Rule(
        "google-key",
        rf"{_START}(?:AIza[A-Za-z0-9_-]{{35}}(?![A-Za-z0-9_-])|ya29\.[A-Za-z0-9_-]{{20,}}|GOCSPX-[A-Za-z0-9_-]{{20,}})",
        hints=("aiza", "ya29.", "gocspx-"),
    ),
    Rule("huggingface-token", rf"{_START}hf_[A-Za-z0-9]{{30,}}", hints=("hf_",)),
    Rule("jwt", rf"{_START}eyJ[A-Za-z0-9_-]{{8,}}\.[A-Za-z0-9_-]{{8,}}\.[A-Za-z0-9_-]*", hints=("eyj",)),
    Rule(
        "authorization",
        r"(?i)\bauthorization[\"'\\]{0,4}\s{0,4}[:=]\s{0,4}[\"'\\]{0,4}(?:(?:bearer|basic|token|apikey|digest)\s{1,4})?"
        r"(?P<secret>(?!(?:bearer|basic|token|apikey|digest)\b)[^\s\"'\\,;\[\](){}<>]{6,})",
        hints=("authorization",),
    ),
    Rule("bearer", r"(?i)\bbearer\s{1,4}(?P<secret>(?=[A-Za-z._~+/=-]{0,64}[0-9])[A-Za-z0-9._~+/=-]{12,})", hints=("bearer",)),
    Rule("basic", _basic_credentials, hints=("basic",)),
    Rule("url-password", r"(?<=://)[^\s:/@\"'<>]{0,256}:(?P<secret>(?!\[redacted:)[^\s/\"'<>]{1,256})@", hints=("://",)),
    Rule(
        "secret",
        _assignments,
        hints=("key", "secret", "token", "passw", "passphrase", "pwd", "authorization"),
        keys=_FIELDS,
    ),
)
