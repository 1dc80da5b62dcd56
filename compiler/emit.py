"""Steps, addresses and tokens become the program file: the only place that makes instructions."""

import dataclasses
from collections.abc import Mapping, Sequence

from twillcore.compiler.allocate import Placement
from twillcore.compiler.dependences import Tokens
from twillcore.compiler.steps import Buffer, Place, Plan, Space, Step
from twillcore.image import Image, Slot
from twillcore.isa import WORD_BYTES, Instruction, Opcode


def emit(
    plan: Plan,
    steps: Sequence[Step],
    placement: Placement,
    tokens: Tokens,
    host: Mapping[str, bytes] | None,
    notes: Mapping[str, object] | None,
) -> Image:
    """Return the program file of ``steps``, a permutation of those of ``plan``."""
    memory = bytearray(placement.constant_bytes)
    for index, step in enumerate(steps):
        operands = {
            name: placement.addresses[value.buffer] + value.offset
            if isinstance(value, Place) else int(value)
            for name, value in step.operands.items()
        }  # fmt: skip
        instruction = Instruction(step.opcode, operands, tokens.wait[index], tokens.signal[index])
        _put(memory, index, instruction)
    _put(memory, len(steps), Instruction(Opcode.HALT, {}))
    for buffer, address in placement.addresses.items():
        if buffer.space == Space.DRAM and buffer.data is not None:
            memory[address : address + buffer.size] = buffer.data

    def located(slots: Sequence[tuple[Slot, Buffer]]) -> tuple[Slot, ...]:
        return tuple(
            dataclasses.replace(slot, address=placement.addresses[buffer]) for slot, buffer in slots
        )

    return Image(
        config=plan.config,
        program_address=0,
        instruction_count=len(steps) + 1,
        memory=bytes(memory),
        memory_bytes=placement.memory_bytes,
        inputs=located(plan.inputs),
        outputs=located(plan.outputs),
        layers=plan.layers,
        instruction_layers=(*(step.layer for step in steps), max(len(plan.layers) - 1, 0)),
        host=dict(host or {}),
        notes=dict(notes or {}),
    )


def _put(memory: bytearray, index: int, instruction: Instruction) -> None:
    word = instruction.encode().to_bytes(WORD_BYTES, "little")
    memory[index * WORD_BYTES : (index + 1) * WORD_BYTES] = word
