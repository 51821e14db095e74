"""Answers that are not plain mathematics: numbers in a base, clock times, compound quantities, ratios, dates and words.

Each function compares an expected and a given text. It returns None if it does not apply to them.
"""

from __future__ import annotations

import re
from fractions import Fraction

_TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf)|mbox)\s*\{([^{}]*)\}")
_BASED = re.compile(r"^\(?([0-9A-Z][0-9A-Z ,]*(?:\.[0-9A-Z]+)?)\)?\s*_\s*\{?\s*\(?(?:base\s*)?(\d+|[a-z]+)\)?\s*\}?$")
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_CLOCK = re.compile(r"^(\d{1,2}):(\d{2})(?::(\d{2}))?\s*(?:([ap])\.?\s*m\.?)?$", re.IGNORECASE)
_HOUR = re.compile(r"^(\d{1,2})\s*([ap])\.?\s*m\.?$", re.IGNORECASE)
_NAMED_HOUR = re.compile(r"^(?:12(?::00)?\s*)(noon|midnight)$", re.IGNORECASE)
_RATIO = re.compile(r"^-?\d+(?:\.\d+)?(?:\s*:\s*-?\d+(?:\.\d+)?)+$")
_QUANTITY = re.compile(
    r"(-?\d[\d,]*(?:\.\d+)?(?:/\d+)?)\s*(\^\s*\{?\s*\\circ\s*\}?|\^\s*\{?\s*(?:\\prime\s*)+\}?|'+|\"|[A-Za-zµ\u4e00-\u9fff]+\.?)"
)
_BETWEEN = re.compile(r"^\s*(?:,|and|,\s*and|&|和|又|零)?\s*$")
# Units by dimension: the size of each in the dimension's smallest unit.
_UNITS: dict[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(size))
    for dimension, units in {
        "time": {
            "second seconds sec secs s 秒": 1,
            "minute minutes min mins 分 分钟": 60,
            "hour hours hr hrs h 小时 时": 3600,
            "day days d 天 日": 86400,
            "week weeks 周": 604800,
        },
        "month": {"month months 月 个月": 1, "year years yr yrs 年": 12},
        "imperial length": {"inch inches in": 1, "foot feet ft": 12, "yard yards yd yds": 36, "mile miles mi": 63360},
        "metric length": {
            "mm millimeter millimeters 毫米": 1,
            "cm centimeter centimeters 厘米": 10,
            "dm 分米": 100,
            "m meter meters metre metres 米": 1000,
            "km kilometer kilometers 千米 公里": 1000000,
        },
        "imperial mass": {"ounce ounces oz": 1, "pound pounds lb lbs": 16},
        "metric mass": {"mg": 1, "g gram grams 克": 1000, "kg kilogram kilograms 千克": 1000000},
        "volume": {"ml mL milliliter milliliters 毫升": 1, "l L liter liters litre litres 升": 1000},
        "money": {"cent cents 分钱": 1, "dollar dollars": 100},
        "angle": {"second-of-arc": 1, "minute-of-arc": 60, "degree degrees": 3600},
    }.items()
    for names, size in units.items()
    for name in names.split()
}
_MATHEMATICAL_WORDS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "max", "min", "sqrt", "alpha", "beta", "gamma", "theta"}
    | {"frac", "dfrac", "and"}
)
_DATED = re.compile(
    r"^(?:the\s+)?([A-Z][a-z]{2,})\.?\s+(\d+)(?:st|nd|rd|th)?(?:,?\s*(\d+))?$|^(\d+)(?:st|nd|rd|th)?\s+([A-Z][a-z]{2,})$"
)


def without_text_commands(latex: str) -> str:
    """Return a text without commands such as `\\text{...}`, whose content stays."""
    return re.sub(r"\s+", " ", re.sub(r"\\[,;:! ]|~|\\quad", " ", _TEXT_COMMAND.sub(r"\1", latex))).strip()


def compare_special(expected: str, given: str) -> bool | None:
    """Compare two tidied answers of which at least one is not plain mathematics."""
    expected, given = without_text_commands(expected), without_text_commands(given)
    for compare in (_compare_based, _compare_clocks, _compare_quantities, _compare_ratios, _compare_dates):
        is_equal = compare(expected, given)
        if is_equal is not None:
            return is_equal
    return None


def _based(text: str) -> tuple[str, int | None] | None:
    match = _BASED.match(text)
    if match and (match[2].isdigit() or match[2] in _BASES) and (match[1][0].isdigit() or int(match[2]) > 10):
        base = int(match[2]) if match[2].isdigit() else _BASES[match[2]]
        return re.sub(r"[ ,]", "", match[1]).lstrip("0"), base
    if re.fullmatch(r"[0-9A-Z][0-9A-Z ,]*(?:\.[0-9A-Z]+)?", text):
        return re.sub(r"[ ,]", "", text).lstrip("0"), None
    return None


def _compare_based(expected: str, given: str) -> bool | None:
    """Compare numbers with a base as a subscript. A missing base counts as the other one's."""
    if not re.search(r"_\s*\{?\s*\(?(?:base|\d|[a-z]{3,})", expected + " " + given):
        return None
    gold, answer = _based(expected), _based(given)
    if gold is None or answer is None:
        return None if gold is None or gold[1] is None else False
    if gold[1] is None and answer[1] is None:
        return None
    return gold[0] == answer[0] and (gold[1] == answer[1] or None in (gold[1], answer[1]))


def _clock(text: str) -> tuple[int, int, int, str] | None:
    match = _CLOCK.match(text)
    if match and int(match[1]) < 25 and int(match[2]) < 60:
        return int(match[1]), int(match[2]), int(match[3] or 0), (match[4] or "").lower()
    named = _NAMED_HOUR.match(text)
    if named:
        return 12, 0, 0, "p" if named[1].lower() == "noon" else "a"
    match = _HOUR.match(text)
    return (int(match[1]), 0, 0, match[2].lower()) if match else None


def _compare_clocks(expected: str, given: str) -> bool | None:
    """Compare clock times. A missing a.m. or p.m. is accepted, a differing one is not."""
    gold, answer = _clock(expected), _clock(given)
    if gold is None and answer is None:
        return None
    if gold is None or answer is None:
        return None if _RATIO.match(expected) or re.search(r"\\[dt]?frac|/", expected + given) else False
    halves = {gold[3], answer[3]}
    if halves == {"a", "p"}:
        return False
    hours = [(time[0] % 12 + 12 * (time[3] == "p")) if time[3] else time[0] for time in (gold, answer)]
    if "" in halves and len(halves) == 2 and max(gold[0], answer[0]) <= 12:
        hours = [hour % 12 for hour in hours]
    return hours[0] == hours[1] and gold[1:3] == answer[1:3]


def _quantities(text: str) -> list[tuple[Fraction, str]] | None:
    """Return the values and units of a quantity such as `5 ft 7 in`; None for any other text."""
    quantities, end = [], 0
    for match in _QUANTITY.finditer(text):
        if not _BETWEEN.match(text[end : match.start()]):
            return None
        end = match.end()
        unit = match[2].rstrip(".")
        if "circ" in unit:
            unit = "degree"
        elif "prime" in unit or set(unit) <= set("'\""):
            unit = "second-of-arc" if unit.count("prime") == 2 or unit in ("''", '"') else "minute-of-arc"
        elif unit in ("and", "or", "to", "x") or (unit in _MATHEMATICAL_WORDS and unit not in _UNITS):
            return None
        try:
            quantities.append((Fraction(match[1].replace(",", "")), unit if len(unit) < 3 else unit.lower()))
        except (ValueError, ZeroDivisionError):
            return None
    if not quantities or text[end:].strip():
        return None
    if len(quantities) > 1 and any(len(unit) == 1 and unit not in _UNITS for _, unit in quantities):
        return None  # Products of variables, such as `2x 3y`.
    return quantities


def _compare_quantities(expected: str, given: str) -> bool | None:
    """Compare quantities of which at least one has several units. A single unit is left to the parser."""
    gold, answer = _quantities(expected), _quantities(given)
    if max(len(gold or ()), len(answer or ())) < 2:
        return None
    if gold is None or answer is None:
        return False
    totals = _totals(gold), _totals(answer)
    if totals[0] is not None and totals[1] is not None:
        return totals[0] == totals[1]
    return [(value, unit.rstrip("s")) for value, unit in gold] == [(value, unit.rstrip("s")) for value, unit in answer]


def _totals(quantities: list[tuple[Fraction, str]]) -> tuple[str, Fraction] | None:
    """Return the dimension and the sum in its smallest unit; None for units that cannot be added."""
    known = [_UNITS.get(unit) for _, unit in quantities]
    dimensions = {unit[0] for unit in known if unit is not None}
    if None in known or len(dimensions) != 1:
        return None
    total = sum((value * unit[1] for (value, _), unit in zip(quantities, known, strict=True) if unit), Fraction(0))
    return dimensions.pop(), total


def _compare_ratios(expected: str, given: str) -> bool | None:
    """Compare ratios such as `1:2:3`. A ratio of two also equals a fraction."""
    if not _RATIO.match(expected) and not _RATIO.match(given):
        return None
    gold, answer = _ratio(expected), _ratio(given)
    if gold is None or answer is None or len(gold) != len(answer):
        return False
    return all(gold[index] * answer[0] == answer[index] * gold[0] for index in range(len(gold))) and any(gold) == any(
        answer
    )


def _ratio(text: str) -> list[Fraction] | None:
    if _RATIO.match(text):
        return [Fraction(part.strip()) for part in text.split(":")]
    match = re.match(r"^\\[dtc]?frac\s*\{(-?\d+)\}\s*\{(\d+)\}$|^(-?\d+)\s*/\s*(\d+)$", text)
    if match:
        return [Fraction(match[1] or match[3]), Fraction(match[2] or match[4])]
    match = re.match(r"^\\[dtc]?frac\s*(\d)\s*(\d)$", text)
    return [Fraction(match[1]), Fraction(match[2])] if match else None


def _compare_dates(expected: str, given: str) -> bool | None:
    """Compare a name with a number, such as a date, by its words and numbers."""
    match = _DATED.match(expected)
    if not match or next(name for name in (match[1], match[5]) if name).lower() in _MATHEMATICAL_WORDS | _UNITS.keys():
        return None
    return _tokens(expected) == _tokens(given)


def _tokens(text: str) -> list[str]:
    return sorted(
        re.sub(r"^(\d+)(?:st|nd|rd|th)$", r"\1", token)
        for token in re.findall(r"\w+", text.casefold())
        if token != "the"
    )


def words_of(answer: str) -> str:
    """Return the normal form of an expected answer that is text; an empty string if it is mathematics."""
    plain = _TEXT_COMMAND.sub(r"\1", answer)
    if re.search(r"[\d\\^_=+*/<>{}|]", plain):
        return ""
    words = normal_words(plain)
    if re.fullmatch(r"[IVX]{2,}|[IVX]+(?:(?:,|,? and) ?[IVX]+)+", plain.strip()):
        return words
    is_marked = not normal_words(_TEXT_COMMAND.sub("", answer))
    # One or two bare letters are variables.
    is_word = (
        any(len(word) > 2 and word not in _MATHEMATICAL_WORDS for word in words.split())
        or words == "no"
        or bool(re.search(r"[\u4e00-\u9fff]", words))
    )
    return words if is_marked or is_word else ""


def normal_words(text: str) -> str:
    """Return the words of a text in lower case."""
    words = re.findall(r"[^\W\d_]+", text.casefold())
    if all(re.fullmatch("[ivx]+|and", word) for word in words):  # Roman numerals: "I and II" is "I, II"
        words = [word for word in words if word != "and"]
    return " ".join(words)


def without_article(words: str) -> str:
    """Return words without a leading article."""
    return re.sub(r"^(?:the|an?) (?=.)", "", words)
