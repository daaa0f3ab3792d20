"""Small stories: a row of steps, each said in one of several ways, with the same people and things all the way.

Slots: p, q people; t thing, m its measure word; c colour, e another; l, r places; a animal, s its sound; d a day;
n a number, f food; o, w a pair of opposites.
"""

STORIES: dict[str, tuple[tuple[tuple[str, ...], ...], ...]] = {
    "en": (
        (
            ("One day {p} finds a {c} {t} in the {l}.", "On {d} {p} sees a {c} {t} in the {l}.",
             "In the {l} there is a {c} {t}, and {p} finds it."),
            ("{p} looks at it for a long time.", "It is clean and new.", "{p} has never seen such a nice {t}.", ""),
            ('"Whose is the {t}?" asks {p}.', '"Who has lost a {t}?" {p} asks.', "{p} wants to know whose it is."),
            ('{q} comes and says: "It is mine."', 'Then {q} says: "The {t} is mine. Thank you!"'),
            ("{p} gives the {t} to {q}.", "So {q} has the {c} {t} again."),
            ("Now {q} is happy.", "They are both happy.", "{p} and {q} become friends.", "The two play until night."),
        ),
        (
            ("Every {d} {p} goes to the {l}.", "It is {d}, and {p} walks to the {l}.",
             "Early in the day {p} runs to the {l}."),
            ("A {a} lives there.", "There is a {a} near the {l}.", "A small {c} {a} waits for {p}."),
            ("{s}, {s}, says the {a}.", 'The {a} says "{s}".', ""),
            ("{p} has {n} {f} and gives one to the {a}.", "The {a} is hungry, so {p} gives it some {f}.",
             "{p} takes {n} {f} out of a bag."),
            ("The {a} eats and is full.", "The {a} likes {f} very much.", "Soon the {a} is full and happy."),
            ("Then {p} goes home.", "When it is dark, {p} walks home.", "Later {p} tells {q} about the {a}."),
        ),
        (
            ("{p} and {q} are in the {l}.", "One cold day {p} meets {q} in the {l}.",
             "On {d} {p} and {q} play in the {l}."),
            ("{p} has a {c} {t}, and {q} has a {e} one.", "{p} shows {q} a {c} {t}.", "They have a {c} {t} with them."),
            ("It begins to rain and they get wet.", "The sun is hot and the sky is blue.", "The wind is strong.", ""),
            ("They run to the {r}.", "They walk to the {r} together.", "So they go from the {l} to the {r}."),
            ("In the {r} it is dry and warm.", "There they eat {n} {f}.", "In the {r} they sit and talk."),
            ('"What a day!" says {q}.', '"Come again on {d}," says {p}.', "In the end both are tired but happy."),
        ),
        (
            ("{p} looks for a {t}.", "{p} has lost a {c} {t}.", "Where is the {t} of {p}?"),
            ("It is not in the {l}.", "{p} looks in the {l}, but the {t} is not there.", "First {p} goes to the {l}."),
            ("Then {p} looks in the {r}.", "After that {p} goes to the {r}.", "{q} says: look in the {r}!"),
            ("There it is, behind the door.", "The {t} is in the {r}, under a big box.",
             "In the {r} stands a {a} with the {t}."),
            ("{p} is glad to have the {t} again.", "{p} takes the {t} home.", "Thank you, says {p}."),
        ),
        (
            ("{p} makes a list.", "{p} writes a list for {q}.", "{q} reads a list to {p}."),
            ("It has {n} words.", "There are {n} things in it.", "The list is not long."),
            ("The first thing is a {t}.", "The first word is {c}.", "First comes the {l}."),
            ("Then come {f} and a {a}.", "The second is a {a}, and the last is {c}.", "After it comes the {r}."),
            ("{q} learns the list by heart.", "{p} says the list backwards.", "They count the words: {n}."),
        ),
        (
            ("This {t} is {o}, and that {t} is {w}.", "{p} has a {o} {t}. {q} has a {w} {t}.",
             "Not all things are {o}."),
            ("One is {c}, the other is {e}.", "Both are {c}.", ""),
            ('"I like the {o} one," says {p}.', '"Mine is {w}," says {q}.',
             "{p} likes what is {o}; {q} likes what is {w}."),
            ("They put both into the {l}.", "So each has one.", "Then they trade."),
        ),
        (
            ("{p} gets a letter from {q}.", "On {d} {p} writes a letter.", "{q} writes a request to {p}."),
            ("Below stands an instruction that describes a task.", "The instruction describes a task.",
             "It is paired with an input that provides further context."),
            ("Write a response, it says.", "The input provides further context.", "The task is: count the {f}."),
            ("{p} reads the input and writes a response.",
             "{p} gives a response that appropriately completes the request.",
             "The response completes the request appropriately."),
            ("### The end ###", "{q} reads the response and is happy.", "Input and response are in one box."),
        ),
    ),
    "zh": (
        (
            ("有一天，{p}在{l}里发现了一{m}{c}的{t}。", "{d}，{p}在{l}里看见一{m}{c}的{t}。",
             "{l}里有一{m}{c}的{t}，{p}看见了它。"),
            ("{p}看了很久。", "它又干净又新。", "{p}从来没有见过这么好的{t}。", ""),
            ("“{t}是谁的？”{p}问。", "{p}问：“谁丢了{t}？”", "{p}想知道它是谁的。"),
            ("{q}走过来说：“是我的。”", "{q}说：“{t}是我的，谢谢你！”"),
            ("{p}把{t}给了{q}。", "{q}又有了那{m}{c}的{t}。"),
            ("现在{q}很高兴。", "他们都很高兴。", "{p}和{q}成了朋友。", "两个人一直玩到黑夜。"),
        ),
        (
            ("每个{d}，{p}都去{l}。", "今天是{d}，{p}走到{l}。", "早上，{p}跑到{l}。"),
            ("那里有一只{a}。", "{l}的旁边有一只{a}。", "一只小{a}在等{p}。"),
            ("{a}叫起来：{s}，{s}。", "{a}说：“{s}”。", ""),
            ("{p}有{n}个{f}，给了{a}一个。", "{a}饿了，{p}给它一些{f}。", "{p}从书包里拿出{n}个{f}。"),
            ("{a}吃饱了。", "{a}很喜欢{f}。", "很快{a}就吃饱了，很高兴。"),
            ("然后{p}回家了。", "天黑了，{p}走回家。", "后来{p}把{a}的事告诉了{q}。"),
        ),
        (
            ("{p}和{q}在{l}里。", "一个冷天，{p}在{l}里遇到{q}。", "{d}，{p}和{q}在{l}里玩。"),
            ("{p}有一{m}{c}的{t}，{q}的是{e}的。", "{p}给{q}看一{m}{c}的{t}。", "他们带着一{m}{c}的{t}。"),
            ("下雨了，他们都湿了。", "太阳很热，天是蓝色的。", "风很强。", ""),
            ("他们跑到{r}。", "他们一起走到{r}。", "他们从{l}去了{r}。"),
            ("{r}里又干又暖。", "他们在那里吃了{n}个{f}。", "他们坐在{r}里说话。"),
            ("“今天真好！”{q}说。", "{p}说：“{d}再来吧。”", "最后两个人都累了，可是很高兴。"),
        ),
        (
            ("{p}在找{t}。", "{p}丢了一{m}{c}的{t}。", "{p}的{t}在哪里？"),
            ("它不在{l}里。", "{p}在{l}里找，可是{t}不在那里。", "{p}先去了{l}。"),
            ("然后{p}在{r}里找。", "之后{p}去了{r}。", "{q}说：去{r}里看看！"),
            ("它在那里，在门的后面。", "{t}在{r}里，在一个大盒子下面。", "{r}里有一只{a}，拿着{t}。"),
            ("{p}又有了{t}，很高兴。", "{p}把{t}拿回家。", "{p}说谢谢。"),
        ),
        (
            ("{p}写了一个列表。", "{p}给{q}写列表。", "{q}给{p}读一个列表。"),
            ("里面有{n}个词。", "一共有{n}样东西。", "列表不长。"),
            ("第一个是{t}。", "第一个词是{c}。", "列表里第一个是{l}。"),
            ("然后是{f}和{a}。", "第二个是{a}，最后一个是{c}。", "后面是{r}。"),
            ("{q}记住了列表。", "{p}把列表倒过来说。", "他们数了数：{n}个词。"),
        ),
        (
            ("这{m}{t}是{o}的，那{m}{t}是{w}的。", "{p}的{t}是{o}的，{q}的{t}是{w}的。", "不是所有东西都是{o}的。"),
            ("一个是{c}的，一个是{e}的。", "都是{c}的。", ""),
            ("{p}说：“我喜欢{o}的。”", "{q}说：“我的是{w}的。”", "{p}喜欢{o}的，{q}喜欢{w}的。"),
            ("他们把东西放在{l}里。", "每个人都有一个。", "然后他们交换了。"),
        ),
        (
            ("{p}收到{q}的信。", "{d}，{p}写了一封信。", "{q}给{p}写信，请{p}做一件事。"),
            ("信里说了要做什么。", "信里有一个问题。", "信里有一个列表。"),
            ("请写一个回答。", "问题是：有几个{f}？", "{q}问：{a}怎么叫？"),
            ("{p}读了信，写了回答。", "{p}的回答是{n}。", "{p}说：从一数到{n}。"),
            ("{q}读了回答，很高兴。", "回答和信放在一个盒子里。", "这就完了。"),
        ),
    ),
}  # fmt: skip

STATED: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "translate": ("{x} is {y}.", "In Chinese {x} is called {y}.", "{x}: {y}", "The Chinese word for {x} is {y}."),
        "opposite": ("What is not {x} is {y}.", "{x} and {y} are opposites.", "{x}, not {y}.",
                     "{y} is the opposite of {x}."),
        "sound": ('"{s}" says the {a}.', "{s}, {s}! That is the {a}.", "I hear a {a}: {s}.",
                  "When the {a} speaks, it says {s}."),
        "day": ("Today is {x}, tomorrow is {y}.", "{x} goes before {y}.", "{y} comes after {x}."),
        "kind": ("The {a} is an animal.", "{c} is a colour.", "The {l} is a place.", "A {t} is a thing.",
                 "{n} is a number."),
        "more": ("{k} is more than {n}.", "{n} is less than {k}.", "{k} {f} are more than {n} {f}."),
        "asks": ("{p} asks: {question} {q} says: {answer}", "{question} {answer}",
                 "Question: {question}\nAnswer: {answer}"),
        "list": ("The list: {story}.", "{p} says: {story}.", "In the list stand {story}."),
    },
    "zh": {
        "translate": ("{x}就是{y}。", "英语里{x}叫{y}。", "{x}：{y}", "{x}的英语是{y}。"),
        "opposite": ("不{x}就是{y}。", "{x}和{y}是反义词。", "是{x}，不是{y}。", "{y}是{x}的反义词。"),
        "sound": ("“{s}”，{a}说。", "{s}，{s}！那是{a}。", "我听见{a}：{s}。", "{a}的叫声是{s}。"),
        "day": ("今天是{x}，明天是{y}。", "{x}在{y}的前面。", "{y}在{x}的后面。"),
        "kind": ("{a}是动物。", "{c}是颜色。", "{l}是地方。", "{t}是东西。", "{n}是数字。"),
        "more": ("{k}比{n}多。", "{n}比{k}少。", "{k}个{f}比{n}个{f}多。"),
        "asks": ("{p}问：{question}{q}说：{answer}", "{question}{answer}", "问：{question}\n答：{answer}"),
        "list": ("列表：{story}。", "{p}说：{story}。", "列表里有{story}。"),
    },
}  # fmt: skip
"""Facts in plain words (never in the words of a question that instructions ask), and frames around a scene."""

SHEETS: dict[str, dict[str, tuple]] = {
    "en": {
        "heads": (
            ("Question", "Text", "Answer"), ("Question", "Story", "Answer"), ("Task", "Text", "Answer"),
            ("Task", "Input", "Answer"), ("Request", "Context", "Reply"), ("Instruction", "Text", "Reply"),
            ("Task", "Story", "Response"), ("Request", "Input", "Answer"), ("Question", "Context", "Response"),
        ),
        "preface": (
            "", "", "", "Here are questions and answers.", "Below is a task with its answer.",
            "Read the text and answer the question.", "Write an answer to the request.",
        ),
    },
    "zh": {
        "heads": (
            ("问题", "短文", "回答"), ("问", "文", "答"), ("题", "内容", "答案"), ("请求", "内容", "回答"),
            ("问题", "列表或短文", "答案"),
        ),
        "preface": ("", "", "", "下面是问题和回答。", "请读短文，回答问题。", "请写出答案。"),
    },
}  # fmt: skip
"""Headings of a sheet (over the question, the text it is about, and the answer), and what may stand above it all.

The headings of the Alpaca template are among them, but never the three together: the form is for fine-tuning to teach.
"""

COPIED = {"en": (" ", ", ", ". ", "; ", ": "), "zh": ("、", "。", "\n", "，", "；")}
"""What stands between the words of a list that is said again."""

GAPS = {
    "en": ((": ", " - ", " and ", " has ", " is ", ", ", " = "), (", ", ". ", "\n", " ")),
    "zh": (("：", "和", "有", "是", "，", "在"), ("，", "。", "\n")),
}
WIDE_GAPS = {
    "en": (
        (" has a ", " is in the ", " goes to the ", " belongs to ", " is on the table of ", " holds a ",
         " waits in the ", " is next to the ", " and then "),
        (". ", ". ", "\n", " "),
    ),
    "zh": (
        ("有一个", "在", "走到", "的颜色是", "是", "拿着一把", "去了", "旁边有", "现在在", "的后面是"),
        ("。", "。", "\n", "，"),
    ),
}  # fmt: skip
"""What may stand between the two of a pair, a mark or several words, and behind it."""
PAIRED: dict[str, tuple[tuple[str, str, str], ...]] = {
    "en": (
        (": ", ": ", ". "), (": ", "? ", ". "), (" and ", " and ", ". "), (" and ", "? ", ". "), (", ", ", ", "; "),
        (", ", "? ", "; "), (": ", ": ", ", "), (" and ", ": ", "; "),
    ),
    "zh": (
        ("：", "：", "。"), ("：", "？", "。"), ("和", "和", "。"), ("和", "？", "。"), ("，", "，", "；"),
        ("，", "？", "；"), ("：", "：", "。\n"), ("和", "：", "。\n"),
    ),
}  # fmt: skip
"""How pairs are written: what stands between the two where they are told, where they are asked for, and behind."""

LEADS = {"en": ("The list: ", "{p} says: ", "In the list stand "), "zh": ("", "列表：", "{p}说：")}
"""What stands before bare words, so that in English the first of them is the same token as in the middle of a text."""

ORDERS: dict[str, tuple[str, ...]] = {
    "en": (
        "{list}: the most is {most}.", "{list}: the fewest is {least}.",
        "{list}. The most is {most}, the fewest is {least}.", "{list}. The fewest is {least}, the most is {most}.",
    ),
    "zh": (
        "{list}：最多的是{most}个。", "{list}：最少的是{least}个。", "{list}。最多的是{most}个，最少的是{least}个。",
        "{list}。最少的是{least}个，最多的是{most}个。",
    ),
}  # fmt: skip
"""What is the most and the fewest of a row of numbers."""
