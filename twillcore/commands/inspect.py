"""``twillcore inspect``: what a program file holds."""

from collections import Counter

from twillcore.commands.options import Json, Program

EXAMPLES = ("twillcore inspect mlp.twill", "twillcore inspect mlp.twill --json")


def command(program: Program, as_json: Json = False) -> None:
    """Show a program's configuration, inputs, outputs, memory, instructions and layers."""
    from dataclasses import asdict

    from twillcore.commands.terminal import print_json
    from twillcore.image import Image

    image = Image.load(program)
    instructions = Counter(i.opcode.name.lower() for i in image.instructions())
    if as_json:
        print_json(
            {
                "config": image.config.name,
                "config_hash": image.config.hash,
                "instructions": dict(instructions),
                "memory_bytes": image.memory_bytes,
                "initial_memory_bytes": len(image.memory),
                "inputs": [asdict(slot) for slot in image.inputs],
                "outputs": [asdict(slot) for slot in image.outputs],
                "layers": [asdict(layer) for layer in image.layers],
                "macs": sum(layer.macs for layer in image.layers),
                "useful_macs": sum(layer.useful_macs for layer in image.layers),
                "lut_macs": sum(layer.lut_macs for layer in image.layers),
                "notes": image.notes,
            }
        )
    else:
        _show(image, instructions)


def _show(image, instructions) -> None:
    from rich.table import Table

    from twillcore.commands.terminal import results

    config = image.config
    results.print(
        f"configuration  {config.name} ({config.hash}), {config.multipliers} multipliers\n"
        f"memory         {image.memory_bytes:,} bytes, {len(image.memory):,} of them initialised\n"
        f"instructions   {image.instruction_count:,}: "
        + ", ".join(f"{count:,} {name}" for name, count in instructions.most_common())
    )
    table = Table("", "name", "kind", "batch", "rows", "channels", "scale", "address")
    for role, slots in (("input", image.inputs), ("output", image.outputs)):
        for slot in slots:
            shape = map(str, slot.shape)
            table.add_row(
                role, slot.name, slot.kind, *shape, f"{slot.scale:.4g}", f"{slot.address:#x}"
            )
    results.print(table)
    lut = ("on the LUT core",) if config.lut_columns else ()
    table = Table("layer", "MACs", "useful", *lut, "ideal cycles")
    for column in table.columns[1:]:
        column.justify = "right"
    for layer in image.layers:
        figures = [layer.macs, layer.useful_macs, layer.ideal_cycles(config)]
        if config.lut_columns:
            figures.insert(2, layer.lut_macs)
        table.add_row(layer.name, *(f"{n:,}" for n in figures))
    results.print(table)
    for name, note in image.notes.items():
        results.print(f"{name}: {note}")
