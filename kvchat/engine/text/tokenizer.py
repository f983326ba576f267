"""Text to token ids and back, over a Hugging Face tokenizer."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kvchat.engine.gguf import is_gguf
from kvchat.engine.gguf.file import GGUF
from kvchat.engine.gguf.tokenizer import read_tokenizer
from kvchat.engine.text.guard import Guard, refused
from kvchat.engine.text.tokenizer_json import JsonTokenizer
from kvchat.errors import KvchatError
from kvchat.files import is_regular

FILES = ("tokenizer.json", "tokenizer.model")
KINDS = (".json", ".jinja", ".model", ".txt")  # of files that the library may look into
ASCII_SPACES = " \t\n\v\f\r"
INCOMPLETE = "\ufffd"
WORD = re.compile(r"(?<=\S) (?=\w)|(?<=\n)(?=\w)")  # where one begins
PIECE = 2**16  # characters that are tokenised at once, about: a library takes 100 bytes for each
AROUND = 256  # characters on either side of a cut that have to part there
CUTS = 16  # places where a cut is tried, before a piece gets longer
ANCHOR = "\n"


class Tokenizer:
    """Encodes trusted text (special tokens parsed) and foreign text (special tokens stay text)."""

    def __init__(self, hf: Any, ends: Iterable[int] | None = None):
        """`ends`: ids that end an answer, if the model names more than its end-of-text token."""
        self.hf, self._guard = hf, Guard(hf)
        self.ends = frozenset(ends if ends is not None else {hf.eos_token_id} - {None})
        self.specials = {t.content: i for i, t in hf.added_tokens_decoder.items() if t.special}
        # Phi-3's tokens take the spaces behind them along
        self._stripping = {i for i, t in hf.added_tokens_decoder.items() if t.special and t.rstrip}
        names = sorted(self.specials, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, names)) if names else r"(?!)")
        # SentencePiece-like tokenizers put a space before the text; inside a text that is wrong
        first = hf.convert_ids_to_tokens(self._raw("x")[:1])
        self._prefixes_space = "".join(first).startswith("\u2581")
        self._space_after_special = self._prefixes_space and self._prefixed_after_special()

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer of a model folder or a GGUF file. Raises KvchatError("model")."""
        with refused(f"the tokenizer of {folder}"):  # the library raises many kinds
            if is_gguf(folder):
                return cls._of_file(folder)
            require_files(folder)
            return cls(_pretrained(folder))

    @classmethod
    def _of_file(cls, path: Path) -> "Tokenizer":
        found = read_tokenizer(GGUF(path))
        return cls(JsonTokenizer(found.backend, found.roles, found.chat_template), found.ends)

    @property
    def bos(self) -> list[int]:
        """What the tokenizer itself puts before a text: the beginning-of-text token, or nothing."""
        ids = self._ids("x", add_special_tokens=True)
        return (
            ids[:1] if self.hf.bos_token_id is not None and ids[0] == self.hf.bos_token_id else []
        )

    def encode(self, pieces: Sequence[tuple[str, bool]], continues: bool = False) -> list[int]:
        """Ids of pieces `(text, trusted)`, as if they were one text.

        Special tokens are parsed in trusted pieces only; neighbouring plain text is encoded
        together, so that words at the joints are not split. `continues` says that the pieces
        follow plain text already encoded.
        """
        ids: list[int] = []
        for run, after, special in self._runs(pieces, continues):
            ids += self._plain(run, after)
            ids += [] if special is None else [special]
        return ids

    def begins(self, pieces: Sequence[tuple[str, bool]], continues: bool = False) -> list[int]:
        """Where each id of `encode(pieces, continues)` begins, in characters of the joined pieces.

        A library that does not tell is taken to cut its text evenly.
        """
        found, at, names = list[int](), 0, {i: name for name, i in self.specials.items()}
        for run, after, special in self._runs(pieces, continues):
            found += [at + begin for begin in self._plain_begins(run, after)]
            at += len(run)
            if special is not None:
                found.append(at)
                at += len(names[special])
        return found

    def _runs(
        self, pieces: Sequence[tuple[str, bool]], continues: bool
    ) -> Iterator[tuple[str, str, int | None]]:
        """Plain text that is encoded together, what stands before it, the special token after."""
        run, after = "", "text" if continues else "start"
        for text, trusted in pieces:
            for plain, special in self._atoms(text) if trusted else [(text, None)]:
                run += plain
                if special is not None:
                    yield run, after, special
                    run, after = "", "stripping" if special in self._stripping else "special"
        yield run, after, None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens are left out, incomplete characters show as U+FFFD."""
        how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        with refused():
            text: str = self.hf.decode(list(ids), **how)
        return text

    def _atoms(self, text: str) -> list[tuple[str, int | None]]:
        """Plain text with the special token that follows it, if any."""
        atoms: list[tuple[str, int | None]] = []
        end = 0
        for match in self._special.finditer(text):
            atoms.append((text[end : match.start()], self.specials[match[0]]))
            end = match.end()
        return [*atoms, (text[end:], None)]

    def _plain(self, text: str, after: str) -> list[int]:
        return [
            each
            for piece, before in self._cut(text, after)
            for each in self._at_once(piece, before)
        ]

    def _cut(self, text: str, after: str) -> Iterator[tuple[str, str]]:
        """Pieces of a run of plain text and what stands before each, that give the ids of the run.

        They begin with a word, where the text around has the same ids in one piece and in two.
        """
        start, end = 0, PIECE
        while len(text) > end + PIECE // 2:
            places = [match.start() for match in WORD.finditer(text, end - PIECE // 2, end)]
            good = (place for place in places[: -CUTS - 1 : -1] if self._parts(text, place))
            if (place := next(good, None)) is None:
                end += PIECE // 2
                continue
            yield text[start:place], after
            start, end, after = place, place + PIECE, "text"
        yield text[start:], after

    def _parts(self, text: str, at: int) -> bool:
        """Whether what stands around a place has the same ids in one piece and in two."""
        left, right = text[max(0, at - AROUND) : at], text[at : at + AROUND]
        whole, *two = (self._at_once(each, "text") for each in (left + right, left, right))
        return whole == two[0] + two[1]

    def _at_once(self, text: str, after: str) -> list[int]:
        text, anchored = self._fitted(text, after)
        if not text:
            return []
        if not anchored:
            return self._raw(text)
        anchor = self._raw(ANCHOR)
        ids = self._raw(ANCHOR + text)
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else self._raw(text)

    def _fitted(self, text: str, after: str) -> tuple[str, bool]:
        """What is encoded of a run of plain text, and whether behind an anchor, which takes the
        space that the tokenizer would put before its first word."""
        if after == "stripping":
            text, after = text.lstrip(ASCII_SPACES), "special"
        fresh = after == "start" or (after == "special" and self._space_after_special)
        return text, not fresh and self._prefixes_space

    def _plain_begins(self, text: str, after: str) -> list[int]:
        """Where the ids of a run of plain text begin in it."""
        found, at = list[int](), 0
        for piece, before in self._cut(text, after):
            found += [at + begin for begin in self._begins_at_once(piece, before)]
            at += len(piece)
        return found

    def _begins_at_once(self, text: str, after: str) -> list[int]:
        fitted, anchored = self._fitted(text, after)
        cut = len(text) - len(fitted)
        if not fitted:
            return []
        anchor = self._raw(ANCHOR) if anchored else []
        given = ANCHOR * bool(anchor) + fitted
        if anchor and self._raw(given)[: len(anchor)] != anchor:
            anchor, given = [], fitted
        found = self._guard(
            lambda: self.hf(
                given,
                add_special_tokens=False,
                split_special_tokens=True,
                verbose=False,
                return_offsets_mapping=True,
            ).get("offset_mapping"),
            len(given),
        )
        if found is None:
            count = len(self._at_once(text, after))
            return [len(text) * number // count for number in range(count)]
        shift = cut - (len(given) - len(fitted))
        return [max(0, begin + shift) for begin, _ in found[len(anchor) :]]

    def _prefixed_after_special(self) -> bool:
        if not self.specials:
            return False
        name, number = next(iter(self.specials.items()))
        whole = self._ids(name + "x", add_special_tokens=False)
        return whole == [number, *self._raw("x")]

    def _raw(self, text: str) -> list[int]:
        return self._ids(text, add_special_tokens=False, split_special_tokens=True, verbose=False)

    def _ids(self, text: str, **how: bool) -> list[int]:
        return self._guard(lambda: list(self.hf(text, **how)["input_ids"]), len(text))


def require_files(folder: Path) -> None:
    """Raise KvchatError("model") without a tokenizer in a folder, and for what stands beside it
    and would never be read to its end: a pipe, a device."""
    if not any((folder / name).exists() for name in FILES):
        raise KvchatError("model", f"no {' or '.join(FILES)} in {folder}", "--tokenizer FOLDER")
    for path in sorted(folder.iterdir()):
        if path.suffix in KINDS and path.exists() and not (path.is_dir() or is_regular(path)):
            raise KvchatError("model", f"{path} is no file")


def _pretrained(folder: Path) -> Any:
    if (folder / FILES[0]).is_file():
        return JsonTokenizer.load(folder)
    # a second of imports and more: nothing else makes a tokenizer of a SentencePiece model
    from transformers import AutoTokenizer

    # code from a model's folder is never run, and nobody is asked whether to
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


class TextStream:
    """Turns tokens into text as they come; only whole characters leave it.

    A short window of tokens is decoded again for each token, for a token's text can depend on its
    neighbours (bytes of one character, spaces between words).
    """

    WINDOW = 8  # tokens kept for context once their text is out
    PATIENCE = 16  # tokens after which bytes that make no character are shown as they are

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = ""  # what of the window's text is out
        self._held = 0

    @property
    def is_whole(self) -> bool:
        """Whether every token's text is out: no character waits for more bytes."""
        return self._held == 0

    def push(self, token: int) -> str:
        """The new whole characters that `token` completes."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        whole = text.rstrip(INCOMPLETE)
        self._held = 0 if whole == text else self._held + 1
        return self._emit(text if self._held > self.PATIENCE else whole)

    def flush(self) -> str:
        """What is left at the end, incomplete characters as U+FFFD."""
        return self._emit(self._tokenizer.decode(self._ids)) if self._ids else ""

    def _emit(self, text: str) -> str:
        new = text[len(self._shown) :]
        if new:
            self._shown = text
        if len(self._ids) > 2 * self.WINDOW and not self._held:
            window = self._ids[-self.WINDOW :]
            shown = self._tokenizer.decode(window)
            # a window without text would lose the space that its first word begins with
            if shown and not shown.startswith(INCOMPLETE):
                self._ids, self._shown = window, shown
        return new
