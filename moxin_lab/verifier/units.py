r"""Units of measurement: their names, what they measure and how they convert.

A unit is a factor and its dimensions: `km/h` is 5/18 with metre^1 second^-1. A counted noun
(`apples`) is a dimension of its own.

Guarantees: pure; factors are exact; symbols keep their case (`mW` is not `MW`), words do not.
Out of scope: where a number ends and its unit begins (`reading` decides that).
"""

import re
from dataclasses import dataclass
from fractions import Fraction

Dimensions = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Unit:
    """factor: in base units, exact; a degree's is 1 of `degree`. dimensions: sorted (base, power)."""

    factor: Fraction
    dimensions: Dimensions

    @property
    def counted(self) -> bool:
        """A noun that is no unit of measurement, such as `apples`."""
        return len(self.dimensions) == 1 and self.dimensions[0][0].startswith("noun:")


_F = Fraction
_BASE: dict[str, tuple[Fraction, dict[str, int]]] = {
    "m": (_F(1), {"m": 1}),
    "g": (_F(1, 1000), {"kg": 1}),
    "s": (_F(1), {"s": 1}),
    "A": (_F(1), {"A": 1}),
    "K": (_F(1), {"K": 1}),
    "mol": (_F(1), {"mol": 1}),
    "cd": (_F(1), {"cd": 1}),
    "Hz": (_F(1), {"s": -1}),
    "N": (_F(1), {"kg": 1, "m": 1, "s": -2}),
    "Pa": (_F(1), {"kg": 1, "m": -1, "s": -2}),
    "J": (_F(1), {"kg": 1, "m": 2, "s": -2}),
    "W": (_F(1), {"kg": 1, "m": 2, "s": -3}),
    "Wh": (_F(3600), {"kg": 1, "m": 2, "s": -2}),
    "C": (_F(1), {"A": 1, "s": 1}),
    "V": (_F(1), {"kg": 1, "m": 2, "s": -3, "A": -1}),
    "F": (_F(1), {"A": 2, "s": 4, "kg": -1, "m": -2}),
    "T": (_F(1), {"kg": 1, "s": -2, "A": -1}),
    "ohm": (_F(1), {"kg": 1, "m": 2, "s": -3, "A": -2}),
    "L": (_F(1, 1000), {"m": 3}),
    "l": (_F(1, 1000), {"m": 3}),
    "eV": (_F("1.602176634e-19"), {"kg": 1, "m": 2, "s": -2}),
    "bar": (_F(100_000), {"kg": 1, "m": -1, "s": -2}),
    "pc": (_F(1), {"parsec": 1}),
    "B": (_F(1), {"byte": 1}),
    "erg": (_F(1, 10**7), {"kg": 1, "m": 2, "s": -2}),
}
_PREFIXES = {
    "n": -9,
    "u": -6,
    "m": -3,
    "c": -2,
    "d": -1,
    "": 0,
    "h": 2,
    "k": 3,
    "M": 6,
    "G": 9,
    "T": 12,
    "p": -12,
}
_PREFIX_WORDS = {
    "nano": -9,
    "micro": -6,
    "milli": -3,
    "centi": -2,
    "deci": -1,
    "": 0,
    "kilo": 3,
    "mega": 6,
    "giga": 9,
}
_LONG = {
    "meter": "m",
    "metre": "m",
    "gram": "g",
    "gramme": "g",
    "second": "s",
    "ampere": "A",
    "amp": "A",
    "kelvin": "K",
    "mole": "mol",
    "hertz": "Hz",
    "newton": "N",
    "pascal": "Pa",
    "joule": "J",
    "watt": "W",
    "coulomb": "C",
    "volt": "V",
    "farad": "F",
    "tesla": "T",
    "ohm": "ohm",
    "liter": "L",
    "litre": "L",
    "byte": "B",
    "parsec": "pc",
    "electronvolt": "eV",
}
_OTHER: dict[str, tuple[Fraction, dict[str, int]]] = {
    "min minute": (_F(60), {"s": 1}),
    "sec": (_F(1), {"s": 1}),
    "h hr hour": (_F(3600), {"s": 1}),
    "day": (_F(86_400), {"s": 1}),
    "week wk": (_F(604_800), {"s": 1}),
    "month": (_F(1), {"month": 1}),
    "year yr": (_F(12), {"month": 1}),
    "in inch": (_F("0.0254"), {"m": 1}),
    "ft foot feet": (_F("0.3048"), {"m": 1}),
    "yd yard": (_F("0.9144"), {"m": 1}),
    "mi mile": (_F("1609.344"), {"m": 1}),
    "mph": (_F("0.44704"), {"m": 1, "s": -1}),
    "kmh kph kmph": (_F(5, 18), {"m": 1, "s": -1}),
    "cc": (_F(1, 10**6), {"m": 3}),
    "oz ounce": (_F("0.028349523125"), {"kg": 1}),
    "lb pound-mass": (_F("0.45359237"), {"kg": 1}),
    "tonne": (_F(1000), {"kg": 1}),
    "ton": (_F(1), {"ton": 1}),
    "gal gallon": (_F(1), {"gallon": 1}),
    "quart qt": (_F(1, 4), {"gallon": 1}),
    "pint pt": (_F(1, 8), {"gallon": 1}),
    "hectare ha": (_F(10_000), {"m": 2}),
    "acre": (_F("4046.8564224"), {"m": 2}),
    "atm atmosphere": (_F(101_325), {"kg": 1, "m": -1, "s": -2}),
    "angstrom": (_F(1, 10**10), {"m": 1}),
    "dollar usd buck": (_F(1), {"dollar": 1}),
    "cent": (_F(1, 100), {"dollar": 1}),
    "euro eur": (_F(1), {"euro": 1}),
    "pound": (_F(1), {"pound": 1}),
    "gbp": (_F(1), {"pound-sterling": 1}),
    "yen": (_F(1), {"yen": 1}),
    "rupee": (_F(1), {"rupee": 1}),
    "degree deg": (_F(1), {"degree": 1}),
    "radian rad": (_F(1), {"radian": 1}),
    "degC celsius": (_F(1), {"degC": 1}),
    "degF fahrenheit": (_F(1), {"degF": 1}),
    "am": (_F(1), {"am": 1}),
    "pm": (_F(1), {"pm": 1}),
    "bit": (_F(1), {"bit": 1}),
    "dozen": (_F(12), {}),
    "unit": (_F(1), {"unit": 1}),
    "lightyear ly": (_F(1), {"lightyear": 1}),
    "AU": (_F(1), {"AU": 1}),
    "calorie cal": (_F("4.184"), {"kg": 1, "m": 2, "s": -2}),
    "kcal": (_F(4184), {"kg": 1, "m": 2, "s": -2}),
    "rpm": (_F(1), {"rpm": 1}),
}
MULTIPLIERS = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_SYMBOLS: dict[str, tuple[Fraction, dict[str, int]]] = {}
_WORDS: dict[str, tuple[Fraction, dict[str, int]]] = {}


def _fill() -> None:
    for symbol, (factor, dimensions) in _BASE.items():
        for prefix, power in _PREFIXES.items():
            if prefix in ("c", "d", "h") and symbol not in ("m", "g", "L", "l"):
                continue
            _SYMBOLS.setdefault(prefix + symbol, (factor * _F(10) ** power, dimensions))
    for word, symbol in _LONG.items():
        factor, dimensions = _BASE[symbol]
        for prefix, power in _PREFIX_WORDS.items():
            _WORDS[prefix + word] = _WORDS[prefix + word + "s"] = (
                factor * _F(10) ** power,
                dimensions,
            )
    for names, value in _OTHER.items():
        for name in names.split():
            table = _WORDS if len(name) > 3 and name.islower() else _SYMBOLS
            table[name] = value
            if name.islower():
                (_WORDS if len(name) > 2 else _SYMBOLS)[name + "s"] = value
    _WORDS["inches"] = _SYMBOLS["in"]
    _WORDS["centuries"] = _WORDS["century"] = (_F(1200), {"month": 1})
    for name, same in {"secs": "sec", "mins": "min", "hrs": "hr", "kgs": "kg", "cms": "cm"}.items():
        _SYMBOLS[name] = _SYMBOLS[same]
    for name in ("Hours", "Min", "Sec", "Hr"):
        _SYMBOLS[name] = _SYMBOLS.get(name.lower(), (_F(3600), {"s": 1}))


_fill()
UNAMBIGUOUS = frozenset(
    str.split(
        "mm cm km dm kg ml mL dL kPa MPa GPa kJ MJ kN MN kW MW GW kWh kHz MHz GHz Hz nm eV keV"
        " MeV GeV"
        " mol mph kmh sec secs hr hrs ft lb lbs yd oz usd USD cc degC degF kmph kph cms kgs min"
        " mins"
        " atm rad deg"
    )
)
"""Symbols that are read as a unit beside a number without `\\text`: no product of letters that an
answer is likely to be."""
_STOP = frozenset(
    str.split(
        "is are was were be not no never wrong right correct incorrect answer or and but if"
        " then than the"
        " a an because since so thus hence more less least most at about approximately between plus"
        " minus times equals equal to actually rather instead nor either neither both only else"
        " where"
        " when for with without mod modulo base divided multiplied over squared cubed half"
        " double triple"
        " too enough factorial negative halves third thirds fourths fifths sixths eighths"
        " tenths hundredths thousandths"
        " remainder remaining maybe perhaps infinity infinitely none all every except exceeds"
        " exactly"
    )
)
_TOKEN = re.compile(
    r"\s*(?:(?P<power>\^\s*\{?\s*(-?\d)\s*\}?)|(?P<over>/|\bper\b|\ba(?=n?\s))"
    r"|(?P<times>\\cdot|\\times|\*|\.(?=\s*[A-Za-z]))"
    r"|(?P<name>\\?[A-Za-z%](?:[A-Za-z'-]*[A-Za-z])?\.?)|(?P<open>\()|(?P<close>\)))"
)


def parse(text: str, *, marked: bool) -> tuple[Unit, int] | None:
    r"""The unit that a text spells and a multiplier (1, or `million`), or None.

    marked: the text was set apart as text, so that any short noun phrase counts as a counted noun.
    """
    words = (
        text.replace("a.m.", "am").replace("p.m.", "pm").replace("a.m", "am").replace("p.m", "pm")
    )
    words = words.replace(r"\mu ", "u").replace(r"\Omega", "ohm").strip()
    multiplier = 1
    first, _, rest = words.partition(" ")
    while first.lower().rstrip("s") in MULTIPLIERS or first.lower() in MULTIPLIERS:
        multiplier *= MULTIPLIERS[
            first.lower() if first.lower() in MULTIPLIERS else first.lower().rstrip("s")
        ]
        words = rest.strip()
        first, _, rest = words.partition(" ")
    if not words:
        return (Unit(_F(1), ()), multiplier) if multiplier > 1 else None
    unit = _measured(words) or (_noun(words) if marked else None)
    return (unit, multiplier) if unit is not None else None


def _measured(text: str) -> Unit | None:
    factor, dimensions = _F(1), dict[str, int]()
    position, side, count, grouped = 0, 1, 0, False
    pending = 1  # square, cubic
    last: tuple[Fraction, dict[str, int]] | None = None
    while position < len(text.rstrip()):
        match = _TOKEN.match(text, position)
        if match is None:
            return None
        position = match.end()
        if match.group("open"):
            grouped = True
        elif match.group("close"):
            side, grouped = (1, False)
        elif match.group("over"):
            side = -1
            last = None
        elif match.group("times"):
            continue
        elif match.group("power"):
            if last is None:
                return None
            extra = int(match.group(2)) - 1
            factor, dimensions = _combined(factor, dimensions, last, side * extra)
            last = None
        else:
            name = match.group("name").lstrip("\\").rstrip(".")
            if name.lower() in ("sq", "square"):
                pending = 2
                continue
            if name.lower() in ("cu", "cubic"):
                pending = 3
                continue
            if name.lower() in ("squared", "cubed") and last is not None:
                extra = 1 if name.lower() == "squared" else 2
                factor, dimensions = _combined(factor, dimensions, last, side * extra)
                last = None
                continue
            found = _lookup(name)
            if found is None:
                return None
            last, count = found, count + 1
            factor, dimensions = _combined(factor, dimensions, last, side * pending)
            pending = 1
            if side == -1 and not grouped and text[position:].lstrip()[:1] not in ("^", ""):
                side = -1  # km/h s is read as km/(h s)
    if count == 0 or pending != 1:
        return None
    return Unit(factor, tuple(sorted((k, v) for k, v in dimensions.items() if v)))


def _combined(
    factor: Fraction, dimensions: dict[str, int], unit: tuple[Fraction, dict[str, int]], power: int
) -> tuple[Fraction, dict[str, int]]:
    merged = dict(dimensions)
    for name, exponent in unit[1].items():
        merged[name] = merged.get(name, 0) + exponent * power
    return factor * unit[0] ** power, merged


def _lookup(name: str) -> tuple[Fraction, dict[str, int]] | None:
    if name in _SYMBOLS:
        return _SYMBOLS[name]
    if name.lower() in _WORDS:
        return _WORDS[name.lower()]
    return (
        _SYMBOLS.get(name.lower())
        if len(name) >= 2 and name.lower() in UNAMBIGUOUS and name.isupper()
        else None
    )


def _noun(text: str) -> Unit | None:
    words = text.lower().rstrip(".").split()
    if not 1 <= len(words) <= 4 or not all(re.fullmatch(r"[a-z][a-z'-]*", w) for w in words):
        return None
    if any(word in _STOP for word in words):
        return None
    if len(words[-1]) == 1:
        return None
    name = " ".join(_singular(word) for word in words)
    return Unit(_F(1), ((f"noun:{name}", 1),))


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word
