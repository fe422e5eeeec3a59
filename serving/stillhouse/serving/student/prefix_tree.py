"""Keys and values of what was computed, found again by the tokens. Pure: a segment is whatever its maker says.

A radix tree for each adapter: a node holds a run of tokens and the segment that belongs to it; what two conversations have
in common at the beginning is stored once. Over the byte limit, the leaf that was used longest ago goes first.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from stillhouse.serving.student.scheduler import common_prefix

S = TypeVar("S")


@dataclass(eq=False, slots=True)
class _Node(Generic[S]):
    tokens: tuple[int, ...]
    segment: S
    parent: "_Node[S] | None"
    used: int
    children: "dict[int, _Node[S]]" = field(default_factory=dict)


class PrefixTree(Generic[S]):
    """A byte-limited cache of segments under token prefixes.

    Args:
        limit: bytes that all segments together may take.
        bytes_per_token: what one token costs.
        split: cuts a segment of n tokens in two, after the given number.
    """

    def __init__(self, limit: int, bytes_per_token: int, split: Callable[[S, int], tuple[S, S]]) -> None:
        self.limit = limit
        self.evicted_tokens = 0
        self._token_bytes = bytes_per_token
        self._split = split
        self._roots: dict[str, dict[int, _Node[S]]] = {}
        self._tokens = 0
        self._tick = 0

    @property
    def bytes(self) -> int:
        """Bytes held now."""
        return self._tokens * self._token_bytes

    def match(self, adapter: str, ids: Sequence[int]) -> list[tuple[S, int]]:
        """The longest stored beginning of `ids`: segments, and how many tokens of each count."""
        self._tick += 1
        found = []
        for node, n in self._walk(adapter, ids):
            node.used = self._tick
            found.append((node.segment, n))
        return found

    def matched(self, adapter: str, ids: Sequence[int]) -> int:
        """How many tokens `match` would find. Does not count as a use."""
        return sum(n for _, n in self._walk(adapter, ids))

    def insert(self, adapter: str, ids: Sequence[int], take: Callable[[int, int], S]) -> int:
        """Store the segments of `ids` that are not there yet.

        Args:
            adapter: whose keys and values they are.
            ids: the tokens from the very beginning.
            take: copies the segment of tokens `start … end-1`.

        Returns:
            how many tokens were new; 0 also when they do not fit under the limit.
        """
        self._tick += 1
        parent, at = None, 0
        for node, n in list(self._walk(adapter, ids)):
            at += n
            if n < len(node.tokens) and at < len(ids):
                self._cut(adapter, node, n)
            node.used = self._tick
            parent = node
        new = len(ids) - at
        if not new or not self._make_room(new):
            return 0
        node = _Node(tuple(ids[at:]), take(at, len(ids)), parent, self._tick)
        self._children(adapter, parent)[node.tokens[0]] = node
        self._tokens += new
        return new

    def drop(self, adapter: str) -> None:
        """Forget everything of one adapter."""
        for node in list(self._nodes(self._roots.pop(adapter, {}))):
            self._tokens -= len(node.tokens)

    def _children(self, adapter: str, node: _Node[S] | None) -> dict[int, _Node[S]]:
        return self._roots.setdefault(adapter, {}) if node is None else node.children

    def _walk(self, adapter: str, ids: Sequence[int]) -> Iterator[tuple[_Node[S], int]]:
        children, at = self._roots.get(adapter, {}), 0
        while at < len(ids) and (node := children.get(ids[at])):
            n = common_prefix(node.tokens, tuple(ids[at : at + len(node.tokens)]))
            yield node, n
            at += n
            if n < len(node.tokens):
                return
            children = node.children

    def _cut(self, adapter: str, node: _Node[S], n: int) -> None:
        """Make two nodes of one; `node` stays the upper one."""
        head, tail = self._split(node.segment, n)
        below = _Node(node.tokens[n:], tail, node, node.used, node.children)
        for child in below.children.values():
            child.parent = below
        node.tokens, node.segment, node.children = node.tokens[:n], head, {below.tokens[0]: below}

    def _make_room(self, tokens: int) -> bool:
        need = tokens * self._token_bytes
        while self.bytes + need > self.limit:
            leaves = [(n.used, i, a, n) for i, (a, n) in enumerate(self._leaves()) if n.used < self._tick]
            if not leaves:
                return False
            _, _, adapter, leaf = min(leaves)
            del self._children(adapter, leaf.parent)[leaf.tokens[0]]
            self._tokens -= len(leaf.tokens)
            self.evicted_tokens += len(leaf.tokens)
        return True

    def _leaves(self) -> Iterator[tuple[str, _Node[S]]]:
        for adapter, roots in self._roots.items():
            yield from ((adapter, node) for node in self._nodes(roots) if not node.children)

    def _nodes(self, children: dict[int, _Node[S]]) -> Iterator[_Node[S]]:
        stack = list(children.values())
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            yield node
