"""How long Flower's `Grid` waits for the parts of a reply that are still on their way: 0.05 s at first, not 1 s.

A reply's parts arrive at the SuperLink one after another, and a server that looks in between backs off. No setting
exists for it, so the default of one private function of Flower 1.41 is changed; nothing breaks where it is gone.
"""

FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0  # seconds


def wait_briefly() -> None:
    """Use the shorter waits in this process."""
    from flwr.supercore.inflatable.inflatable_utils import pull_objects

    defaults = pull_objects.__kwdefaults__ or {}
    if {"initial_backoff", "backoff_cap"} <= set(defaults):
        defaults.update(initial_backoff=FIRST_WAIT, backoff_cap=LONGEST_WAIT)
