"""Verifiable generated tasks in en, zh, ja and ko: arithmetic, comparison, lists, words, days.

    operands (pairs of digits, sets of digits, numbers, words)
      -> one prompt per task and language -> a computed answer

Guarantees: the answer is the only one that `is_right` accepts; the same operands have the same
`source_item` in every task and language, so a split by it has no operands on both sides; nothing
depends on Python's random module or hash seed.
Out of scope: the split (`instructions.py`); grading reasoning, since only the answer is checked.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, permutations
from typing import NamedTuple, TypeVar

LANGUAGES = ("en", "zh", "ja", "ko")
_T = TypeVar("_T")


class Task(NamedTuple):
    """An instruction and its computed answer."""

    task: str
    language: str
    difficulty: int
    source_item: str
    prompt: str
    answer: str


# ---- the verifier


def exact(answer: str) -> str:
    """The `verifier` column of a row whose answer must be `answer`."""
    return json.dumps({"kind": "exact", "answer": answer}, ensure_ascii=False)


def is_right(verifier: str, answer: str) -> bool:
    """Whether `answer` satisfies the verifier of its row.

    Raises ValueError for a verifier of a kind other than `exact`.
    """
    rule = json.loads(verifier)
    if rule.get("kind") != "exact":
        raise ValueError(f"there is no verifier of kind {rule.get('kind')!r}; known: 'exact'")
    return plain(answer) == plain(rule["answer"])


def plain(text: str) -> str:
    """The form in which answers are compared.

    Unicode NFKC, without white space at the ends, and without one final full stop.
    """
    text = unicodedata.normalize("NFKC", text).strip()
    return text[:-1].rstrip() if text[-1:] in (".", "。") else text


# ---- choices by a hash, the same on every machine


def hashed_integer(key: str, limit: int) -> int:
    """An integer in [0, limit) that depends on `key` alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % limit


def hashed_sample(key: str, items: Sequence[_T], count: int) -> list[_T]:
    """`count` of `items`, or all if there are fewer, in an order that depends on `key` alone."""
    order = sorted(range(len(items)), key=lambda i: hashed_integer(f"{key}\n{i}", 2**64))
    return [items[i] for i in order[:count]]


# ---- texts of the instructions, in the order of LANGUAGES

_PROMPTS = {
    "larger": (
        "Which is larger, {a} or {b}?",
        "{a} 和 {b} 哪个大?",
        "{a} と {b} ではどちらが大きい?",
        "{a}, {b} 중 큰 수는?",
    ),
    "smaller": (
        "Which is smaller, {a} or {b}?",
        "{a} 和 {b} 哪个小?",
        "{a} と {b} ではどちらが小さい?",
        "{a}, {b} 중 작은 수는?",
    ),
    "parity": (
        "Is {a} even or odd?",
        "{a} 是奇数还是偶数?",
        "{a} は偶数か奇数か?",
        "{a}: 짝수인가 홀수인가?",
    ),
    "first_item": ("First item: {a}", "第一项: {a}", "最初の項目: {a}", "첫 번째 항목: {a}"),
    "last_item": ("Last item: {a}", "最后一项: {a}", "最後の項目: {a}", "마지막 항목: {a}"),
    "repeat": ("Repeat: {a}", "重复: {a}", "繰り返す: {a}", "반복: {a}"),
    "contains": (
        "Is {b} in {a}?",
        "{a} 里有 {b} 吗?",
        "{a} に {b} はあるか?",
        "{a} 중에 {b} 포함?",
    ),
    "add": ("What is {a} + {b}?", "{a} + {b} 等于多少?", "{a} + {b} はいくつ?", "{a} + {b} 계산:"),
    "subtract": (
        "What is {a} - {b}?",
        "{a} - {b} 等于多少?",
        "{a} - {b} はいくつ?",
        "{a} - {b} 계산:",
    ),
    "multiply": (
        "What is {a} × {b}?",
        "{a} × {b} 等于多少?",
        "{a} × {b} はいくつ?",
        "{a} × {b} 계산:",
    ),
    "next_number": (
        "Which number follows {a}?",
        "{a} 的下一个数是?",
        "{a} の次の数は?",
        "{a} 다음 수는?",
    ),
    "sort_digits": (
        "Sort in ascending order: {a}",
        "从小到大排列: {a}",
        "小さい順に並べる: {a}",
        "작은 수부터 정렬: {a}",
    ),
    "count_items": ("How many items: {a}", "一共几项: {a}", "項目の数: {a}", "항목의 수: {a}"),
    "weekday": (
        "What day is {b} days after {a}?",
        "{a}之后 {b} 天是星期几?",
        "{a}の {b} 日後は何曜日?",
        "{a}에서 {b}일 뒤 요일은?",
    ),
    "first_letter": (
        "First letter of {a}:",
        "“{a}”的第一个字:",
        "「{a}」の最初の文字:",
        "“{a}”의 첫 글자:",
    ),
    "last_letter": (
        "Last letter of {a}:",
        "“{a}”的最后一个字:",
        "「{a}」の最後の文字:",
        "“{a}”의 마지막 글자:",
    ),
    "reverse_word": (
        "Spell backwards: {a}",
        "倒过来写: {a}",
        "逆さに書く: {a}",
        "거꾸로 쓰기: {a}",
    ),
    "count_letter": (
        "How often does the letter {b} occur in {a}?",
        "{a} 里有几个字母 {b}?",
        "{a} に文字 {b} はいくつある?",
        "{a}에서 글자 {b}의 수는?",
    ),
    "sort_words": (
        "Sort alphabetically: {a}",
        "按字母顺序排列: {a}",
        "アルファベット順に並べる: {a}",
        "알파벳순으로 정렬: {a}",
    ),
    "to_binary": ("Write {a} in binary:", "{a} 的二进制:", "{a} を二進数で:", "{a} 이진수로:"),
}
_YES_NO = (("yes", "no"), ("有", "没有"), ("はい", "いいえ"), ("예", "아니요"))
_EVEN_ODD = (("even", "odd"), ("偶数", "奇数"), ("偶数", "奇数"), ("짝수", "홀수"))
_DAYS = (
    ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    ("星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日"),
    ("月曜日", "火曜日", "水曜日", "木曜日", "金曜日", "土曜日", "日曜日"),
    ("월요일", "화요일", "수요일", "목요일", "금요일", "토요일", "일요일"),
)
CLOSED_ANSWERS = tuple(
    dict(zip(LANGUAGES, words, strict=True)) for words in (_YES_NO, _EVEN_ODD, _DAYS)
)
"""Closed sets of answers: each dictionary has their words by language, in the same order."""
# One concept between two bars; its English word names it in `source_item`. Every word has at least
# two characters.
_WORDS = tuple(
    tuple(line.split())
    for line in """\
water 饮用水 みず 생수|table 桌子 つくえ 책상|house 房子 いえ 가옥
river 河流 かわ 하천|letter 书信 てがみ 편지|garden 花园 にわ 정원
window 窗户 まど 창문|bread 面包 パン 식빵|mountain 高山 やま 산맥
street 街道 みち 거리|school 学校 がっこう 학교|teacher 老师 せんせい 교사
friend 朋友 ともだち 친구|winter 冬天 ふゆ 겨울|summer 夏天 なつ 여름
morning 早晨 あさ 아침|evening 晚上 ゆうがた 저녁|bridge 桥梁 はし 다리
station 车站 えき 기차역|ticket 车票 きっぷ 차표|doctor 医生 いしゃ 의사
hospital 医院 びょういん 병원|library 图书馆 としょかん 도서관|picture 图画 しゃしん 사진
paper 纸张 かみ 종이|pencil 铅笔 えんぴつ 연필|kitchen 厨房 だいどころ 부엌
market 市场 いちば 시장|flower 花朵 はな 꽃잎|forest 森林 もり 숲길
island 岛屿 しま 섬나라|ocean 海洋 うみ 바다|desert 沙漠 さばく 사막
village 村庄 むら 마을|family 家庭 かぞく 가족|brother 兄弟 きょうだい 형제
sister 姐妹 しまい 자매|weather 天气 てんき 날씨|thunder 雷声 かみなり 천둥
butter 黄油 バター 버터|cheese 奶酪 チーズ 치즈|orange 橙子 オレンジ 오렌지
banana 香蕉 バナナ 바나나|tomato 番茄 トマト 토마토|computer 电脑 パソコン 컴퓨터
camera 相机 カメラ 카메라|piano 钢琴 ピアノ 피아노|guitar 吉他 ギター 기타
hotel 酒店 ホテル 호텔|engine 引擎 エンジン 엔진|tennis 网球 テニス 테니스
soccer 足球 サッカー 축구|basket 篮子 かご 바구니|bottle 瓶子 びん 물병
chair 椅子 いす 의자|carpet 地毯 じゅうたん 양탄자|candle 蜡烛 ろうそく 양초
mirror 镜子 かがみ 거울|pocket 口袋 ポケット 주머니|button 按钮 ボタン 단추
rabbit 兔子 うさぎ 토끼|monkey 猴子 さる 원숭이|turtle 乌龟 かめ 거북이
elephant 大象 ぞう 코끼리""".replace("\n", "|").split("|")
)


def generate() -> Iterator[Task]:
    """All tasks, in a fixed order."""
    for index, language in enumerate(LANGUAGES):
        for row in (
            *_digit_pairs(index),
            *_digit_sets(index),
            *_numbers(index),
            *_days(index),
            *_words(index),
        ):
            task, difficulty, item, values, answer = row
            prompt = _PROMPTS[task][index].format(**values)
            yield Task(task, language, difficulty, f"generated/{item}", prompt, str(answer))


_Row = tuple[str, int, str, Mapping[str, object], object]
"""Task, difficulty, source item, values of the prompt, answer."""


def _digit_pairs(index: int) -> Iterator[_Row]:
    """Pairs of digits in both orders: comparison and one-digit arithmetic."""
    for a in range(10):
        for b in range(10):
            item, values = f"digits/{min(a, b)}-{max(a, b)}", {"a": a, "b": b}
            if a != b:
                yield "larger", 1, item, values, max(a, b)
                yield "smaller", 1, item, values, min(a, b)
            yield "add", 2, item, values, a + b
            yield "multiply", 2, item, values, a * b
            if a >= b:
                yield "subtract", 2, item, values, a - b


def _digit_sets(index: int) -> Iterator[_Row]:
    """Sets of three different digits; each task shows them in an order of its own.

    The source item is the set, whatever the order.
    """
    for digits in combinations(range(10), 3):
        item = "digits/" + "-".join(map(str, digits))
        orders = list(permutations(digits))

        def order(task: str, item: str = item, orders: list = orders) -> tuple[int, ...]:
            return orders[hashed_integer(f"{item}/{task}/{index}", len(orders))]

        for task, end in (("first_item", 0), ("last_item", -1)):
            shown = order(task)
            yield task, 1, item, {"a": " ".join(map(str, shown))}, shown[end]
        shown = order("repeat")
        yield "repeat", 1, item, {"a": " ".join(map(str, shown))}, " ".join(map(str, shown))
        shown = order("sort_digits")
        yield (
            "sort_digits",
            2,
            item,
            {"a": " ".join(map(str, shown))},
            " ".join(map(str, sorted(shown))),
        )
        shown = order("contains")
        inside = hashed_integer(f"{item}/contains/inside/{index}", 2)
        others = [digit for digit in range(10) if digit not in digits]
        candidates = digits if inside else others
        digit = hashed_sample(f"{item}/contains/asked/{index}", candidates, 1)[0]
        yield (
            "contains",
            1,
            item,
            {"a": " ".join(map(str, shown)), "b": digit},
            _YES_NO[index][1 - inside],
        )


def _numbers(index: int) -> Iterator[_Row]:
    """Numbers and pairs of numbers of two digits."""
    for a in range(10, 100):
        item = f"number/{a}"
        yield "parity", 1, item, {"a": a}, _EVEN_ODD[index][a % 2]
        if a < 99:
            yield "next_number", 2, item, {"a": a}, a + 1
        if a < 64:
            yield "to_binary", 3, item, {"a": a}, f"{a:b}"
    for key in range(60):  # the same operands in all languages
        a, b = (
            10 + hashed_integer(f"two digits/a/{key}", 90),
            10 + hashed_integer(f"two digits/b/{key}", 90),
        )
        item = f"numbers/{min(a, b)}-{max(a, b)}"
        yield "add", 3, item, {"a": a, "b": b}, a + b
        yield "subtract", 3, item, {"a": max(a, b), "b": min(a, b)}, abs(a - b)
        b = 2 + hashed_integer(f"two digits/factor/{key}", 8)
        yield "multiply", 3, f"numbers/{b}-{a}", {"a": a, "b": b}, a * b


def _days(index: int) -> Iterator[_Row]:
    """Days of the week, counted on."""
    days = _DAYS[index]
    for start in range(7):
        for after in range(1, 7):
            item = f"day/{start}-{after}"
            yield "weekday", 2, item, {"a": days[start], "b": after}, days[(start + after) % 7]


def _words(index: int) -> Iterator[_Row]:
    """Words in the instruction's language; tasks that need an alphabet use English words."""
    for words in _WORDS:
        item, word, english = f"word/{words[0]}", words[index], words[0]
        yield "first_letter", 2, item, {"a": word}, word[0]
        yield "last_letter", 2, item, {"a": word}, word[-1]
        yield "repeat", 2, item, {"a": word}, word
        yield "reverse_word", 3, item, {"a": word}, word[::-1]
        letter = hashed_sample(f"{item}/letter", sorted(set(english)), 1)[0]
        yield "count_letter", 3, item, {"a": english, "b": letter}, english.count(letter)
    for draw in range(90):
        item = "words/" + "-".join(
            sorted(words[0] for words in hashed_sample(f"words/{draw}", _WORDS, 3))
        )

        def listed(task: str, size: int, language: int, draw: int = draw) -> list[str]:
            """Words of this draw in a language, in an order that depends on task and prompt."""
            drawn = hashed_sample(f"words/{draw}", _WORDS, size)
            ordered = hashed_sample(f"{task}/{draw}/{index}", drawn, size)
            return [words[language] for words in ordered]

        for task, end in (("first_item", 0), ("last_item", -1)):
            shown = listed(task, 3, index)
            yield task, 2, item, {"a": " ".join(shown)}, shown[end]
        shown = listed("sort_words", 3, 0)
        yield "sort_words", 3, item, {"a": " ".join(shown)}, " ".join(sorted(shown))
        shown = listed("count_items", 2 + hashed_integer(f"size/{draw}", 5), index)
        yield "count_items", 2, item, {"a": " ".join(shown)}, len(shown)
