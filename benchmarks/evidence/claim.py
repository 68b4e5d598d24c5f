"""A claim with its bar and what was measured, and the table that readers of the repository see."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.evidence.tables import signed, standard_error

__all__ = ["Claim", "at_least", "at_most", "by_topic", "claims_markdown", "of_seeds"]


@dataclass(frozen=True)
class Claim:
    """One sentence, its bar, the figure and the file that holds the rows behind it."""

    topic: str
    text: str
    bar: str
    measured: str
    is_met: bool
    source: str
    is_in_noise: bool = False
    """Another set of seeds may say the opposite: the bar lies within a standard error of the mean."""

    @property
    def verdict(self) -> str:
        """What a table says of it."""
        return ("yes" if self.is_met else "no") + ", within noise" * self.is_in_noise


def of_seeds(topic: str, text: str, losses: Sequence[float], limit: float, unit: str, bar: str, source: str) -> Claim:
    """A claim that holds if the mean of the losses, one a seed, is not above the limit; a gain is a negative loss."""
    mean, count = statistics.mean(losses), len(losses)
    error = standard_error(losses)
    measured = f"{signed(mean, error)} {unit}, {count} seed{'s' * (count > 1)}"
    return Claim(topic, text, bar, measured, mean <= limit, source, is_in_noise=abs(mean - limit) < error)


def at_least(topic: str, text: str, value: float, bar: float, source: str, form: str = "{:,.0f}x") -> Claim:
    """A claim that holds if the value reaches the bar; `form` writes both."""
    return Claim(topic, text, f"at least {form.format(bar)}", form.format(value), value >= bar, source)


def at_most(topic: str, text: str, value: float, bar: float, source: str, form: str = "{:.2f}") -> Claim:
    """A claim that holds if the value stays below the bar or at it; `form` writes both."""
    return Claim(topic, text, f"at most {form.format(bar)}", form.format(value), value <= bar, source)


def by_topic(claims: Sequence[Claim]) -> dict[str, list[Claim]]:
    """Claims of each topic, topics in the order in which they come first."""
    found: dict[str, list[Claim]] = {}
    for claim in claims:
        found.setdefault(claim.topic, []).append(claim)
    return found


def claims_markdown(claims: Sequence[Claim]) -> str:
    """One Markdown table for each topic."""
    lines = []
    for topic, some in by_topic(claims).items():
        lines += [f"## {topic}", "", "| claim | bar | measured | holds |", "|---|---|---|---|"]
        lines += [f"| {claim.text} | {claim.bar} | {claim.measured} | {_strong(claim)} |" for claim in some]
        lines.append("")
    return "\n".join(lines)


def _strong(claim: Claim) -> str:
    return claim.verdict if claim.is_met else f"**{claim.verdict}**"
