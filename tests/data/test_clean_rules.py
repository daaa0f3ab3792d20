"""The rules of ``data check`` on hand-written rows: each finds what it is for and passes what only looks like it."""

import pytest

from minitune.chat import Message
from minitune.data.clean import RULES, Limits, chosen_rules, row_faults
from minitune.data.formats import Row
from minitune.data.language import language_of, wanted_language
from minitune.errors import ConfigError

ENGLISH = "The main themes of the book are the loss of innocence and the danger that lies in every one of us by nature."
GERMAN = "Die wichtigsten Themen des Buches sind der Verlust der Unschuld und die Gefahr, die in jedem von uns ist."
FRENCH = (
    "Les thèmes du livre sont la perte de l'innocence et le danger qui est dans la nature de chacun pour les autres."
)
CHINESE = "这本书的主题是纯真的丧失，以及存在于我们每个人内心的危险。"
JAPANESE = "この本のテーマは、無邪気さの喪失と、私たち一人一人の中にある危険です。"


def row(question: str, answer: str, context: str = "") -> Row:
    turns = (Message("user", question, context), Message("assistant", answer))
    return Row(turns, "alpaca", 1.0, "a.json", 1, 0)


def broken(question: str, answer: str, context: str = "", limits: Limits | None = None) -> set[str]:
    return set(row_faults(row(question, answer, context), list(RULES), limits or Limits()))


FOUND = [
    ("empty", "Name a colour.", "..."),
    ("empty", "Name a colour.", "<nooutput>"),
    ("empty", "Name a colour.", " n/a "),
    (
        "truncated",
        "Tell me about foxes.",
        "Foxes are small animals that live in forests, in fields and in towns, and the",
    ),
    ("truncated", "讲讲狐狸。", "狐狸是一种小型哺乳动物，" * 6),
    ("truncated", "Write a loop.", "Here you are:\n```python\nfor i in range(3):\n    print(i)\n"),
    (
        "truncated",
        "Give steps.",
        "First of all there is a list of steps that you can take on any day:\n1. Sleep well.\n2.",
    ),
    ("long", "Write a novel.", "word " * 1700),
    ("language", "What are the main themes?", CHINESE),
    ("language", "这本书的主题是什么？请详细说明。", ENGLISH),
    ("language", "この本のテーマは何ですか。教えてください。", CHINESE),
    ("language", ENGLISH + " What else can be said of it?" + ENGLISH, GERMAN + " " + GERMAN),
    ("mojibake", "Where do you drink coffee?", "In a cafÃ© in Paris."),
    ("mojibake", "Where do you drink coffee?", "In a caf\ufffd in Paris."),
    ("mojibake", "What did she say?", "She said â€œgood morningâ€\u009d."),
    ("mojibake", "It wasnâ€™t me, was it?", "It was not you."),
    ("mojibake", "说什么？", "锟斤拷锟斤拷"),
    ("html", "Write a haiku about spring.", "Spring comes<br>the river runs<br/>and stays"),
    ("html", "What is rain?", "It&#39;s water &amp; more."),
    ("html", "Who is she?", '<p class="bio">A writer.</p>'),
    ("refusal", "Draw a map.", "I'm sorry, but I cannot draw maps."),
    ("refusal", "Draw a map.", "As an AI language model, I have no hands."),
    ("refusal", "Draw a map.", "I am unable to create images."),
    ("refusal", "画一张地图。", "很抱歉，我无法画地图。"),
    ("refusal", "画一张地图。", "作为一个人工智能语言模型，我没有手。"),
    ("repetition", "Tell me about foxes.", "The fox is " + "very " * 20 + "quick."),
    ("repetition", "Tell me about foxes.", "I do not know. " * 8),
    ("repetition", "讲讲狐狸。", "狐狸很聪明。" * 8),
    ("echo", "Design a plan for the new office.", "design a plan  for the new office."),
]


@pytest.mark.parametrize(("rule", "question", "answer"), FOUND)
def test_what_a_rule_finds(rule: str, question: str, answer: str) -> None:
    assert rule in broken(question, answer)


NOT_FOUND = [
    ("Name a colour.", "Red"),
    ("Is it true?", "No"),
    ("What is 2 + 2?", "4"),
    ("Which symbol means and?", "&"),
    ("React.", "👍"),
    ("What does null mean?", "null"),
    (
        "Write a letter.",
        "Dear Sir,\nThank you for all your work over the last ten years.\nI wish you well.\nSincerely,",
    ),
    ("List areas.", "- Security\n- Data Visualization\n- Cloud Computing\n- Image Processing and the rest of it"),
    ("What do you care about?", "There are many things in this world which a person has to be taken care of"),
    ("Translate to Chinese: the main themes", CHINESE),
    ("用英语说：这本书的主题是什么？", ENGLISH),
    ("为名叫乔治的人生成一个独特的昵称", "Geo-Gepopo"),
    ("创建一段实现链表数据结构的代码。", "class Node {\n  constructor(value) {\n    this.value = value;\n  }\n}"),
    ("Wie heißt der Ort?", "São Paulo, naïve façade, Ångström, Ärger, £5, 20 °C, “quoted”…"),
    ("Où?", "À Â Ã. Ça va ; « là »"),
    ("Write an HTML page.", "<html><body><p>Hi</p></body></html>"),
    ("Compare.", "If a<b and c>d then a & b."),
    ("How do I print it?", "Use `<b>` in a fence:\n```\n<b>x</b>\n```"),
    ("Continue the talk.", "I can't wait to see it! I'm sorry to hear that you were ill."),
    ("How do I apologise?", "Say that you are sorry and that it will not happen again."),
    ("Insult me.", "You are as dim as an AI-generated insult."),
    ("Make a table.", "| Name | Age |\n|------------------|------------------|\n| Ann | 3 |"),
    ("Truth table of p and q?", "p q r\n" + "T T T\nT F F\nF T F\nF F F\n" * 2),
    ("Tables to ten", "\n".join(f"{i} x {j} = {i * j}" for i in range(2, 6) for j in range(2, 11))),
    ("Repeat hello ten times.", "hello " * 20),
    ("Correct: He go.", "He goes."),
]


@pytest.mark.parametrize(("question", "answer"), NOT_FOUND)
def test_what_passes_every_rule(question: str, answer: str) -> None:
    assert broken(question, answer) == set()


def test_an_answer_in_the_language_of_its_input_passes() -> None:
    assert broken("Say this in fewer words.", CHINESE, "这本书的主题是纯真的丧失，以及危险。") == set()
    assert broken("Say this in fewer words.", CHINESE, "The themes of the book are the loss of innocence.") == {
        "language"
    }


def test_a_wanted_language_overrules_that_of_the_question() -> None:
    assert broken("Thema?", GERMAN + GERMAN, limits=Limits(language="en")) == {"language"}
    assert broken("Themes?", CHINESE, limits=Limits(language="zh")) == set()
    assert broken("Themes?", ENGLISH + ENGLISH, limits=Limits(language="zh")) == {"language"}


def test_languages() -> None:
    texts = {
        "en": ENGLISH,
        "de": GERMAN,
        "fr": FRENCH,
        "zh": CHINESE,
        "ja": JAPANESE,
        "ko": "이 책의 주제는 순수함의 상실이다",
    }
    for name, text in texts.items():
        assert language_of(text) == name
    assert language_of("Главная тема книги это потеря невинности") == wanted_language("ru") == "cyrillic"
    for unsure in ("", "Red", "1 2 3 4 5 6", "jrosa@example.com, jharvey@example.com, the@and.of", CHINESE + ENGLISH):
        assert language_of(unsure) == ""
    with pytest.raises(ConfigError, match="known: en"):
        wanted_language("english")


def test_the_answer_that_broke_the_rule_is_named_in_a_conversation() -> None:
    turns = [("user", "Hi"), ("assistant", "Hello!"), ("user", "Draw a map."), ("assistant", "I cannot create images.")]
    conversation = Row(tuple(Message(role, text) for role, text in turns), "messages", 1.0, "a", 1, 0)  # pyright: ignore[reportArgumentType]
    fault = row_faults(conversation, list(RULES), Limits())["refusal"]
    assert fault.words.startswith("answer 2: the answer refuses")
    assert fault.answer is not None
    assert fault.answer.question == "Draw a map."


def test_choosing_rules() -> None:
    assert chosen_rules("default", cleaning=False) == chosen_rules("all", cleaning=True) == list(RULES)
    cleaning = chosen_rules("", cleaning=True)
    assert {"duplicate", "near-duplicate", "unreadable", "empty"} < set(cleaning)
    assert not {"contradiction", "html", "language", "long"} & set(cleaning)
    assert chosen_rules("html, empty", cleaning=True) == ["empty", "html"]
    assert set(chosen_rules("-refusal", cleaning=True)) == set(cleaning) - {"refusal"}
    assert set(chosen_rules("default,contradiction,-empty", cleaning=True)) == {*cleaning, "contradiction"} - {"empty"}
    with pytest.raises(ConfigError, match="there is no rule 'duplicates'; did you mean 'duplicate'"):
        chosen_rules("duplicates", cleaning=False)
    with pytest.raises(ConfigError, match="leaves no rule"):
        chosen_rules("html,-html", cleaning=False)
