"""Whether a run of pure training is in the range in which runs go well, in words that say what to turn."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["pure_warnings"]

_MOST_FLIPS = 0.02  # good runs: 0.001 to 0.007 in their first half
_FEWEST_ZEROS = 0.05  # good runs end with 0.15 to 0.3
_MOST_SATURATED = 0.25
_FEWEST_FLIPS = 1e-7
_LOW_FILL = 0.05


def pure_warnings(telemetry: Mapping[str, float], *, is_binary: bool = False) -> dict[str, str]:
    """What is wrong -> what to do, from `Pure1BitTrainingHelper.telemetry`; empty for a healthy step.

    The names are stable, so that a loop can say each once: "flips", "still", "zeros", "saturated".
    """
    flips, zeros = telemetry["flips"], telemetry["zeros"]
    found: dict[str, str] = {}
    if flips > _MOST_FLIPS:
        found["flips"] = (
            f"{flips:.1%} of the codes moved in one step, where healthy runs move 0.1 % to 0.7 %; lower the learning "
            "rate or eta"
        )
    if flips < _FEWEST_FLIPS and telemetry["fill"] < _LOW_FILL and not telemetry["saturated"]:
        found["still"] = (
            f"no code moves and the counters are {telemetry['fill']:.1%} full; raise the learning rate or eta, or "
            "train for longer"
        )
    if not is_binary and zeros < _FEWEST_ZEROS:
        found["zeros"] = (
            f"{zeros:.1%} of the codes are zero, where healthy runs keep more than 15 %; lower the learning rate or eta"
        )
    if telemetry["saturated"] > _MOST_SATURATED:
        found["saturated"] = (
            f"{telemetry['saturated']:.0%} of the counters are at their bound and record nothing more; lower the "
            "learning rate or eta"
        )
    return found
