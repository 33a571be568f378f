"""What `rlhf scaling` prints: coefficients with intervals, errors, and how the two laws differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data.words import counted

_CURVES = 8
"""IsoFLOP curves that are told one by one."""
LAW = "L(N, D) = E + A / N^alpha + B / D^beta"
FORMS = {"A": ".4g", "B": ".4g", "E": ".4f", "alpha": ".4f", "beta": ".4f"}


def fit_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield a fit as lines, each figure with its 95 % interval."""
    yield f"{LAW}, {counted(report['points'], 'run')}; {_ranges(report['range'])}"
    for name, form in FORMS.items():
        yield f"  {name:<6}{report[name]:>11{form}}  {ends(report['ci95'][name], form)}"
    yield from told_lines(report)


def told_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is told of a fit beside its coefficients; two spaces begin a further line."""
    if report["ignored_columns"]:
        yield f"columns not read: {', '.join(report['ignored_columns'])}"
    exponent = ends(report["ci95"]["size_exponent"], ".3f")
    yield (
        f"best for a budget of C FLOPs: N ~ C^{report['size_exponent']:.3f} {exponent}, D ~ C / N"
    )
    for sentence in report["untold"]:
        yield f"not told by these runs: {sentence}"
    yield from (f"doubt: {sentence}" for sentence in report["doubts"])
    residuals = report["residuals"]
    yield (
        f"residuals of log L: {residuals['rms']:.2e} root mean square, {residuals['largest']:.2e} "
        f"at most; Kaplan's law {report['kaplan']['rms_error']:.2e}"
    )
    if "compute" in report:
        yield _compute_line(report["compute"])
    yield from _held_out_lines(report["held_out"])
    yield from _isoflop_lines(report["isoflop"])
    yield from _kaplan_lines(report["kaplan"])


def _compute_line(compute: Mapping[str, Any]) -> str:
    return (
        f"compute: C = C0 N D with C0 {compute['C0']:.3f} {ends(compute['C0_ci95'], '.3f')}, at "
        f"{compute['flops_per_second']:.3g} FLOP/s {ends(compute['flops_per_second_ci95'], '.3g')}"
    )


def _held_out_lines(held: Mapping[str, Any] | None) -> Iterator[str]:
    if held is None:
        yield "held out: nothing; without the largest run there are too few points for a fit"
        return
    largest = held["largest"]
    yield (
        f"held out: {counted(held['runs'], 'run')} of most compute, up to "
        f"{held['more_compute']:.2g} x that of the {held['fitted_on']} others; mean error of their "
        f"loss {held['mean_error']:.2%} (Kaplan's law {held['kaplan_mean_error']:.2%})"
    )
    yield (
        f"  the largest, N {largest['parameters']:.3g}, D {largest['tokens']:.3g}: predicted "
        f"{largest['predicted']:.4f} {ends(largest['ci95'], '.4f')}, was {largest['loss']:.4f} "
        f"({largest['error']:+.2%}; Kaplan's law {largest['kaplan_error']:+.2%}; lowest smaller "
        f"loss {largest['lowest_smaller_error']:+.2%})"
    )


def _isoflop_lines(found: Mapping[str, Any]) -> Iterator[str]:
    curves = found["curves"]
    if not curves:
        return
    few = len(curves) <= _CURVES
    many = counted(len(curves), "IsoFLOP curve")
    yield f"{many}, a parabola in log N each; beside its minimum the law's own"
    for curve in curves if few else ():
        best = curve["best_parameters"]
        told = curve["note"] if best is None else f"N {best:.3g}"
        yield (
            f"  C {curve['flops']:.2e}, {counted(len(curve['points']), 'run')}: {told} "
            f"(law: N {curve['law_parameters']:.3g})"
        )
    if found["size_exponent"] is not None:
        yield f"  through their minima: N ~ C^{found['size_exponent']:.3f}"


def _kaplan_lines(kaplan: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "Kaplan's law, L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D: "
        f"alpha_N {kaplan['alpha_N']:.4f}, alpha_D {kaplan['alpha_D']:.4f}, log N_c "
        f"{kaplan['log_N_c']:.2f}, log D_c {kaplan['log_D_c']:.2f}"
    )
    yield from (f"  {sentence}" for sentence in kaplan["why_they_differ"])


def ends(ci95: Sequence[float], form: str) -> str:
    """Return an interval as text."""
    return f"[{ci95[0]:{form}}, {ci95[1]:{form}}]"


def _ranges(found: Mapping[str, Sequence[float]]) -> str:
    return ", ".join(
        f"{letter} {found[name][0]:.3g} to {found[name][1]:.3g}"
        for letter, name in (("N", "parameters"), ("D", "tokens"), ("C", "flops"))
    )


def plan_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """Yield a plan for a budget as lines."""
    yield f"budget: {plan['flops']:.3e} FLOPs{plan['hardware']}"
    measured = plan["C0_ci95"]
    how = f" {ends(measured, '.3g')}, of the runs" if measured else ", as the runs have no flops"
    yield f"C = C0 N D with C0 {plan['C0']:.3g}{how}"
    rows = ("N", "parameters", ".3g"), ("D", "tokens", ".3g"), ("L", "loss", ".4f")
    for letter, name, form in rows:
        yield f"  {letter} {name:<11}{plan[name]:>10{form}}  {ends(plan[f'{name}_ci95'], form)}"
    yield f"  D / N {plan['tokens'] / plan['parameters']:.3g}"
    yield from (f"doubt: {sentence}" for sentence in plan["doubts"])
    if plan["extrapolates"]:
        yield f"extrapolates: {'; '.join(plan['extrapolates'])}"
        yield ("  the intervals are of the law's coefficients; that it holds there no run tells")
