"""``lrpguard recalibrate``: a proposal from audited traffic, and a person's approval."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import typer

from lrpguard.calibration import Calibration
from lrpguard.cli.console import OK, Console
from lrpguard.cli.options import check_folder
from lrpguard.errors import ConfigurationError
from lrpguard.serving.chain import chain_key, records
from lrpguard.serving.opening import file_id
from lrpguard.serving.recalibration import Proposal, approve, propose

SHOWN = 20
"""Flagged images that are named on the screen; all stand in the proposal."""

DIGITS = 8


def propose_from_trail(
    folder: Path,
    calibration: Path,
    out: Path,
    *,
    last: int,
    key: bytes | None,
    console: Console,
) -> int:
    """Write a proposal.

    Returns:
        The exit code.

    Raises:
        LrpGuardError: The chain is broken, or has no verdict of this calibration.
    """
    check_folder(out)
    known = Calibration.load(calibration)
    trail = records(folder, key=chain_key(key))
    proposal = propose(trail, known, file_id(calibration), last=last)
    proposal.save(out)
    flagged = [c.name for c in proposal.candidates if c.flagged]
    window = proposal.window
    console.record(
        {
            "file": str(out),
            "digest": proposal.digest,
            "images": len(proposal.candidates),
            "flagged": flagged,
            "rate_p_value": window["rate_p_value"],
            "score_p_value": window["score_p_value"],
            "threshold": proposal.threshold,
            "proposed_threshold": proposal.proposed_threshold,
        }
    )
    console.line(
        f"traffic    {len(proposal.candidates)} distinct images, {len(flagged)} flagged; the "
        f"calibration expects {100 * known.alpha:g} %"
    )
    console.line(
        f"drift      flag rate p = {window['rate_p_value']:.2g}, scores p = "
        f"{window['score_p_value']:.2g}"
    )
    console.line(f"threshold  {proposal.threshold:.4g} now, {proposal.proposed_threshold:.4g} then")
    for name in flagged[:SHOWN]:
        console.line(f"look at    {name}")
    if len(flagged) > SHOWN:
        console.line(f"           and {len(flagged) - SHOWN} more, in {out}")
    console.line(f"wrote      {out}, digest {proposal.digest[:DIGITS]}")
    return OK


def approve_proposal(
    proposal_file: Path,
    calibration: Path,
    out: Path,
    *,
    by: str,
    exclude: Sequence[str],
    confirm: str | None,
    console: Console,
) -> int:
    """Write the calibration of a proposal, and who approved it.

    Returns:
        The exit code.

    Raises:
        LrpGuardError: It was not confirmed, or does not fit.
    """
    check_folder(out)
    if out.exists():
        raise ConfigurationError(f"{out} is there already; a calibration is not written over.")
    proposal = Proposal.load(proposal_file)
    wanted = proposal.digest[:DIGITS]
    flagged = sum(c.flagged for c in proposal.candidates)
    if confirm is None:
        confirm = typer.prompt(
            f"{len(proposal.candidates)} images, {flagged} of them flagged, {len(exclude)} "
            f"excluded. To approve as {by}, type the proposal's first {DIGITS} digits",
            err=True,
        )
    if confirm.strip() != wanted:
        raise ConfigurationError(
            f"the proposal's digest does not begin with {confirm.strip()!r}; not approved."
        )
    known = Calibration.load(calibration)
    approved, record = approve(proposal, known, file_id(calibration), by=by, exclude=exclude)
    approved.save(out)
    beside = out.with_name(out.name + ".approval.json")
    beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    low, high = approved.fpr_band()
    console.record({"file": str(out), "approval": str(beside), **record})
    console.line(f"approved   by {record['by']}: {approved.n} images, {len(exclude)} excluded")
    console.line(f"threshold  {known.threshold:.4g} before, {approved.threshold:.4g} now")
    console.line(
        f"alpha      {approved.alpha:g}: {100 * low:.1f} to {100 * high:.1f} % of clean images "
        "will be flagged (95 % band)"
    )
    console.line(f"wrote      {out} and {beside}")
    console.line("next       make its self-test (lrpguard selftest), then restart the service")
    return OK
