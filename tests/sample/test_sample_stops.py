"""Stop strings: found wherever the pieces were cut, never printed, and nothing held back that could not be one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minitune
from minitune.models import LanguageModel
from minitune.sample.slots import Event
from minitune.sample.stops import StopStrings
from minitune.sample.texts import Reader
from minitune.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tiny() -> tuple[LanguageModel, Tokenizer]:
    return minitune.load("tiny", device="cpu", dtype="float32")


def slowly(text: str, stops: list[str]) -> tuple[str, bool]:
    """What is shown of a text, a character at a time: it ends where a stop string is first complete."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(st.text(alphabet="ab#", max_size=4), max_size=12),
    stops=st.lists(st.text(alphabet="ab#", min_size=1, max_size=5), max_size=4),
)
def test_what_is_shown_does_not_depend_on_the_cuts(pieces: list[str], stops: list[str]) -> None:
    reader = StopStrings(stops)
    shown, stopped, fed = "", False, ""
    for piece in pieces:
        more, stopped = reader.push(piece)
        shown, fed = shown + more, fed + piece
        if stopped:
            break
        # Everything is shown but what could still become a stop string.
        held = fed[len(shown) :]
        assert fed.startswith(shown)
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)
    if not stopped:
        shown += reader.finish()
    assert (shown, stopped) == slowly("".join(pieces), stops)


def read(tokenizer: Tokenizer, ids: list[int], stops: tuple[str, ...]) -> tuple[list[str], str | None]:
    """The pieces of ids until one has a finish."""
    reader, pieces = Reader(tokenizer, [5], stops), []
    for number, token in enumerate(ids, 1):
        piece = reader.push(Event(0, token, "length" if number == len(ids) else None))
        pieces.append(piece.text)
        if piece.finish:
            return pieces, piece.finish
    return pieces, None


@pytest.mark.parametrize("text", ["one two three", "naïve 世界 🙂 end", "### Instruction:\nmore"])
def test_any_part_of_a_text_stops_it(tiny: tuple[LanguageModel, Tokenizer], text: str) -> None:
    """Guards stop strings that begin and end inside tokens and inside the bytes of a character's tokens."""
    _, tokenizer = tiny
    ids = tokenizer.encode(text, continues=True)
    assert tokenizer.decode(ids, continues=True) == text
    assert any(len(tokenizer.encode(c, continues=True)) > 1 for c in text) or text.isascii()
    for start in range(len(text)):
        for length in (1, 2, 3, 7):
            stop = text[start : start + length]
            pieces, finish = read(tokenizer, ids, (stop, "never there"))
            assert "".join(pieces) == text[: text.index(stop)]
            assert finish == "stop"
    pieces, finish = read(tokenizer, ids, ("never there", text + "!"))
    assert ("".join(pieces), finish) == (text, "length")


def test_half_a_character_at_the_end_stays_a_mark(tiny: tuple[LanguageModel, Tokenizer]) -> None:
    """Guards the end of a text that was cut inside a character, which may also be what a stop string asks for."""
    _, tokenizer = tiny
    ids = tokenizer.encode("a🙂", continues=True)[:-1]
    assert "".join(read(tokenizer, ids, ("x",))[0]) == "a\ufffd"
    pieces, finish = read(tokenizer, ids, ("\ufffd",))
    assert ("".join(pieces), finish) == ("a", "stop")


def test_a_model_stops_on_any_part_of_what_it_writes(tiny: tuple[LanguageModel, Tokenizer]) -> None:
    """Guards the way through the model: the text ends before the stop string, and no more tokens are made."""
    model, tokenizer = tiny
    options = {"max_tokens": 40, "temperature": 1.0, "seed": 5, "stop_ids": ()}
    plain = list(minitune.generate(model, tokenizer, [1], **options))
    text = "".join(map(str, plain))
    for start in range(0, len(text) - 3, 4):
        stop = text[start : start + 3]
        pieces = list(minitune.generate(model, tokenizer, [1], stop=(stop,), **options))
        assert "".join(map(str, pieces)) == text[: text.index(stop)]
        assert pieces[-1].finish == "stop"
        assert [p.token for p in pieces] == [p.token for p in plain[: len(pieces)]]
        assert [p.finish for p in pieces[:-1]] == [None] * (len(pieces) - 1)
