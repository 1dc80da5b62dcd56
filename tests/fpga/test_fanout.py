"""Copies of drivers: nothing drives too much, and the netlist computes what it did."""

import copy
import random
from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from twillcore.fpga.fanout import copy_drivers

INPUTS = {"clk": 2, "a": 3, "b": 4}  # nets


def cell(kind, inputs, output, **parameters):
    connections = {port: [bit] for port, bit in inputs.items()} | {output[0]: [output[1]]}
    directions = dict.fromkeys(inputs, "input") | {output[0]: "output"}
    return {"type": kind, "parameters": parameters, "attributes": {},
            "port_directions": directions, "connections": connections}  # fmt: skip


def netlist(rng, flip_flops, luts):
    """Return LUTs of flip-flops, inputs and earlier LUTs, and flip-flops of all of these.

    Few drivers have most of the loads, some of them directly, some through LUTs.
    """
    state = list(range(10, 10 + flip_flops))
    values = [INPUTS["a"], INPUTS["b"], *state]
    cells = {}
    for n in range(luts):
        inputs = {port: rng.choice([*values, *values[:4], *values[-3:], "0", "1"])
                  for port in "ABCD"}  # fmt: skip
        output = 10 + flip_flops + n
        init = format(rng.getrandbits(16), "016b")
        cells[f"lut_{n}"] = cell("LUT4", inputs, ("Z", output), INIT=init)
        values.append(output)
    hub = rng.sample(values, 3)
    for n, bit in enumerate(state):
        inputs = {"CLK": INPUTS["clk"], "DI": rng.choice(values), "CE": rng.choice(hub),
                  "LSR": rng.choice([*hub, "0"])}  # fmt: skip
        cells[f"ff_{n}"] = cell("TRELLIS_FF", inputs, ("Q", bit))
    nets = {f"net_{bit}": {"bits": [bit]} for bit in values} | {"clk": {"bits": [2]}}
    return {"cells": cells, "netnames": nets}


def simulate(module, cycles, seed):
    """Return the values of all nets of the original netlist after every cycle."""
    rng = random.Random(seed)
    values = defaultdict(int, {"1": 1})
    luts = {n: c for n, c in module["cells"].items() if c["type"] == "LUT4"}
    flip_flops = [c["connections"] for c in module["cells"].values() if c["type"] == "TRELLIS_FF"]
    history = []
    for _ in range(cycles):
        values[INPUTS["a"]], values[INPUTS["b"]] = rng.getrandbits(1), rng.getrandbits(1)
        for name in sorted(luts, key=lambda n: int(n.split("_")[1].split("$")[0])):
            pins = luts[name]["connections"]
            place = sum(values[pins[port][0]] << n for n, port in enumerate("ABCD"))
            values[pins["Z"][0]] = int(luts[name]["parameters"]["INIT"][15 - place])
        history.append(dict(values))
        following = {}
        for pins in flip_flops:
            if values[pins["LSR"][0]]:
                following[pins["Q"][0]] = 0
            elif values[pins["CE"][0]]:
                following[pins["Q"][0]] = values[pins["DI"][0]]
        values.update(following)
    return history


def loads(module):
    count = Counter()
    for c in module["cells"].values():
        for port, bits in c["connections"].items():
            if c["port_directions"][port] == "input" and port != "CLK":
                count.update(bit for bit in bits if isinstance(bit, int))
    return count


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(3, 30), st.integers(6, 12))
def test_copies_have_few_loads_and_the_same_values(seed, flip_flops, luts, most):
    rng = random.Random(seed)
    before = netlist(rng, flip_flops, luts)
    after = copy.deepcopy(before)
    copies = copy_drivers(after, most)
    assert len(after["cells"]) == len(before["cells"]) + copies
    assert set(before["cells"]) <= set(after["cells"])
    for bit, count in loads(after).items():
        assert count <= most or bit in INPUTS.values()
    expected, got = simulate(before, 20, seed), simulate(after, 20, seed)
    for one, other in zip(expected, got, strict=True):
        assert one == {bit: other.get(bit, 0) for bit in one}


def test_loads_of_a_copy_are_neighbours():
    cells = {"driver": cell("TRELLIS_FF", {"CLK": 2, "DI": 3}, ("Q", 10))}
    for lane in reversed(range(12)):
        for n in range(4):
            cells[f"lane_{lane}_{n}"] = cell("TRELLIS_FF", {"CLK": 2, "DI": 3, "CE": 10},
                                             ("Q", 100 + 4 * lane + n))  # fmt: skip
    module = {"cells": cells, "netnames": {"enable": {"bits": [10]}, "top": {"bits": [200]}}}
    assert copy_drivers(module, most=16) == 2
    enables = [module["cells"][f"lane_{lane}_0"]["connections"]["CE"][0] for lane in range(12)]
    assert enables == [10] * 4 + [enables[4]] * 4 + [enables[8]] * 4
    assert len(set(enables)) == 3


def test_nothing_happens_without_a_reason():
    module = netlist(random.Random(1), 20, 10)
    before = copy.deepcopy(module)
    assert copy_drivers(module, most=100) == 0
    assert module == before
