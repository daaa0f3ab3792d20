"""What a row of each layout becomes, which rows are refused and with which reason."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitune.chat import Message
from minitune.data.layouts import SHAREGPT, Example, Fault, examples
from minitune.data.sources import parse_columns

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
HUMAN, GPT = {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}


def one(row: object, columns: str = "") -> Example:
    (found,) = examples(row, parse_columns(columns) or None)
    return found


def turns(row: object, columns: str = "") -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in one(row, columns).messages]


def reason(row: object, columns: str = "") -> str:
    with pytest.raises(Fault) as caught:
        examples(row, parse_columns(columns) or None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- what each layout becomes, written out by hand


def test_alpaca_with_system_and_history() -> None:
    row = {
        "instruction": "And?", "input": "more", "output": "Yes.", "system": "Be brief.",
        "history": [["Who?", "I."], ["Why?", "So."]], "weight": 2, "id": 7,
    }  # fmt: skip
    expected = (
        Message("system", "Be brief."),
        Message("user", "Who?"), Message("assistant", "I."), Message("user", "Why?"), Message("assistant", "So."),
        Message("user", "And?", "more"), Message("assistant", "Yes."),
    )  # fmt: skip
    assert examples(row) == [(expected, "alpaca", 2.0)]


def test_dolly_and_the_seeds_of_self_instruct() -> None:
    dolly = {"instruction": "a", "context": "b", "response": "c", "category": "qa"}
    assert examples(dolly) == [((Message("user", "a", "b"), Message("assistant", "c")), "alpaca", 1.0)]
    seeds = {"id": "1", "instruction": "a", "instances": [{"input": "b", "output": "c"}, {"input": "", "output": "d"}]}
    assert examples(seeds) == [
        ((Message("user", "a", "b"), Message("assistant", "c")), "alpaca", 1.0),
        ((Message("user", "a"), Message("assistant", "d")), "alpaca", 1.0),
    ]


def test_messages_with_train_and_weight_and_text_parts() -> None:
    row = {
        "messages": [
            {"role": "system", "content": ""},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "train": False},
            ANSWER | {"train": False, "name": "x"},
            {"role": "tool", "content": ""},
            ANSWER | {"weight": 0.5},
            ANSWER | {"train": True},
        ],
        "weight": 3,
    }
    expected = (
        Message("system", ""), Message("user", "ab", train=False), Message("assistant", "b", train=False),
        Message("tool", ""), Message("assistant", "b", weight=0.5), Message("assistant", "b", train=True),
    )  # fmt: skip
    assert examples(row) == [(expected, "messages", 3.0)]


def test_sharegpt() -> None:
    row = {"conversations": [{"from": "GPT", "value": "Hello."}, HUMAN, {"from": "observation", "value": "x"}, GPT]}
    assert turns(row) == [("assistant", "Hello."), ("user", "a"), ("tool", "x"), ("assistant", "b")]
    assert one(row).layout == "sharegpt"
    assert turns({"system": "s", "conversations": [HUMAN, GPT]})[0] == ("system", "s")
    # Either form of a turn stands under either key.
    assert one({"messages": [HUMAN, GPT]}).layout == "sharegpt"
    assert one({"conversations": [USER, ANSWER]}).layout == "messages"
    for name in ("human", "user"):
        assert SHAREGPT[name] == "user"
    for name in ("gpt", "assistant", "chatgpt", "bing", "bard"):
        assert SHAREGPT[name] == "assistant"
    for name in ("tool", "function", "observation"):
        assert SHAREGPT[name] == "tool"


def test_prompt_and_completion() -> None:
    row = {"prompt": "The sky is", "completion": " blue."}
    assert examples(row) == [((Message("user", "The sky is"), Message("assistant", " blue.")), "completion", 1.0)]
    assert turns({"prompt": "\n", "completion": "x"}) == [("user", "\n"), ("assistant", "x")]
    # Of messages, what stands in the prompt is read only, unless it says that it is trained.
    row = {"prompt": [USER, ANSWER, ANSWER | {"train": True}, USER], "completion": [ANSWER]}
    found = one(row)
    assert found.layout == "messages"
    assert [turn.train for turn in found.messages] == [None, False, True, None, None]


def test_text() -> None:
    assert examples({"text": " Once. ", "meta": 1}) == [((Message("assistant", " Once. "),), "text", 1.0)]


def test_the_first_layout_whose_keys_are_filled_decides() -> None:
    both = {"messages": [USER, ANSWER], "prompt": "x", "prompt_id": "1", "text": "y"}
    assert one(both).layout == "messages"
    assert one({"instruction": "a", "output": "b", "text": "Below is an instruction ..."}).layout == "alpaca"
    # A table gives each row every key.
    assert one({"messages": None, "instruction": None, "output": None, "text": "y"}).layout == "text"
    assert one({"messages": None, "instruction": "a", "input": None, "output": "b", "text": None}).layout == "alpaca"


def test_columns() -> None:
    gsm8k = {"question": "1 + 1?", "answer": "2", "input": "a note"}
    assert turns(gsm8k, "instruction=question,output=answer") == [("user", "1 + 1?"), ("assistant", "2")]
    asked = one({"input": "a", "output": "b"}, "instruction=input,output=output")
    assert asked.messages == (Message("user", "a"), Message("assistant", "b"))
    assert turns({"dialog": [HUMAN, GPT]}, "conversations=dialog") == [("user", "a"), ("assistant", "b")]
    assert turns({"content": "x"}, "text=content") == [("assistant", "x")]
    # Optional ones may be absent, and a row of another layout goes its own way.
    assert turns({"q": "a", "a": "b"}, "instruction=q,output=a,input=more") == [("user", "a"), ("assistant", "b")]
    assert one({"instruction": "a", "output": "b"}, "instruction=question,output=answer").layout == "alpaca"
    missing = reason({"question": "a", "reply": "b"}, "instruction=question,output=answer")
    assert missing == "missing key 'answer', which --columns names (the row has: question, reply)"
    none = reason({"x": "a"}, "instruction=question,output=answer")
    assert none == "has none of the columns that --columns names: question, answer (the row has: x)"


# ---- what is refused


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "a", "answer": "b"}, "has 'question' and 'answer'; pass --columns instruction=question,output=a"),
        ({"query": "a", "response": "b"}, "pass --columns instruction=query,output=response"),
        ({"prompt": "a", "response": "b"}, "pass --columns instruction=prompt,output=response"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "missing key 'completion' (the row has: prompt, chosen, rej"),
        ({"title": "a", "paragraphs": []}, "is in no known layout (the row has: title, paragraphs); expected instruct"),
        ({"instruction": "a", "instances": []}, "'instances' is empty"),
        ({"instruction": "a", "instances": [{"input": "", "output": "b"}, {"input": ""}]}, "instance 2: missing key"),
        ({"instruction": "a", "instances": [{"output": ""}]}, "instance 1: 'output' is empty"),
        ({"instruction": "a", "instances": [3]}, "instance 1 is not an object (got int 3)"),
        ({"instruction": "a", "instances": {}}, "'instances' is not a list (got object)"),
        ({"prompt": "", "completion": "b"}, "'prompt' is empty; a row without a prompt has its text under 'text'"),
        ({"prompt": "a", "completion": ""}, "'completion' is empty"),
        ({"prompt": "a", "completion": [ANSWER]}, "must both be text or both be messages (got str 'a' and list)"),
        ({"prompt": [USER], "completion": [USER]}, "no turn is the assistant's (got user, user)"),
        ({"prompt": [USER, ANSWER], "completion": [USER]}, "no turn is trained"),
        ({"text": 3}, "'text' is not text (got int 3)"),
        ({"text": "  "}, "'text' is blank"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": "[]"}, "'messages' is not a list of messages (got str '[]')"),
        ({"messages": [USER, "b"]}, "message 2 is not an object (got str 'b')"),
        ({"messages": [USER]}, "no turn is the assistant's (got user)"),
        ({"messages": [USER, {"role": "assistant"}]}, "message 2 has no 'content' (it has: role)"),
        ({"messages": [{"content": "a"}]}, "message 1 has no 'role' (it has: content)"),
        ({"messages": [USER, {"role": "assistent", "content": "b"}]}, "unknown role 'assistent'; expected system,"),
        ({"messages": [USER, {"role": "assistent", "content": "b"}]}, "did you mean 'assistant'?"),
        ({"messages": [{"role": "human", "content": "b"}]}, "did you mean 'user'?"),
        ({"messages": [{"role": 3, "content": "b"}]}, "message 1: the role is not text (got int 3)"),
        ({"messages": [USER, ANSWER | {"content": ""}]}, "message 2 (assistant) is empty"),
        ({"messages": [USER | {"content": " "}, ANSWER]}, "message 1 (user) is blank (white space only)"),
        ({"messages": [USER, ANSWER | {"content": None}]}, "message 2 (assistant) is not text (got null)"),
        ({"messages": [USER, ANSWER | {"content": 3}]}, "message 2 (assistant) is not text (got int 3)"),
        ({"messages": [USER | {"content": [{"type": "image_url", "url": "x"}]}, ANSWER]}, "of type 'image_url'"),
        ({"messages": [USER | {"content": ["x"]}, ANSWER]}, "message 1 (user) has a part that is not text (str"),
        ({"messages": [USER | {"content": [{"type": "text", "text": 1}]}]}, "message 1 (user), a part of it is not"),
        ({"messages": [USER | {"content": []}]}, "message 1 (user) is empty"),
        ({"messages": [USER, ANSWER | {"content": None, "tool_calls": [{}]}]}, "message 2 has 'tool_calls'; conversat"),
        ({"messages": [USER, ANSWER | {"reasoning_content": "hm"}]}, "message 2 has 'reasoning_content', which would"),
        ({"messages": [USER, ANSWER], "tools": [{}]}, "'tools' is not empty"),
        ({"messages": [USER, ANSWER | {"train": 1}]}, "message 2: 'train' is neither true nor false (got int 1)"),
        ({"messages": [USER, ANSWER | {"training": False}]}, "the unknown key 'training'; did you mean 'train'?"),
        ({"messages": [USER, ANSWER | {"weight": -1}]}, "message 2: 'weight' is int -1; expected a number of at least"),
        ({"messages": [USER | {"train": True}, ANSWER]}, "message 1 is the user's and has 'train': true; only"),
        ({"messages": [USER | {"weight": 0.5}, ANSWER]}, "message 1 is the user's and has 'weight': 0.5; only turns"),
        ({"messages": [USER, ANSWER | {"train": False}, ANSWER | {"weight": 0}]}, "no turn is trained"),
        ({"messages": [{"role": "system", "content": "s"}, ANSWER], "system": "t"}, "a system text stands twice"),
        ({"conversations": [HUMAN, {"from": "alien", "value": "b"}]}, "message 2 has the unknown speaker 'alien'"),
        ({"conversations": [HUMAN, {"from": "function_call", "value": "{}"}]}, "message 2 is a 'function_call'"),
        ({"conversations": [HUMAN, {"from": "gpt", "text": "b"}]}, "message 2 has no 'value' (it has: from, text)"),
        ({"conversations": [HUMAN, GPT | {"value": "\ud800"}]}, "message 2 (assistant) holds a lone surrogate"),
    ],
)  # fmt: skip
def test_reason(row: object, words: str) -> None:
    assert words in reason(row)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "a", "user", "gpt", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "train", "weight", "type", "text", "input", "output"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
top_keys = ("messages", "conversations", "instruction", "instances", "output", "prompt", "completion", "text", "weight")


@given(row=st.dictionaries(st.sampled_from((*top_keys, "system", "history", "context", "response")), json_values))
def test_any_object_gives_trainable_conversations_or_one_reason(row: dict[str, Any]) -> None:
    before = copy.deepcopy(row)
    try:
        found = examples(row)
    except Fault as fault:
        found, said = [], str(fault)
    else:
        said = ""
    assert repr(row) == repr(before)
    assert bool(found) != bool(said)
    assert "\n" not in said
    for example in found:
        answers = [turn for turn in example.messages if turn.role == "assistant"]
        assert all(turn.content.strip() for turn in answers)
        assert any(turn.train is not False and turn.weight > 0 for turn in answers)
        assert example.weight > 0
