"""The one point that every way in passes before spool, log or table: secrets out of every text of an event.

Pure: no I/O, no clock. The rules for common secrets are in `redaction_rules`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from stillhouse.schemas.errors import PermanentError
from stillhouse.schemas.events import AgentEvent, StepTaken
from stillhouse.sdk.stats import Refusal

Span = tuple[int, int]
Finder = Callable[[str], Iterable[Span]]

_json = msgspec.json.Encoder().encode
_MARK = re.compile(r"\[redacted:[a-z0-9-]+\]")


class RedactionError(PermanentError):
    """A rule failed, or an id holds a secret: the event must not go on.

    Args:
        what: which of both, without any part of the event.
        rule: the rule's name.
        in_id: an id holds a secret. Replacing it would join trajectories that are not one.
    """

    def __init__(self, what: str, rule: str, *, in_id: bool = False) -> None:
        self.rule, self.in_id = rule, in_id
        super().__init__(what, where=rule)


def why_refused(error: RedactionError) -> Refusal:
    """The reason that is counted for an event that must not go on."""
    return Refusal.SECRET_IN_ID if error.in_id else Refusal.REDACTION_FAILED


class Rule:
    """One kind of secret.

    Args:
        name: what stands in the secret's place, as `[redacted:<name>]`.
        find: a regular expression (the group `secret` is replaced, or else the whole match), or a function that gives the (start,
            end) spans of the secrets in a text.
        hints: lower-case ASCII texts of which one is in every text with such a secret; without hints every text is searched.
        keys: a regular expression for names of fields whose whole text is a secret whatever it looks like.

    Raises:
        PermanentError: the name, the expression or a hint cannot be used.
    """

    def __init__(self, name: str, find: str | re.Pattern[str] | Finder, *, hints: Sequence[str] = (), keys: str | None = None) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
            raise PermanentError("a rule's name is made of lower-case letters, digits and hyphens", where=name)
        if any(not re.fullmatch(r"[ !#-\[\]-~]+", hint) or hint != hint.lower() for hint in hints):
            raise PermanentError("a hint is lower-case ASCII without quotes and backslashes", where=name)
        try:
            self._find = find if callable(find) else _finder(re.compile(find))
            self.keys = None if keys is None else re.compile(keys)
        except re.error as error:
            raise PermanentError(f"not a regular expression: {error}", where=name) from error
        self.name, self.hints = name, tuple(hints)
        self.mark = f"[redacted:{name}]"

    def spans(self, text: str) -> list[Span]:
        """Where its secrets are.

        Raises:
            RedactionError: the rule itself failed.
        """
        try:
            return [(start, end) for start, end in self._find(text) if start < end]
        except Exception as error:  # noqa: BLE001 - somebody else's code: whatever it raises, the text must not go on
            # `from None`: the message of the original may quote the text.
            raise RedactionError(f"the redaction rule raised {type(error).__name__}", self.name) from None


def _finder(pattern: re.Pattern[str]) -> Finder:
    group: int | str = "secret" if "secret" in pattern.groupindex else 0
    return lambda text: [match.span(group) for match in pattern.finditer(text)]


class Redacted(NamedTuple):
    """An event without secrets, and how many each rule replaced."""

    event: AgentEvent
    found: Counter[str]


class Redactor:
    """Rules in their order. Reused for every event; thread-safe because it keeps nothing.

    Args:
        rules: what to look for; the default rules are `redaction_rules.DEFAULT_RULES`.
    """

    def __init__(self, rules: Iterable[Rule] | None = None) -> None:
        if rules is None:
            from stillhouse.sdk.redaction_rules import DEFAULT_RULES  # it needs Rule

            rules = DEFAULT_RULES
        self.rules = tuple(rules)
        self._hints = tuple({hint.encode(): None for rule in self.rules for hint in rule.hints})
        self._any_hint = re.compile(b"|".join(map(re.escape, self._hints)) or rb"(?!)")

    def with_rules(self, *rules: Rule) -> "Redactor":
        """The same with further rules, which come first."""
        return Redactor((*rules, *self.rules))

    def redact(self, event: AgentEvent) -> Redacted:
        """The event with every secret in any of its texts, keys of objects included, replaced.

        Raises:
            RedactionError: a rule failed, an id holds a secret, or the event is nested too deep to be searched.
        """
        try:
            return self._redact(event)
        except RecursionError:
            raise RedactionError("the event is nested too deep to be searched", "depth") from None

    def _redact(self, event: AgentEvent) -> Redacted:
        rules = self._candidates(event)
        if not rules:
            return Redacted(event, Counter())
        for text in (event.event_id, event.tenant, event.trajectory_id):
            ids = _Pass(rules)
            ids.text(text)
            if ids.found:
                raise RedactionError("an id of the event holds a secret", next(iter(ids.found)), in_id=True)
        walk = _Pass(rules)
        raw = walk.value(msgspec.to_builtins(event))
        if not walk.found and not _has_logprobs(event):
            return Redacted(event, walk.found)
        try:
            clean = msgspec.convert(raw, AgentEvent)
        except msgspec.ValidationError:
            raise RedactionError("a rule replaced what is no free text (a role, a kind)", ", ".join(walk.found)) from None
        if _has_logprobs(event) and self._spelled_out(event, clean):
            # Log-probabilities spell the action token by token, where no rule can see a secret.
            clean = msgspec.structs.replace(clean, body=msgspec.structs.replace(clean.body, logprobs=None))
            walk.found["logprobs"] += 1
        return Redacted(clean, walk.found)

    def text(self, text: str) -> str:
        """One text with its secrets replaced.

        Raises:
            RedactionError: a rule failed.
        """
        return _Pass(self.rules).text(text)

    def _candidates(self, event: AgentEvent) -> tuple[Rule, ...]:
        """The rules that may find something. Most events hold nothing like a secret: searching the whole is cheaper than a walk."""
        body = event.body
        # Without the names of our own fields (input_tokens), which look like hints.
        texts = [getattr(body, name) for name in body.__struct_fields__ if name != "usage"]
        envelope = (event.event_id, event.tenant, event.trajectory_id, event.agent, event.policy, event.assignment, event.traceparent)
        lower = _json((envelope, texts)).lower()
        found = set()
        if self._any_hint.search(lower):  # one search costs half of one for each hint, and most events have none
            found = {hint.decode() for hint in self._hints if hint in lower}
        return tuple(rule for rule in self.rules if not rule.hints or not found.isdisjoint(rule.hints))

    def _spelled_out(self, event: AgentEvent, clean: AgentEvent) -> bool:
        assert isinstance(event.body, StepTaken) and isinstance(clean.body, StepTaken)
        if event.body.action != clean.body.action or event.body.logprobs != clean.body.logprobs:
            return True
        try:
            spelled = "".join(_tokens(msgspec.json.decode(event.body.logprobs or "null")))
        except msgspec.DecodeError:
            return True  # not the JSON it should be: nothing can be said of it
        return self.text(spelled) != spelled


class _Pass:
    """One walk with some rules, counting what it replaces."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self._rules = rules
        self.found: Counter[str] = Counter()

    def value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(key): self._field(key, item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(item) for item in value]
        return value

    def text(self, text: str) -> str:
        lower = text.lower()
        for rule in self._rules:
            for hint in rule.hints:
                if hint in lower:
                    break
            else:
                if rule.hints:
                    continue
            text = self._replace(text, rule)
        return text

    def _field(self, key: str, value: Any) -> Any:
        clean = self.value(value)
        if isinstance(clean, dict) or clean is None or isinstance(clean, bool):
            return clean
        for rule in self._rules:
            if rule.keys is not None and rule.keys.search(key):
                return self._whole(clean, rule)
        return clean

    def _whole(self, value: Any, rule: Rule) -> Any:
        """A field named as a secret: all of its texts and numbers are."""
        if isinstance(value, list):
            return [self._whole(item, rule) for item in value]
        if value is None or isinstance(value, dict | bool) or value == "" or (isinstance(value, str) and _MARK.fullmatch(value)):
            return value
        self.found[rule.name] += 1
        return rule.mark

    def _replace(self, text: str, rule: Rule) -> str:
        spans = sorted(rule.spans(text))
        if not spans:
            return text
        parts, done = [], 0
        for start, end in spans:
            if start >= done:
                parts += [text[done:start], rule.mark]
                self.found[rule.name] += 1
            done = max(done, end)  # an overlapping one is covered by the mark before it
        return "".join((*parts, text[done:]))


def _has_logprobs(event: AgentEvent) -> bool:
    return isinstance(event.body, StepTaken) and event.body.logprobs is not None


def _tokens(value: Any) -> Iterable[str]:
    """The chosen tokens of log-probabilities in their order, alternatives left out."""
    if isinstance(value, dict):
        if isinstance(token := value.get("token"), str):
            yield token
            return
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _tokens(item)
