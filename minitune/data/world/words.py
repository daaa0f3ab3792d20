"""The words of the small world, in two languages, and which combinations of them are held out from training.

A thing is held out by a hash of its name and of what it is combined with, never by a list: whatever the generators
write, a held-out combination cannot slip into the text that a model is trained on.
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Words:
    """The words of one language; whatever stands at the same place in two languages means the same.

    things     portable things, with the measure word that goes before them (empty in English)
    sounds     animal -> what it says; opposites are pairs; days and numbers are in their order
    """

    name: str
    people: tuple[str, ...]
    things: dict[str, str]
    foods: tuple[str, ...]
    places: tuple[str, ...]
    colours: tuple[str, ...]
    sounds: dict[str, str]
    opposites: tuple[tuple[str, str], ...]
    days: tuple[str, ...]
    numbers: tuple[str, ...]
    comma: str

    @property
    def animals(self) -> tuple[str, ...]:
        return tuple(self.sounds)

    def number(self, n: int) -> str:
        """The word for ``n``, 1 to 20."""
        return self.numbers[n - 1]

    def quantity(self, n: int) -> str:
        """The word for ``n`` before a measure word: Chinese counts two things with another word than the number."""
        return "两" if n == 2 and self.name == "zh" else self.number(n)

    def lexicon(self) -> Iterator[str]:
        """Every word of the language."""
        yield from self.people + self.foods + self.places + self.colours + self.days + self.numbers
        yield from (word for pair in self.opposites for word in pair)
        for table in (self.things, self.sounds):
            for key, value in table.items():
                yield from filter(None, (key, value))


ENGLISH = Words(
    name="en",
    people=("Tom", "Mia", "Ben", "Anna", "Sam", "Lily", "Jack", "Emma", "Leo", "Nina", "Max", "Rosa"),
    things=dict.fromkeys(
        ("ball", "book", "cup", "hat", "key", "lamp", "bag", "pen", "kite", "drum", "coin", "box", "rope", "clock"), ""
    ),
    foods=("apples", "eggs", "pears", "cakes", "nuts", "bananas", "carrots", "grapes"),
    places=("garden", "kitchen", "park", "shop", "forest", "school", "library", "market", "station", "garage"),
    colours=("red", "blue", "green", "yellow", "black", "white", "brown", "pink", "grey", "gold"),
    sounds={
        "cat": "meow", "dog": "woof", "cow": "moo", "duck": "quack", "sheep": "baa", "hen": "cluck", "pig": "oink",
        "frog": "croak", "bee": "buzz", "lion": "roar", "mouse": "squeak", "horse": "neigh",
    },
    opposites=(
        ("big", "small"), ("hot", "cold"), ("long", "short"), ("new", "old"), ("fast", "slow"), ("high", "low"),
        ("day", "night"), ("up", "down"), ("open", "closed"), ("full", "empty"), ("happy", "sad"), ("wet", "dry"),
        ("hard", "soft"), ("early", "late"), ("strong", "weak"), ("clean", "dirty"), ("left", "right"), ("far", "near"),
    ),
    days=("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    numbers=(
        "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
        "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
    ),
    comma=", ",
)  # fmt: skip

CHINESE = Words(
    name="zh",
    people=("小明", "小红", "小华", "小丽", "小刚", "小美", "小强", "小芳", "小龙", "小雪", "小军", "小云"),
    things={
        "球": "个", "书": "本", "杯子": "个", "帽子": "顶", "钥匙": "把", "灯": "盏", "书包": "个", "笔": "支",
        "风筝": "只", "鼓": "面", "硬币": "枚", "盒子": "个", "绳子": "根", "钟": "个",
    },
    foods=("苹果", "鸡蛋", "梨", "蛋糕", "坚果", "香蕉", "胡萝卜", "葡萄"),
    places=("花园", "厨房", "公园", "商店", "森林", "学校", "图书馆", "市场", "车站", "车库"),
    colours=("红色", "蓝色", "绿色", "黄色", "黑色", "白色", "棕色", "粉色", "灰色", "金色"),
    sounds={
        "猫": "喵", "狗": "汪", "牛": "哞", "鸭子": "嘎", "羊": "咩", "母鸡": "咯", "猪": "哼", "青蛙": "呱",
        "蜜蜂": "嗡", "狮子": "吼", "老鼠": "吱", "马": "嘶",
    },
    opposites=(
        ("大", "小"), ("热", "冷"), ("长", "短"), ("新", "旧"), ("快", "慢"), ("高", "低"), ("白天", "黑夜"),
        ("上", "下"), ("开", "关"), ("满", "空"), ("高兴", "难过"), ("湿", "干"), ("硬", "软"), ("早", "晚"),
        ("强", "弱"), ("干净", "脏"), ("左", "右"), ("远", "近"),
    ),
    days=("星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"),
    numbers=(
        "一", "二", "三", "四", "五", "六", "七", "八", "九", "十", "十一", "十二", "十三", "十四", "十五", "十六",
        "十七", "十八", "十九", "二十",
    ),
    comma="、",
)  # fmt: skip

LANGUAGES = (ENGLISH, CHINESE)


def bilingual() -> tuple[tuple[str, str], ...]:
    """(English, Chinese) of every word that both languages name alike."""
    en, zh = ENGLISH, CHINESE
    pairs = [*zip(en.colours, zh.colours, strict=True), *zip(en.animals, zh.animals, strict=True)]
    pairs += [*zip(en.things, zh.things, strict=True), *zip(en.numbers[:10], zh.numbers[:10], strict=True)]
    pairs += [*zip(en.places, zh.places, strict=True)]
    return tuple(pairs)


def held_out(kind: str, *parts: str, one_in: int = 8) -> bool:
    """Whether a combination belongs to the test and must never be trained on: one in so many, by a hash."""
    return zlib.crc32("|".join((kind, *parts)).encode()) % one_in == 0


def any_held_out(combinations: Iterable[tuple[str, ...]]) -> bool:
    """Whether any of the combinations, each a kind and its parts, belongs to the test."""
    return any(held_out(*combination) for combination in combinations)
