"""``minitune chat``: a conversation by way of standard input, and what its commands do to it."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

import minitune
import minitune.jobs.conversation
from minitune.chat import Message
from minitune.cli import main
from minitune.sample import Slots

FLAGS = ("--device", "cpu", "--dtype", "float32", "--max-tokens", "8")


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Type some lines into a chat; the conversation it ends with, and what it said to people."""

    def typed(*lines: str, flags: tuple[str, ...] = ()) -> tuple[list[dict[str, str]], str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        assert main(["chat", "tiny", *FLAGS, *flags, "--json"]) == 0
        out, err = capsys.readouterr()
        assert out.count("\n") == 1
        return json.loads(out)["messages"], err

    return typed


@pytest.fixture
def any_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that takes any turns: each by its role and a line of its own."""

    def ids_of(messages: list[Message], template: Any, tokenizer: Any) -> list[int]:
        ids = [tokenizer.bos_id]
        for message in messages:
            ids += tokenizer.encode(f"\n{message.role}: {message.content}", continues=True)
        return ids + tokenizer.encode("\nassistant:", continues=True)

    monkeypatch.setattr(minitune.jobs.conversation, "conversation_ids", ids_of)


def test_an_answer_is_that_of_generate(talk: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards the prompt: a first message is rendered and answered as by ``generate --chat``."""
    messages, err = talk("Name a colour.", flags=("--seed", "5"))
    assert "tiny: 1,304,192 parameters" in err
    assert all(command in err for command in ("/system", "/undo", "/retry", "/save", "/quit"))
    words = ["generate", "tiny", "Name a colour.", "--chat", *FLAGS, "--temperature", "0.7", "--seed", "5", "--json"]
    assert main(words) == 0
    answer = json.loads(capsys.readouterr().out)["text"]
    assert messages == [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": answer}]
    assert answer in err


def test_without_json_the_answer_is_on_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello"))  # no line end at the end of the input
    assert main(["chat", "tiny", *FLAGS, "--temperature", "0"]) == 0
    out, err = capsys.readouterr()
    assert "(cut at --max-tokens 8)" in out
    assert err == ""


def test_turns_go_on_and_are_taken_back(talk: Any, any_turns: None) -> None:
    messages, _ = talk("one", "two", "", "three")
    assert [m["role"] for m in messages] == ["user", "assistant"] * 3
    assert [m["content"] for m in messages[::2]] == ["one", "two", "three"]
    shorter, said = talk("one", "two", "three", "/undo")
    assert shorter == messages[:4]
    assert "taken back; 2 turns are left" in said
    nothing, said = talk("one", "/undo", "/undo", "/retry", "/quit", "two")
    assert nothing == []
    assert "no turn to take back" in said
    assert "no turn to answer again" in said


def test_retry_is_another_answer_to_the_same_turn(talk: Any, any_turns: None) -> None:
    once, _ = talk("one", "two")
    again, _ = talk("one", "two", "/retry")
    assert again[:3] == once[:3]
    assert again[3] != once[3]
    _, said = talk("one", "/retry", flags=("--temperature", "0"))
    assert "temperature 0 gives the same answer" in said


def test_the_system_message_is_rendered_and_can_go(talk: Any, any_turns: None) -> None:
    ask, tell, greedy = "小明在哪里？", "小明在花园里。小红在学校里。", ("--temperature", "0")
    plain, _ = talk(ask, flags=greedy)
    told, _ = talk(f"/system {tell}", ask, flags=greedy)
    assert told[0] == {"role": "system", "content": tell}
    assert told[2] != plain[1]
    assert talk(ask, flags=(*greedy, "--system", tell))[0] == told
    assert talk(f"/system {tell}", "/system", ask, flags=greedy)[0] == plain


def test_each_turn_computes_only_what_is_new(talk: Any, any_turns: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the cache across turns: few tokens are fed, and the answers are those of starting afresh each time."""
    kept, _ = talk("one " * 40, "two", "/retry", "/undo", "three", flags=("--temperature", "0"))
    fed: list[int] = []
    plan = minitune.models.cache.KVCache.plan

    def counting(self: Any, queries: int, rows: Any = None) -> Any:
        fed.append(queries)
        return plan(self, queries, rows)

    monkeypatch.setattr(minitune.models.cache.KVCache, "plan", counting)
    assert talk("one " * 40, "two", "/retry", "/undo", "three", flags=("--temperature", "0"))[0] == kept
    prompts = [queries for queries in fed if queries > 1]
    assert prompts[0] > 40
    assert max(prompts[1:]) < 40
    add = Slots.add

    def afresh(self: Slots, *args: Any, **options: Any) -> int:
        self.forget()
        return add(self, *args, **options)

    monkeypatch.setattr(Slots, "add", afresh)
    assert talk("one " * 40, "two", "/retry", "/undo", "three", flags=("--temperature", "0"))[0] == kept


def test_what_a_template_refuses_is_one_line_and_changes_nothing(talk: Any) -> None:
    def refuse(*_: Any) -> list[int]:
        raise minitune.MinituneError("this template\nhas no such turn")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minitune.jobs.conversation, "conversation_ids", refuse)
        messages, said = talk("one", "/undo")
    assert messages == []
    assert "minitune: this template has no such turn\n" in said
    assert "there is no turn to take back" in said


def test_the_end_of_the_positions_is_told(talk: Any, any_turns: None) -> None:
    messages, said = talk("long " * 2000, "short")
    assert "tokens and this model" in said
    assert "/undo" in said
    assert [m["content"] for m in messages[::2]] == ["short"]
    _, said = talk("word " * 120, flags=("--max-tokens", "5000", "--temperature", "1.5"))
    assert "positions of this model are full; /undo" in said or "(cut" not in said


def test_ctrl_c_stops_the_answer_and_not_the_program(
    talk: Any, any_turns: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = talk("one", "two", flags=("--temperature", "0"))
    step, calls = Slots.step, []

    def interrupted(self: Slots) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Slots, "step", interrupted)
    messages, said = talk("one", "/undo", "one", "two", flags=("--temperature", "0"))
    assert "(stopped)" in said
    assert messages == whole


def test_saved_conversations_are_rows(talk: Any, any_turns: None, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    messages, said = talk("/system Be brief.", "one", f"/save {path}", "two", f"/save {path}")
    first, second = [json.loads(line)["messages"] for line in path.read_text("utf-8").splitlines()]
    assert second == messages
    assert first == messages[:3]
    assert "(2 rows)" in said
    other = tmp_path / "notes.txt"
    other.write_text("my notes\n")
    _, said = talk("/save", "/save x", "one", f"/save {other}", f"/save {tmp_path / 'no' / 'file'}")
    assert "/save needs a file name" in said
    assert "there is nothing to save yet" in said
    assert "is not a file of saved conversations" in said
    assert "cannot be written (No such file" in said
    assert other.read_text() == "my notes\n"


def test_an_unknown_command_is_no_message(talk: Any) -> None:
    messages, said = talk("/udno", "/help")
    assert messages == []
    assert "there is no command /udno; did you mean '/undo'?" in said
    assert said.count("/save FILE") == 2


def test_flags_that_mean_nothing_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "tiny", "--logprobs", "2"]) == 2
    assert "--logprobs is for minitune generate" in capsys.readouterr().err
    assert main(["chat", "tiny", "--template", "alpca"]) == 2
    assert "did you mean 'alpaca'" in capsys.readouterr().err
