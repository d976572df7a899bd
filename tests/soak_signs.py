"""`python tests/soak_signs.py [TIMES]`: how often signs are false, found and covered, as docs/signs.md says. Minutes."""

import sys

from test_signs import KINDS, coverage, false_signs, recovered


def main(times: int) -> None:
    """One line for each setting: areas, months, sd of the noise."""
    print(f"{times} simulations each; areas x months, sd of a cell's noise")
    print("false signs: share of simulations in which any of 6 pairs at 6 lags leads (counts of about 100)")
    for shape, sd in (
        ((3, 36), 5.0),
        ((5, 24), 0.0),
        ((8, 36), 0.0),
        ((8, 48), 5.0),
        ((1, 60), 0.0),
        ((1, 96), 0.0),
    ):
        found = {kind: false_signs(kind, shape, sd, times) for kind in KINDS}
        each = ", ".join(f"{kind} {share:.3f}" for kind, share in found.items())
        print(f"  {shape} sd {sd:g}: {sum(found.values()) / len(found):.3f} ({each})", flush=True)
    print("a planted lead of 3 months: found at its lag; the other way round said to lead")
    for shape, sd, mean, share in (
        ((8, 48), 5.0, 120.0, 0.6),
        ((8, 48), 10.0, 120.0, 0.6),
        ((8, 48), 20.0, 120.0, 0.6),
        ((20, 60), 10.0, 120.0, 0.6),
        ((20, 60), 20.0, 120.0, 0.6),
        ((8, 36), 10.0, 120.0, 0.8),
        ((1, 60), 10.0, 1_000.0, 0.8),
        ((1, 96), 10.0, 1_000.0, 0.8),
    ):
        right, wrong = recovered(shape, sd, times, mean=mean, share=share)
        print(
            f"  {shape} sd {sd:g}, counts {mean:g}, strength {share:g}: {right:.3f}, {wrong:.3f}", flush=True
        )
    print("a known autoregression: all 12 intervals hold the truth; bias at the planted lag; width there")
    for shape, sd in (((8, 48), 0.0), ((8, 48), 15.0), ((8, 48), 30.0), ((20, 60), 30.0), ((1, 120), 15.0)):
        held, bias, width = coverage(shape, sd, times)
        print(f"  {shape} sd {sd:g}: {held:.3f}, {bias:+.3f}, {width:.2f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
