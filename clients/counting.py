"""What leaves a node for a demand map: counts of its people, in grid steps, with noise on each number.

One person moves the vector by at most `Design.sensitivity` steps (L2), which is computed from the workload. Noise N_Z(0, v)
with v >= (z D)^2 then costs at most what a Gaussian of noise multiplier z does (`clients.noise`).
"""

import numpy as np

from clients import noise, randomness
from clients.randomness import Stream
from federation import masks
from federation.demand import MapPlan
from federation.plan import Reason, Refused
from federation.release import SharedRelease
from models.contract import Contract
from models.design import Counted, Design


def design_of(plan: MapPlan, contract: Contract, name: str) -> Design:
    """How agency `name` counts for the plan. `Refused`: CONTRACT where it holds nothing that is asked for, MALFORMED
    where the workload does not fit the contract, or its noise cannot be drawn, whatever the records are.
    """
    design = plan.design_of(contract, name)
    if design is None:
        raise Refused(
            Reason.CONTRACT, "workload: this kind of agency holds none of the columns that it asks for"
        )
    if plan.circle is not None:
        _must_fit(plan, contract, design)
    else:
        try:
            _variance(plan, design)
        except ValueError as error:
            raise Refused(Reason.MALFORMED, str(error)) from None
    return design


def noised(plan: MapPlan, design: Design, counted: Counted, stream: Stream) -> np.ndarray:
    """The counts with this agency's own noise, int64 (numbers,)."""
    exact, variance = design.measure(counted), _variance(plan, design)
    return exact + randomness.discrete_gaussian(stream, exact.size, variance) if variance else exact


def with_share(plan: MapPlan, design: Design, counted: Counted, stream: Stream) -> np.ndarray:
    """The counts with this agency's share of the noise, uint (numbers,): to be masked, and to leave only so."""
    release = plan.release()
    assert plan.circle is not None  # noqa: S101 - the caller's case
    assert isinstance(release, SharedRelease)  # noqa: S101 - as the circle says
    exact = np.clip(design.measure(counted), -plan.limit, plan.limit)
    drawn = randomness.discrete_gaussian(stream, release.dimension, release.share_variance)
    return masks.wrap(exact + drawn, plan.circle.bits)


def _variance(plan: MapPlan, design: Design) -> int:
    """Of the noise on each number, steps squared; ValueError where it is more than can be drawn."""
    return noise.grid(plan.noise_multiplier, 1, design.sensitivity).variance if plan.noise_multiplier else 0


def _must_fit(plan: MapPlan, contract: Contract, design: Design) -> None:
    """`Refused(MALFORMED)` where the noise is accounted for other numbers than leave, or they cannot be masked."""
    circle, release = plan.circle, plan.release()
    assert circle is not None  # noqa: S101 - the caller's case
    assert isinstance(release, SharedRelease)  # noqa: S101 - as the circle says
    if design.workload != plan.asked(contract):
        raise Refused(
            Reason.MALFORMED, "workload: behind masks every agency must hold every column that is asked for"
        )
    if (circle.numbers, circle.sensitivity) != (design.numbers, design.sensitivity):
        raise Refused(
            Reason.MALFORMED,
            f"circle: the workload has {design.numbers} numbers, of which a person moves {design.sensitivity:.0f} steps, the "
            f"plan says {circle.numbers} and {circle.sensitivity:.0f}",
        )
    try:
        fits = release.share_variance <= randomness.MAX_VARIANCE and plan.limit > 0
    except (OverflowError, ValueError):
        fits = False
    if not fits:
        raise Refused(Reason.MALFORMED, f"circle: shares of this size do not fit in {circle.bits} bits")
