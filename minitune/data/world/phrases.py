"""How the small world is spoken of: sentences with slots, and questions with the one answer that is right.

What is asked for stands behind what it is asked by: a person's thing behind the person, a thing's owner behind the
thing. The other way round, which asks a model to look back from a word to what stood before it, a model of this size
learned in bare pairs (``lookups.py``) and, in some million tokens, not in sentences.

Slots: p, q people; t thing, m its measure word; c colour; l place; f food; n, k numbers; a animal, s its sound;
x, y words; list a list. A question of ``ASK`` is a pair (question, answer); where ways of asking for a fact are held
out (``FACTS`` of scenes.py), every fact has four of them.
"""

SAY: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "has": ("{p} has a {c} {t}.", "{p} holds a {c} {t}."),
        "of": ("The {t} belongs to {p} and is {c}.", "The {t} is {c} and belongs to {p}."),
        "at": ("{p} is in the {l}.", "{p} plays in the {l}.", "{p} waits in the {l}."),
        "both": ("{p} is in the {l} with a {c} {t}.", "{p} plays in the {l} and has a {c} {t}."),
        "count": ("There are {n} {f} on the table of {p}.", "Now {n} {f} are on the table of {p}."),
        "goes": ("{p} goes to the {l}.", "{p} walks to the {l}.", "{p} runs to the {l}."),
        "then": ("Then {p} goes to the {l}.", "After that, {p} walks to the {l}.", "Later {p} goes to the {l}."),
    },
    "zh": {
        "has": ("{p}有一{m}{c}的{t}。", "{p}拿着一{m}{c}的{t}。"),
        "of": ("{t}是{p}的，颜色是{c}。", "{t}的颜色是{c}，是{p}的。"),
        "at": ("{p}在{l}里。", "{p}在{l}里玩。", "{p}在{l}里等人。"),
        "both": ("{p}在{l}里，拿着一{m}{c}的{t}。", "{p}在{l}里玩，有一{m}{c}的{t}。"),
        "count": ("有{n}个{f}在{p}的桌子上。", "{n}个{f}在{p}的桌子上。"),
        "goes": ("{p}去了{l}。", "{p}走到{l}。", "{p}跑到{l}。"),
        "then": ("然后{p}去了{l}。", "之后{p}走到{l}。", "后来{p}去了{l}。"),
    },
}

ASK: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {
    "en": {
        "has": (("What does {p} have?", "{p} has a {c} {t}."), ("What is in the hand of {p}?", "{p} has a {c} {t}.")),
        "who": (
            ("Who has the {t}?", "The {t} belongs to {p}."),
            ("Whose is the {t}?", "The {t} belongs to {p}."),
        ),
        "where": (("Where is {p}?", "{p} is in the {l}."), ("In which place is {p}?", "{p} is in the {l}.")),
        "colour": (
            ("What colour is the {t}?", "The {t} is {c}."),
            ("Which colour does the {t} have?", "The {t} is {c}."),
        ),
        "more": (
            ("Who has more {f}?", "The most are {n} {f} on the table of {p}."),
            ("Who has the most {f}?", "The most are {n} {f} on the table of {p}."),
        ),
        "fewer": (
            ("Who has fewer {f}?", "The fewest are {n} {f} on the table of {p}."),
            ("Who has the fewest {f}?", "The fewest are {n} {f} on the table of {p}."),
        ),
        "counted": (
            ("Whose are the {n} {f}?", "There are {n} {f} on the table of {p}."),
            ("Who has {n} {f}?", "There are {n} {f} on the table of {p}."),
        ),
        "moved": (
            ("Where is {p} now?", "{p} is in the {l} now."),
            ("Where can we find {p} now?", "{p} is in the {l} now."),
        ),
        "count": (
            ("How many things are in the list?", "There are {n} things."),
            ("Count the things in the list.", "There are {n} things."),
        ),
        "first": (
            ("What comes first in the list?", "The first is {x}."),
            ("Name the first thing in the list.", "The first is {x}."),
        ),
        "second": (
            ("What comes second in the list?", "The second is {x}."),
            ("Name the second thing in the list.", "The second is {x}."),
        ),
        "last": (
            ("What comes last in the list?", "The last is {x}."),
            ("Name the last thing in the list.", "The last is {x}."),
        ),
        "reverse": (("Say the list backwards.", "{list}"), ("Turn the list around.", "{list}")),
        "range": (("Count from {n} to {k}.", "{list}"), ("Say the numbers from {n} to {k}.", "{list}")),
        "odd": (
            ("Which word does not belong in the list?", "{x} does not belong."),
            ("Find the word that does not belong.", "{x} does not belong."),
        ),
        "translate": (
            ("What is {x} in Chinese?", "{x} is {y} in Chinese."),
            ("How do you say {x} in Chinese?", "{x} is {y} in Chinese."),
            ("Which Chinese word means {x}?", "{x} is {y} in Chinese."),
            ("Give the Chinese word for {x}.", "{x} is {y} in Chinese."),
        ),
        "opposite": (
            ("What is the opposite of {x}?", "The opposite of {x} is {y}."),
            ("Which word means the opposite of {x}?", "The opposite of {x} is {y}."),
            ("Say the opposite of {x}.", "The opposite of {x} is {y}."),
            ("If it is not {x}, what is it?", "The opposite of {x} is {y}."),
        ),
        "sound": (
            ("What does the {a} say?", "The {a} says {s}."),
            ("Which sound does the {a} make?", "The {a} says {s}."),
            ("How does the {a} speak?", "The {a} says {s}."),
            ("What do you hear from the {a}?", "The {a} says {s}."),
        ),
        "day": (
            ("Which day comes after {x}?", "After {x} comes {y}."),
            ("Today is {x}. Which day is tomorrow?", "After {x} comes {y}."),
            ("Which day follows {x}?", "After {x} comes {y}."),
            ("What day is it one day after {x}?", "After {x} comes {y}."),
        ),
    },
    "zh": {
        "has": (("{p}有什么？", "{p}有一{m}{c}的{t}。"), ("{p}手里拿着什么？", "{p}有一{m}{c}的{t}。")),
        "who": (("谁有{t}？", "{t}是{p}的。"), ("{t}是谁的？", "{t}是{p}的。")),
        "where": (("{p}在哪里？", "{p}在{l}里。"), ("{p}在什么地方？", "{p}在{l}里。")),
        "colour": (("{t}是什么颜色的？", "{t}的颜色是{c}。"), ("{t}的颜色是什么？", "{t}的颜色是{c}。")),
        "more": (
            ("谁的{f}更多？", "最多的是{n}个{f}，在{p}的桌子上。"),
            ("谁的{f}最多？", "最多的是{n}个{f}，在{p}的桌子上。"),
        ),
        "fewer": (
            ("谁的{f}更少？", "最少的是{n}个{f}，在{p}的桌子上。"),
            ("谁的{f}最少？", "最少的是{n}个{f}，在{p}的桌子上。"),
        ),
        "counted": (("{n}个{f}是谁的？", "{n}个{f}在{p}的桌子上。"), ("谁有{n}个{f}？", "{n}个{f}在{p}的桌子上。")),
        "moved": (("{p}现在在哪里？", "{p}现在在{l}里。"), ("现在去哪里找{p}？", "{p}现在在{l}里。")),
        "count": (("列表里有几样东西？", "一共有{n}样东西。"), ("数一数列表里的东西。", "一共有{n}样东西。")),
        "first": (("列表里第一个是什么？", "第一个是{x}。"), ("说出列表里的第一个。", "第一个是{x}。")),
        "second": (("列表里第二个是什么？", "第二个是{x}。"), ("说出列表里的第二个。", "第二个是{x}。")),
        "last": (("列表里最后一个是什么？", "最后一个是{x}。"), ("说出列表里的最后一个。", "最后一个是{x}。")),
        "reverse": (("把列表倒过来说。", "{list}"), ("请倒着说列表。", "{list}")),
        "range": (("从{n}数到{k}。", "{list}"), ("请说出从{n}到{k}的数字。", "{list}")),
        "odd": (
            ("列表里哪个词和别的不一样？", "{x}和别的不一样。"),
            ("找出和别的不一样的词。", "{x}和别的不一样。"),
        ),
        "translate": (
            ("{x}用英语怎么说？", "{x}用英语说是{y}。"),
            ("{x}的英语是什么？", "{x}用英语说是{y}。"),
            ("请用英语说{x}。", "{x}用英语说是{y}。"),
            ("哪个英语词是{x}？", "{x}用英语说是{y}。"),
        ),
        "opposite": (
            ("{x}的反义词是什么？", "{x}的反义词是{y}。"),
            ("和{x}相反的词是什么？", "{x}的反义词是{y}。"),
            ("请说出{x}的反义词。", "{x}的反义词是{y}。"),
            ("不是{x}，那是什么？", "{x}的反义词是{y}。"),
        ),
        "sound": (
            ("{a}怎么叫？", "{a}叫起来是{s}。"),
            ("{a}的叫声是什么？", "{a}叫起来是{s}。"),
            ("听，{a}怎么说话？", "{a}叫起来是{s}。"),
            ("{a}会发出什么声音？", "{a}叫起来是{s}。"),
        ),
        "day": (
            ("{x}的后面是哪一天？", "{x}的后面是{y}。"),
            ("今天是{x}，明天是哪一天？", "{x}的后面是{y}。"),
            ("{x}之后是哪一天？", "{x}的后面是{y}。"),
            ("过了{x}是哪一天？", "{x}的后面是{y}。"),
        ),
    },
}
