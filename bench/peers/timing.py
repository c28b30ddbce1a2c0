"""What the peers' workers share: how a call is timed and how they answer."""

import json
import statistics
import sys
import time

PATIENCE = 0.5  # seconds for one measurement; slow calls are made once


def median(call) -> float:
    """The median time of repeats. `call` has been run before."""
    times = []
    started = time.perf_counter()
    while not times or (time.perf_counter() - started < PATIENCE and len(times) < 1000):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def serve(cases: dict) -> None:
    """Reads the name of a case from each line of standard input, answers with a line of JSON: seconds by pass.

    A case is a function that makes the inputs and returns calls by pass, `"forward"` or, where there are several ways
    to write it, `"forward (way)"`. A pass that returns a number has timed itself. The calls of the last case are kept, so
    that a round only measures.
    """
    name, calls = None, {}
    for line in sys.stdin:
        if line.strip() != name:
            name = line.strip()
            calls = {}  # lets go of the last case's memory first
            calls = cases[name]() if name in cases else {}
            for call in calls.values():
                call()
        times = {}
        for what, call in calls.items():
            own = getattr(call, "times_itself", False)
            times[what] = call() if own else median(call)
        print(json.dumps(times), flush=True)
