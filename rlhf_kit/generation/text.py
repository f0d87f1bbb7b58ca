"""Text of tokens as they come: whole characters alone, up to a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"  # what a tokenizer writes for bytes that are no character, or not yet
LONGEST_CHARACTER = 4  # bytes of UTF-8, and as many tokens at most


class TextStream:
    """Text of tokens, given one at a time; special tokens are left out.

    Args:
        behind: the tokens that stand before: some tokenizers write a token otherwise at the beginning of a text.

    Attributes:
        stopped: whether a stop string was found: nothing of it, and nothing behind it, is given.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = (), behind: Sequence[int] = ()):
        self.tokenizer, self.stop, self.stopped = tokenizer, [text for text in stop if text], False
        self.ids = [*behind[-2 * LONGEST_CHARACTER :]]
        self.begin, self.end = 0, len(self.ids)  # tokens before `end` are written; from `begin` on all are decoded
        self.held = ""  # might be the beginning of a stop string

    def push(self, token: int) -> str:
        """The text that is certain since the token before."""
        self.ids.append(int(token))
        new = self._new()
        is_unfinished = new.endswith(BROKEN) and len(self.ids) - self.end < LONGEST_CHARACTER
        return "" if is_unfinished else self._released(self._taken(new))

    def finish(self) -> str:
        """What is left when no token follows. Bytes of a character that was cut off are not shown."""
        text = self.held + self._taken(self._new().rstrip(BROKEN))
        self.held = ""
        return "" if self.stopped else self._before_stop(text)

    def _new(self) -> str:
        """Decoded behind the tokens before."""
        before = decoded(self.tokenizer, self.ids[self.begin : self.end])
        return decoded(self.tokenizer, self.ids[self.begin :])[len(before) :]

    def _taken(self, new: str) -> str:
        if new:
            self.begin, self.end = self.end, len(self.ids)
        return new

    def _released(self, new: str) -> str:
        """Without an end that might be the beginning of a stop string."""
        if self.stopped:
            return ""
        text = self._before_stop(self.held + new)
        longest = 0
        if not self.stopped:
            sizes = (size for stop in self.stop for size in range(1, len(stop)) if text.endswith(stop[:size]))
            longest = max(sizes, default=0)
        self.held = text[len(text) - longest :]
        return text[: len(text) - longest]

    def _before_stop(self, text: str) -> str:
        found = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        self.stopped = bool(found)
        return text[: min(found)] if found else text


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) if ids else ""


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int], stop: Sequence[str] = ()) -> str:
    """All of a text, as a stream would give it."""
    stream = TextStream(tokenizer, stop)
    return "".join([*(stream.push(token) for token in ids), stream.finish()])


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    """(text, tokens) of a sequence: tokens that make a character together are one piece. A special token is shown by
    its name; bytes that end in no character are shown as `BROKEN`, behind what is whole of the last token."""
    found: list[tuple[str, list[int]]] = []
    stream, own = TextStream(tokenizer), []
    special = set(tokenizer.all_special_ids)
    for token in ids:
        own.append(int(token))
        text = tokenizer.convert_ids_to_tokens(int(token)) if token in special else stream.push(token)
        if text:
            found.append((text, own))
            own = []
    if own:
        found.append((stream.finish() + BROKEN, own))
    return found


class TokenBytes:
    """The bytes of each token alone, which are those of a text where they stand together: a token may be a part of a
    character. Of a special token, those of its name."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer, self.named = tokenizer, set(tokenizer.get_added_vocab())
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        self.bytes = {letter: byte for byte, letter in _letters().items()} if "ByteLevel" in str(decoder) else {}

    def __getitem__(self, token: int) -> bytes:
        name = self.tokenizer.convert_ids_to_tokens(token)
        if name is None:  # the model has more tokens than the tokenizer
            return b""
        if name in self.named:
            return name.encode()
        if self.bytes and all(letter in self.bytes for letter in name):
            return bytes(self.bytes[letter] for letter in name)
        if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
            return bytes.fromhex(name[3:5])
        before = self.tokenizer.convert_tokens_to_ids("a") or 0  # alone, a word would lose the space before it
        return decoded(self.tokenizer, [before, token])[len(decoded(self.tokenizer, [before])) :].encode()


def _letters() -> dict[int, str]:
    """By which GPT-2's tokenizer, and all like it, write bytes: those that can be seen by themselves."""
    seen = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    hidden = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + at) for at, byte in enumerate(hidden)}
