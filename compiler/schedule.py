"""Program order: every LOAD as early as its destination is free.

:mod:`twillcore.compiler.tile` puts each LOAD right before its first user. Here LOADs move forward,
in their order among themselves, over steps that touch nothing of theirs. They run ahead of the user
by no more than ``config.queue_depth`` instructions: DISPATCH is in order, so a queue full of LOADs
would keep work from the other engines.
"""

from twillcore.compiler.allocate import Placement
from twillcore.compiler.dependences import NEVER, Tracker
from twillcore.compiler.steps import Plan, Step
from twillcore.isa import Engine


def schedule(plan: Plan, placement: Placement) -> list[Step]:
    """Return the steps of ``plan`` in program order."""
    tracker = Tracker(plan.config, placement)
    loads: list[tuple[int, int]] = []  # (index, the last other step it must follow)
    for index, step in enumerate(plan.steps):
        if step.engine == Engine.LOAD:
            needs = tracker.needs(step)
            needs[Engine.LOAD] = NEVER
            loads.append((index, int(needs.max())))
        tracker.record(index, step)
    ahead = plan.config.queue_depth - 1
    order: list[Step] = []
    done = 0  # LOADs in the order so far
    needed = 0  # LOADs that steps so far use
    for index, step in enumerate(plan.steps):
        if step.engine == Engine.LOAD:
            needed += 1
            continue
        while done < len(loads) and done < needed + ahead and loads[done][1] < index:
            order.append(plan.steps[loads[done][0]])
            done += 1
        assert done >= needed
        order.append(step)
    order.extend(plan.steps[index] for index, _ in loads[done:])
    return order
