"""What the registers say after a run, for every driver: ``read`` returns a register by name."""

from collections.abc import Callable

from twillcore.config import Config
from twillcore.image import Image
from twillcore.isa import Cause, Engine
from twillcore.registers import REGISTERS, Counter
from twillcore.sim.machine_error import MachineError

Read = Callable[[str], int]

#: Masks of STATUS and CONTROL.
STATUS = {field.name: 1 << field.offset for field in REGISTERS["STATUS"].fields}
CONTROL = {field.name: 1 << field.offset for field in REGISTERS["CONTROL"].fields}


def machine_error(read: Read, image: Image) -> MachineError:
    """Return why the machine stopped."""
    cause = Cause(read("ERROR_CAUSE"))
    index = read("ERROR_INDEX")
    number = read("ERROR_ENGINE")
    engine = Engine(number).name.lower() if number in tuple(Engine) else "dispatch"
    if index >= image.instruction_count:
        return MachineError(cause, engine)
    try:
        text = str(image.instructions()[index])
    except ValueError as error:
        return MachineError(cause, engine, index, detail=str(error))
    return MachineError(cause, engine, index, text)


def counters(read: Read, config: Config) -> dict[str, dict[str, int]]:
    """Return the performance counters of every engine that the configuration has."""
    present = config.engines
    return {
        engine.name.lower(): {
            counter.name.lower(): read(f"{engine.name}_{counter.name}") for counter in Counter
        }
        for engine in present
    }
