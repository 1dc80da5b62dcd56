"""``twillcore disasm``: a program's instructions as text."""

from twillcore.commands.options import Program

EXAMPLES = ("twillcore disasm mlp.twill", "twillcore disasm mlp.twill | grep gemm")


def command(program: Program) -> None:
    """Print every instruction, in program order, under the layer that it belongs to."""
    from twillcore.image import Image

    image = Image.load(program)
    layer = None
    for index, instruction in enumerate(image.instructions()):
        if image.instruction_layers and (new := image.instruction_layers[index]) != layer:
            layer = new
            name = image.layers[layer].name if 0 <= layer < len(image.layers) else "(no layer)"
            print(f"# {name}")
        print(f"{index:6} {instruction}")
