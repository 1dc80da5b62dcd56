"""Flip-flops behind block RAM: those that can go into it go, and nothing computes another value."""

import copy
import random
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twillcore.fpga.block_ram_registers import MOST_LOADS, absorb_registers

CLOCK, OTHER_CLOCK, READ_ENABLE, ENABLE, OTHER_ENABLE = 2, 3, 4, 5, 6
ADDRESS = 7


def cell(kind, outputs, parameters, **connections):
    return {
        "type": kind, "parameters": parameters,
        "port_directions": {p: "output" if p in outputs else "input" for p in connections},
        "connections": {port: [bit] for port, bit in connections.items()},
    }  # fmt: skip


def block(width_a, width_b, outputs):
    """Return a memory block; ``outputs`` are the nets by port, as DOA0."""
    parameters = {
        "DATA_WIDTH_A": f"{width_a:032b}", "DATA_WIDTH_B": f"{width_b:032b}", "REGMODE_A": "NOREG",
        "REGMODE_B": "NOREG", "CLKAMUX": "CLKA", "CLKBMUX": "CLKB",
    }  # fmt: skip
    return cell(
        "DP16KD", outputs, parameters, CLKA=CLOCK, CLKB=CLOCK, CEA=READ_ENABLE, CEB=READ_ENABLE,
        OCEA="1", OCEB="1", RSTA="0", RSTB="0", ADA3=ADDRESS, ADB3=ADDRESS, **outputs,
    )  # fmt: skip


def flip_flop(source, output, enable=ENABLE, **other):
    """Return a flip-flop of Yosys; without an enable it is always enabled."""
    parameters = {"CEMUX": "1 " if enable is None else "CE", "CLKMUX": "CLK", "GSR": "DISABLED",
                  "LSRMUX": "LSR", "REGSET": other.pop("start", "RESET")}  # fmt: skip
    pins = {"CLK": CLOCK, "LSR": "0", "DI": source, "Q": output} | other
    if enable is not None:
        pins["CE"] = enable
    return cell("TRELLIS_FF", ("Q",), parameters, **pins)


def design(sides="B", bits=4, width=9):
    """Return a block, a flip-flop behind each output used, and a LUT behind each of those."""
    names = [f"DO{side}{n}" for side in sides for n in range(bits)]
    outputs = {name: 100 + n for n, name in enumerate(names)}
    cells = {"block": block(width, width, outputs)}
    for n, (name, net) in enumerate(outputs.items()):
        cells[f"ff_{name}"] = flip_flop(net, 200 + n)
        cells[f"lut_{name}"] = cell("LUT4", ("Z",), {}, A=200 + n, B=200 + n, Z=300 + n)
    return {"cells": cells, "ports": {}}


@pytest.mark.parametrize("sides", ["A", "B"])
def test_a_port_takes_its_flip_flops(sides):
    module = design(sides)
    assert absorb_registers(module) == 4
    assert not any(c["type"] == "TRELLIS_FF" for c in module["cells"].values())
    other = {"A": "B", "B": "A"}[sides]
    memory = module["cells"]["block"]
    assert memory["parameters"][f"REGMODE_{sides}"] == "OUTREG"
    assert memory["parameters"][f"REGMODE_{other}"] == "NOREG"
    assert memory["connections"][f"OCE{sides}"] == [ENABLE]
    assert memory["connections"][f"OCE{other}"] == ["1"]
    assert [memory["connections"][f"DO{sides}{n}"] for n in range(4)] == [
        [n] for n in range(200, 204)
    ]


def test_a_word_of_36_bits_is_one():
    module = design("AB", width=36)
    assert absorb_registers(module) == 8
    memory = module["cells"]["block"]
    for side in "AB":
        assert memory["parameters"][f"REGMODE_{side}"] == "OUTREG"
        assert memory["connections"][f"OCE{side}"] == [ENABLE]


def another_load(module):
    module["cells"]["extra"] = cell("LUT4", ("Z",), {}, A=101, Z=400)


def logic_before(module):
    module["cells"]["between"] = cell("LUT4", ("Z",), {}, A=101, Z=400)
    module["cells"]["ff_DOB1"]["connections"]["DI"] = [400]


def set_input(port, value):
    def change(module):
        module["cells"]["ff_DOB1"]["connections"][port] = [value]

    return change


def starts_as_one(module):
    module["cells"]["ff_DOB1"]["parameters"]["REGSET"] = "SET"


def falling_edge(module):
    module["cells"]["ff_DOB1"]["parameters"]["CLKMUX"] = "INV"


def no_enable(module):
    module["cells"]["ff_DOB1"] = flip_flop(101, 201, None)


def many_loads(module):
    for n in range(MOST_LOADS):
        module["cells"][f"load_{n}"] = cell("LUT4", ("Z",), {}, A=201, Z=400 + n)


def seen_outside(module):
    module["ports"]["word"] = {"direction": "output", "bits": [101]}


def falling_block(module):
    module["cells"]["block"]["parameters"]["CLKBMUX"] = "INV"


def reset_block(module):
    module["cells"]["block"]["connections"]["RSTB"] = [READ_ENABLE]


@pytest.mark.parametrize(
    "change",
    [another_load, set_input("CE", OTHER_ENABLE), set_input("LSR", OTHER_ENABLE), logic_before,
     set_input("CLK", OTHER_CLOCK), starts_as_one, falling_edge, no_enable, seen_outside,
     falling_block, reset_block, many_loads],
)  # fmt: skip
def test_what_the_register_of_a_block_cannot_do_stays(change):
    module = design()
    change(module)
    before = copy.deepcopy(module)
    assert absorb_registers(module) == 0
    assert module == before


def test_half_a_word_of_36_bits_stays():
    module = design("AB", width=36)
    another_load(module)
    before = copy.deepcopy(module)
    assert absorb_registers(module) == 0
    assert module == before


def simulate(module, cycles, seed):
    """Return the nets after every cycle; word a of a block is a hash of its name, port and a."""
    rng = random.Random(seed)
    values, words = defaultdict(int, {"1": 1}), {}
    history = []
    for _ in range(cycles):
        for net in (READ_ENABLE, ENABLE, OTHER_ENABLE, ADDRESS):
            values[net] = rng.getrandbits(1)
        history.append(dict(values))
        following = {}
        for name, made in module["cells"].items():
            pins = {port: values[bits[0]] for port, bits in made["connections"].items()}
            nets = {port: bits[0] for port, bits in made["connections"].items()}
            if made["type"] == "TRELLIS_FF":
                if pins.get("CE", 1):
                    following[nets["Q"]] = pins["DI"]
                continue
            for port in (port for port in nets if port.startswith("DO")):
                side, key = port[2], (name, port)
                read = random.Random(f"{name} {port} {pins[f'AD{side}3']}").getrandbits(1)
                if made["parameters"][f"REGMODE_{side}"] == "OUTREG":
                    if pins[f"OCE{side}"]:
                        following[nets[port]] = words.get(key, 0)
                    if pins[f"CE{side}"]:
                        words[key] = read
                elif pins[f"CE{side}"]:
                    following[nets[port]] = read
        values.update(following)
    return history


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_nothing_has_another_value(seed):
    rng = random.Random(seed)
    cells, seen, net = {}, [], 100
    for n in range(4):
        enables = [rng.choice((ENABLE, OTHER_ENABLE, None))] * 8 + [ENABLE]
        outputs = {}
        for port in rng.sample([f"DO{side}{b}" for side in "AB" for b in range(3)], 4):
            outputs[port] = net
            cells[f"ff_{net}"] = flip_flop(net, net + 1, rng.choice(enables))
            if rng.random() < 0.05:
                cells[f"more_{net}"] = flip_flop(net, net + 2, rng.choice(enables))
            seen += [net + 1, net + 2]
            net += 3
        cells[f"block_{n}"] = block(9, 9, outputs)
    before = {"cells": cells, "ports": {}}
    after = copy.deepcopy(before)
    gone = absorb_registers(after)
    assert len(after["cells"]) == len(cells) - gone
    expected, got = simulate(before, 30, seed), simulate(after, 30, seed)
    for one, other in zip(expected, got, strict=True):
        assert [one.get(bit, 0) for bit in seen] == [other.get(bit, 0) for bit in seen]
