"""Normalization of mathematical answers before they are parsed: Unicode, styling, numbers, units and trailing text."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_FULL_WIDTH: dict[int, int] = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
# Bold, italic and other mathematical letters and digits.
_LETTER_STYLES = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0x1D400, 0x1D800)}
_SYMBOLS: dict[int, int | str] = {
    **_FULL_WIDTH,
    **_LETTER_STYLES,
    **{
        ord(symbol): text
        for symbol, text in {
            "−": "-",
            "–": "-",
            "—": "-",
            "‐": "-",
            "‑": "-",
            "﹣": "-",
            "、": ",",
            "。": ".",
            "．": ".",
            "【": "[",
            "】": "]",
            "〔": "(",
            "〕": ")",
            "∶": ":",
            "“": '"',
            "”": '"',
            "\u00a0": " ",
            "\u2009": " ",
            "\u202f": " ",
            "\u3000": " ",
            "\u200b": "",
            "\ufeff": "",
            "∞": r"\infty ",
            "∪": r"\cup ",
            "∩": r"\cap ",
            "∈": r"\in ",
            "∅": r"\emptyset ",
            "ℝ": r"\mathbb{R}",
            "ℤ": r"\mathbb{Z}",
            "≤": r"\le ",
            "⩽": r"\le ",
            "≥": r"\ge ",
            "⩾": r"\ge ",
            "≠": r"\ne ",
            "≈": r"\approx ",
            "±": r"\pm ",
            "×": r"\times ",
            "·": r"\cdot ",
            "⋅": r"\cdot ",
            "∗": "*",
            "÷": r"\div ",
            "∴": "",
            "✓": "",
            "✔": "",
            "✅": "",
            "■": "",
            "□": "",
            "∎": "",
            "⁄": "/",
            "∕": "/",
            "°": r"^\circ ",
            "º": r"^\circ ",
            "˚": r"^\circ ",
            "′": "'",
            "″": "''",
            "π": r"\pi ",
            "α": r"\alpha ",
            "β": r"\beta ",
            "γ": r"\gamma ",
            "δ": r"\delta ",
            "θ": r"\theta ",
            "λ": r"\lambda ",
            "μ": r"\mu ",
            "φ": r"\phi ",
            "ω": r"\omega ",
        }.items()
    },
}
_FRACTIONS = {
    "½": "1/2",
    "⅓": "1/3",
    "⅔": "2/3",
    "¼": "1/4",
    "¾": "3/4",
    "⅕": "1/5",
    "⅖": "2/5",
    "⅗": "3/5",
    "⅘": "4/5",
    "⅙": "1/6",
    "⅚": "5/6",
    "⅐": "1/7",
    "⅛": "1/8",
    "⅜": "3/8",
    "⅝": "5/8",
    "⅞": "7/8",
    "⅑": "1/9",
    "⅒": "1/10",
}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎", "0123456789+-()")
_CUBE_ROOT = re.compile(r"(?:∛|(?:³|\^\{3\})√)\s*(?:\{([^{}]*)\}|\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z]))")
_ROOT = re.compile(r"√\s*(?:\{([^{}]*)\}|\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z]))")

_SIZES = re.compile(
    r"\\(?:displaystyle|textstyle|large|Large|LARGE|huge|Huge|small|normalsize|bf|rm|it|therefore|nonumber|notag|hfill|newline|checkmark|square|blacksquare|Box|qed)(?![A-Za-z])"
)
_SPACES = re.compile(r"\\(?:hspace|hskip|vspace|phantom|hphantom|vphantom|label|tag)\*?\s*\{[^{}]*\}")
_COLOR = re.compile(r"\\(?:textcolor|color|colorbox|mathcolor)\s*(?:\[[A-Za-z]+\])?\s*\{[^{}]*\}")
_STYLES = re.compile(
    r"\\(?:boldsymbol|bm|pmb|mathbf|mathit|mathsf|underline|mathtt|emph|textit|boxed|fbox|mbox|ensuremath)\s*\{([^{}]*)\}"
)
_OPERATOR_NAME = re.compile(r"\\operatorname\*?\s*\{\s*(-?[\d.,]+)\s*\}")
_UPRIGHT_LETTER = re.compile(r"\\(?:mathrm|text|textrm|rm)\s*\{\s*([eid])\s*\}")
# The `e` of e-notation: `3.2\\,\\mathrm{e}5`.
_UPRIGHT_EXPONENT = re.compile(r"(?<=\d)(?:\\,|\s)*\\(?:mathrm|text|textrm)\s*\{\s*[eE]\s*\}\s*(?=[+-]?\d)")
_UPRIGHT_FUNCTION = re.compile(
    r"\\(?:mathrm|text|operatorname)\s*\{\s*(ln|lg|log|sin|cos|tan|cot|sec|csc|exp|max|min|arcsin|arccos|arctan)\s*\}"
)
_PLAIN_ROOT = re.compile(r"(?<![A-Za-z\\])sqrt\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+))")
_TRAILING = re.compile(
    r"(?:[\s,;:~。`]|\{[.,;:]?\}|\\text\s*\{[.,;:\s]*\}|\\\\\[\d+pt\]"
    r"|\\(?:nonumber|notag|hfill|newline|par|enspace|thinspace|checkmark|square|blacksquare|Box|qed)(?![A-Za-z])"
    r"|(?<!\.)\.|\\[,;:! ]|\\quad|\\qquad|\\\\|(?<!\\)\\$|\*\*)+$"
)
_LEADING = re.compile(r"^(?:[\s,;:~=`]|\{\}|\\\\(?!\[)|\*\*|\\[,;:! ]|\\quad|\\qquad|\\approx(?![A-Za-z]))+")

_E_NOTATION = re.compile(r"(?<![\w\\.^{])([+-]?\d+(?:\.\d+)?|\.\d+)\s?[eE]([+-]?\d+)(?![\w.])")
_TIMES_POWER = re.compile(
    r"(?<=\d)\s*(?:\\times|\\cdot|[xX*])\s*10\s*(?:\^|\*\*)\s*(?:\{\s*([+-]?\d+)\s*\}|([+-]?\d+))"
)
_LARGE = re.compile(r"(?<![\w.^{}/])(\d+)(?:\.(\d+))? ?\\times 10\^\{(\d{1,2})\}(?![\w.])")
_RECURRING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|overset\{\\text\{-\}\})\s*(?:\{(\d+)\}|(\d))")
_DOTTED = re.compile(r"(\d*)\.(\d*)\\dot\s*\{?(\d)\}?(?:(\d*)\\dot\s*\{?(\d)\}?)?")
_MAGNITUDES = {
    "dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "百": 100, "千": 1000, "万": 10**4, "百万": 10**6, "千万": 10**7, "亿": 10**8,
}  # fmt: skip
_MAGNITUDE_WORD = re.compile(r"dozen|hundred|thousand|illion|[百千万亿]", re.IGNORECASE)
_MAGNITUDE_TEXT = re.compile(r"\\(?:text|mathrm)\s*\{\s*((?:hundred|thousand|[mbtr]+illion|dozen|[百千万亿])[^{}]*)\}")
# A thousand before a unit belongs to the unit: `千克` is a kilogram.
_MAGNITUDE = re.compile(
    r"(?<![\w.])((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)\s*(?:\\[,;: ]\s*)?"
    r"(百万|千万|[百万亿](?!分)|千(?![克米瓦卡帕赫伏升焦])|(?:hundred|thousand|million|billion|trillion|dozen)(?![a-z]))",
    re.IGNORECASE,
)
_MIXED = re.compile(r"^([+-]?)\s*(\d+)(?:\s+|\s*\\[,;: ]\s*|~)(\d+)\s*/\s*(\d+)$")
_ORDINAL = re.compile(r"^(\d+)\s*(?:\^?\s*\{?\s*(?:\\(?:text|mathrm|textrm)\s*\{)?\s*(?:st|nd|rd|th)\s*\}?\s*\}?)$")

_TRIG_DEGREES = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc))\s*[({]?\s*(\d+(?:\.\d+)?)\s*(?:\^\s*\{?\s*\\circ\s*\}?)\s*[)}]?"
)
_TEXT_NAME = re.compile(r"^\\(?:text|mathrm|textbf)\s*\{[^{}]*\}\s*=\s*(?=\S)")
_TEXT_LEAD = re.compile(r"^\\text\s*\{[^{}\d]*(?:\b(?:is|are|equals|answer)\b:?|:|=)\s*\}\s*(?=\S)", re.IGNORECASE)
_DEGREES = re.compile(
    r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*(?:\\(?:mathrm|text)\s*\{\s*[CFK]\s*\}|[CF])?$|(?<=\d)\s*degrees?\s+(?:Celsius|Fahrenheit)$"
)
_VALUE = (
    r"[+-]?(?:\\?\$)?(?:\d[\d,.]*|\.\d+)(?:\s*/\s*\d+)?(?:\s*\\times 10\^\{[^{}]*\})?"
    r"|[+-]?\d*\s*\\[dt]?frac\s*\{[^{}]*\}\s*\{[^{}]*\}|[+-]?\d*\s*\\sqrt\s*\{[^{}]*\}|[+-]?\d*\s*\\pi"
)
_POWER = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?|[23])?"
_UNIT_NAME = (
    r"(?:mm|cm|dm|km|m|nm|µm|in|ft|yd|mi|mg|kg|g|lb|lbs|oz|ml|mL|L|l|s|sec|ms|min|h|hr|hrs|Hz|kHz|MHz|GHz|N|kN|J|kJ|W|kW|kWh|V|A|Pa|kPa"
    r"|mol|K|\\Omega|mph|kph|rpm|USD|EUR|cents?|dollars?|euros?|pounds?|(?:square|sq\.?|cubic|cu\.?)\s+[a-z]+|[a-z]{3,})"
)
_BARE_UNIT = re.compile(
    rf"^(?P<value>{_VALUE})\s*(?P<unit>{_UNIT_NAME}{_POWER}(?:\s*(?:/|\bper\b|\\cdot|\s)\s*{_UNIT_NAME}{_POWER})*)\.?$"
)
_CHINESE_LIST = re.compile(r"(?<=[\d})])\s*(?:或者?|和|与|以及)\s*(?=[-+\d\\(])")
_CHINESE_UNIT = re.compile(rf"^(?P<value>{_VALUE})\s*[\u4e00-\u9fff]+(?:/[\u4e00-\u9fff]+)?$")
_CURRENCY = re.compile(r"^(?:[€£¥₹]|US\\?\$|(?:USD|EUR|GBP|RMB|CNY|Rs\.?)(?=[\s\d]))\s*(?=[\d.])|(?<=[\d.])\s*[€£¥₹¢]$")
_TEXT_UNIT = r"\{\s*\\(?:text|mathrm)\s*\{[^{}\d]*\}(?:\^\{?\d\}?)?\s*\}"
_UNIT_FRACTION = re.compile(rf"(?<=[\d}}])\s*\\[dt]?frac\s*{_TEXT_UNIT}\s*{_TEXT_UNIT}$")
_NO_UNITS = frozenset(
    {
        "squared",
        "cubed",
        "sqrt",
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "log",
        "exp",
        "max",
        "min",
        "and",
        "or",
        "to",
        "pi",
        "alpha",
    }
    | {"beta", "gamma", "theta", "mod", "base", "from", "plus", "minus", "times"}
)
_CHINESE_UNIT_IN_PARENTHESES = re.compile(r"(?<=[\d}])\s*\([\u4e00-\u9fff/]+\)$")
_ONE_POINT = re.compile(r"^\\\{\s*(\([^(){}]*\))\s*\\\}$")
_DOLLAR = re.compile(r"(?<!\\)\$")
_SIZED_BRACKET = re.compile(
    r"\\left\s*(?=[\\(\[{|.])|\\right\s*(?=[\\)\]}|.])|\\middle(?![A-Za-z])|\\[bB]igg?[lr]?(?![A-Za-z])"
)
_STARRED_POWER = re.compile(r"\s*\*\*\s*(?:\(([^()]*)\)|(-?\w+))")
_LG = re.compile(r"\\lg(?![A-Za-z])")
_LOG_E = re.compile(r"\\log_\{?e\}?(?![A-Za-z])")
_CHOOSE = re.compile(r"\{\s*([^{}]+?)\s*\\choose\s*([^{}]+?)\s*\}")
_PLAIN_PI = re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])")
_TEXT_ORDINAL = re.compile(r"^\\text\s*\{\s*(\d+(?:st|nd|rd|th))\s*\}$")
_TEXT_CHINESE = re.compile(r"\\text\s*\{\s*([\u4e00-\u9fff]+)\s*\}")
_DEGREES_FOLLOW = re.compile(r"^[+-]?[\d.,]+\s*(?:\^|deg)")
_INTEGER = re.compile(r"-?[0-9]+")
_SPACE = re.compile(r"\s+")
# Forms of a command or script that differ only in writing, for `canonical`.
_TEXT_CONTENT = re.compile(r"\\(?:text|mathrm|textbf|textrm|mathbf)\s*\{([^{}]*)\}")
_SIZED_FRACTION = re.compile(r"\\[dtc]frac")
_LESS_EQUAL = re.compile(r"\\(?:leqslant|leq)(?![A-Za-z])")
_GREATER_EQUAL = re.compile(r"\\(?:geqslant|geq)(?![A-Za-z])")
_NOT_EQUAL = re.compile(r"\\neq(?![A-Za-z])")
_BRACED_SCRIPT = re.compile(r"([_^])\{(\w)\}")
_SPACING = re.compile(r"\s+|\\[,;:! ]|~|\\quad|\\qquad")
# LaTeX separators of groups of three digits; math-verify handles plain commas.
_DIGIT_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,\\!|\\[,;!: ]|\{,\}|~)\d{3})+(?!\d)")
_INNER_SPACES = re.compile(r"(?:\\[,;:! ]|~|\\quad|\\qquad)+")


def fold_unicode(text: str) -> str:
    """Replace Unicode digits, operators, brackets, fractions, roots and scripts by ASCII or LaTeX."""
    if text.isascii():
        return text
    for symbol, value in _FRACTIONS.items():
        numerator, denominator = value.split("/")
        text = text.replace(symbol, rf"\frac{{{numerator}}}{{{denominator}}}")
    text = _CUBE_ROOT.sub(lambda root: rf"\sqrt[3]{{{root[1] or root[2] or root[3]}}}", text)
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+", lambda run: f"^{{{run[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉₊₋₍₎]+", lambda run: f"_{{{run[0].translate(_SUBSCRIPTS)}}}", text)
    text = text.translate(_SYMBOLS)
    return _ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2] or root[3]}}}", text)


def clean(latex: str) -> str:
    """Return an answer of `tidy` without units, with its numbers in standard LaTeX."""
    if "\\" in latex:
        latex = _TRIG_DEGREES.sub(lambda term: rf"{term[1]}(\frac{{{term[2]}\pi}}{{180}})", latex)
    if not latex.isascii():
        latex = _CHINESE_LIST.sub(", ", _CHINESE_UNIT_IN_PARENTHESES.sub("", latex))
    return _without_unit(_ONE_POINT.sub(r"\1", plain_numbers(latex)))


def tidy(latex: str) -> str:
    """Return an answer without styling and trailing punctuation; its words, numbers and units stay."""
    latex = fold_unicode(latex).strip()
    has_commands = "\\" in latex  # Most patterns need a command, and most answers have none.
    latex = _without_styling(latex) if has_commands else latex.replace("$", "")
    latex = _TRAILING.sub("", _LEADING.sub("", latex))
    if has_commands:
        latex = _OPERATOR_NAME.sub(r"\1", latex)
        latex = _UPRIGHT_EXPONENT.sub("e", latex)
        latex = _UPRIGHT_LETTER.sub(r" \1", latex)
        latex = _UPRIGHT_FUNCTION.sub(r"\\\1 ", latex)
        latex = _SIZES.sub(" ", latex).replace(r"\#", "")
    latex = latex.replace("{:}", ":")
    if "sqrt" in latex:
        latex = _PLAIN_ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2] or root[3]}}}", latex)
    if "**" in latex:
        latex = _STARRED_POWER.sub(lambda power: f"^{{{power[1] or power[2]}}}", latex)
    if "pi" in latex:
        latex = _PLAIN_PI.sub(r"\\pi ", latex)
    return _whole_braces(_with_standard_commands(latex) if has_commands else latex).strip()


def _without_styling(latex: str) -> str:
    latex = _SIZED_BRACKET.sub("", _DOLLAR.sub("", latex))
    latex = latex.replace(r"\lbrace", r"\{").replace(r"\rbrace", r"\}").replace(r"\degree", r"^\circ ")
    latex = _COLOR.sub("", _SPACES.sub("", latex))
    for _ in range(3):
        latex, replaced = _STYLES.subn(r"\1", latex)
        if not replaced:
            break
    return latex


def _with_standard_commands(latex: str) -> str:
    latex = _LG.sub(r"\\log_{10}", latex)
    latex = _LOG_E.sub(r"\\ln ", latex)
    latex = _CHOOSE.sub(r"\\binom{\1}{\2}", latex)
    latex = latex.replace(r"\colon", ":").replace(r"\varnothing", r"\emptyset")
    return _TEXT_NAME.sub("", _TEXT_LEAD.sub("", latex))


def plain_numbers(latex: str) -> str:
    """Replace e-notation, powers of ten, recurring decimals and ordinals by forms that the parser reads."""
    if _INTEGER.fullmatch(latex):
        return latex
    if _MAGNITUDE_WORD.search(latex):
        latex = _MAGNITUDE.sub(_scaled, _MAGNITUDE_TEXT.sub(r" \1", latex)).strip()
    latex = _MIXED.sub(r"\1\\frac{\2 \\cdot \4 + \3}{\4}", latex)
    latex = _E_NOTATION.sub(lambda number: rf"{number[1]} \times 10^{{{int(number[2])}}}", latex)
    latex = _TIMES_POWER.sub(lambda power: rf" \times 10^{{{int(power[1] or power[2])}}}", latex)
    latex = _LARGE.sub(_whole_number, latex)
    latex = _RECURRING.sub(lambda number: _fraction(number[1], number[2], number[3] or number[4]), latex)
    latex = _DOTTED.sub(
        lambda number: _fraction(number[1], number[2], number[3] + (number[4] or "") + (number[5] or "")), latex
    )
    return _ORDINAL.sub(r"\1", _TEXT_ORDINAL.sub(r"\1", latex))


def _scaled(number: re.Match[str]) -> str:
    """Return a number with a word for a power of ten, such as `2.5 million`, in full."""
    value = Fraction(number[1].replace(",", "")) * _MAGNITUDES[number[2].lower()]
    return f"{value.numerator} " if value.denominator == 1 else f"{float(value)} "


def _whole_number(number: re.Match[str]) -> str:
    """Return a number in scientific notation in full if it is an integer, because the parser would round it."""
    decimals, power = number[2] or "", int(number[3])
    if len(decimals) > power:
        return number[0]
    return str(int(number[1] + decimals) * 10 ** (power - len(decimals)))


def _fraction(whole: str, fixed: str, repeated: str) -> str:
    r"""Return the fraction of a recurring decimal: `0.1\overline{6}` is 1/6."""
    scale = 10 ** len(fixed)
    value = Fraction(int((whole or "0") + fixed), scale) + Fraction(int(repeated), scale * (10 ** len(repeated) - 1))
    if value.denominator == 1:
        return str(value.numerator)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _without_unit(latex: str) -> str:
    """Return a value without a unit that is written outside of `\\text`, or after it in Chinese."""
    if _INTEGER.fullmatch(latex):
        return latex
    plain = _DIGIT_GROUPS.sub(lambda number: re.sub(r"\D", "", number[0]), latex)
    plain = _SPACE.sub(" ", _INNER_SPACES.sub(" ", plain)).strip()
    plain = _CURRENCY.sub("", _UNIT_FRACTION.sub("", plain))
    plain = _DEGREES.sub("", plain) if _DEGREES_FOLLOW.match(plain) else plain
    if not plain.isascii():
        match = _CHINESE_UNIT.match(_TEXT_CHINESE.sub(r"\1", plain))
        if match:
            return match["value"]
    match = _BARE_UNIT.match(plain)
    if match and not _NO_UNITS & set(re.findall(r"[a-z]+", match["unit"])):
        return match["value"]
    return latex if plain == _SPACE.sub(" ", latex).strip() else plain


def _whole_braces(latex: str) -> str:
    """Remove a pair of braces around the whole text."""
    while latex.startswith("{") and latex.endswith("}"):
        depth = 0
        for position, character in enumerate(latex):
            depth += (character == "{") - (character == "}")
            if depth == 0 and position < len(latex) - 1:
                return latex
        latex = latex[1:-1].strip()
    return latex


def canonical(latex: str) -> str:
    """Return a text that is equal for answers that differ only in spacing and redundant braces."""
    if "\\" in latex:
        latex = _TEXT_CONTENT.sub(r"\1", latex)
        latex = _SIZED_FRACTION.sub(r"\\frac", latex)
        latex = _LESS_EQUAL.sub(r"\\le", latex)
        latex = _GREATER_EQUAL.sub(r"\\ge", latex)
        latex = _NOT_EQUAL.sub(r"\\ne", latex).replace(r"\mid", "|")
    return _SPACING.sub("", _BRACED_SCRIPT.sub(r"\1\2", latex))
