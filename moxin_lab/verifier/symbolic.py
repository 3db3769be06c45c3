r"""What the grammar of `expression` does not know: integrals, limits, derivatives, endless sums.

Math-Verify's parser (latex2sympy2_extended) reads them into SymPy, and the values are compared with
the rule of expressions: the same fixed points, 30 digits. Its own comparison is not used.

Guarantees: symbols keep their case; nothing is simplified or printed (printing can take for ever).
Out of scope: relations, sets, units and text; a time limit. Runs in a worker only.
"""

from typing import Any

from moxin_lab.verifier.screen import Limits, Refused, screen

PRECISION = 40  # digits at which two expressions are evaluated
AGREE = 30  # digits that must agree
POINTS = 4


def parse(text: str, limits: Limits) -> Any:
    """A SymPy expression of a normalised answer, or None. Raises Refused."""
    from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from sympy import Expr

    config = NormalizationConfig(
        basic_latex=True,
        units=False,
        malformed_operators=True,
        nits=True,
        boxed="none",
        equations=False,
    )
    normalised = normalize_latex(text, config=config)
    if not normalised:
        return None
    # The parser's own rewriting may make a bomb: (10^9)_{5} becomes a factorial.
    if normalised != text and (refusal := screen(normalised, limits)) is not None:
        raise Refused(refusal)
    conversion = ConversionConfig(
        interpret_as_mixed_fractions=False,
        interpret_simple_eq_as_assignment=False,
        lowercase_symbols=False,
    )
    try:
        parsed = latex2sympy(
            normalised, is_real=True, normalization_config=None, conversion_config=conversion
        )
    except (MemoryError, RecursionError):
        raise
    except Exception:  # noqa: BLE001 (the parser raises bare Exception for text that it cannot read)
        return None
    return parsed if isinstance(parsed, Expr) else None


def same_value(gold: Any, answer: Any) -> bool | None:
    """Whether two SymPy expressions agree at the sampled points; None where no point decides."""
    from sympy import Rational

    names = sorted({str(symbol) for side in (gold, answer) for symbol in side.free_symbols})
    compared = 0
    for point in range(POINTS if names else 1):
        values = {
            name: Rational(1009 + 613 * i + 211 * point, 577 + 89 * i + 37 * point)
            for i, name in enumerate(names)
        }
        sides = [_evaluate(side, values) for side in (gold, answer)]
        if any(side is None for side in sides):
            continue
        if not _agree(sides[0], sides[1]):
            return False
        compared += 1
    return True if compared else None


def _evaluate(expression: Any, values: dict[str, Any]) -> Any:
    """A number with `PRECISION` digits, or None where the expression has no finite value."""
    from sympy import Derivative, I, Limit, Number

    substitution = {symbol: values[str(symbol)] for symbol in expression.free_symbols}
    try:
        fixed = expression.doit() if expression.has(Limit, Derivative) else expression
        fixed = fixed.subs(substitution) if substitution else fixed
        number = fixed.evalf(PRECISION)
        real, imaginary = number.as_real_imag()
    except (MemoryError, RecursionError):
        raise
    except Exception:  # noqa: BLE001 (SymPy raises many kinds for what has no value)
        return None
    if not (isinstance(real, Number) and isinstance(imaginary, Number)):
        return None
    if not (real.is_finite and imaginary.is_finite):
        return None
    return real + I * imaginary if imaginary else real


def _agree(a: Any, b: Any) -> bool:
    from sympy import Float

    size = max(abs(a).evalf(20), abs(b).evalf(20))
    if size < Float("1e-35"):
        return True
    return bool(abs(a - b).evalf(20) <= size * Float(10) ** -AGREE)
