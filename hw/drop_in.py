"""What goes with the Verilog into other people's flows: lint waivers and a FuseSoC core file."""

import re
from importlib.metadata import version

from twillcore.config import Config

#: Verilator's warnings that do not apply to generated Verilog, with the reason.
WAIVERS = {
    "DECLFILENAME": "all modules stand in one file",
    "UNUSEDSIGNAL": "a component need not use all of its ports and of the structures in them",
    "PROCASSINIT": "registers have their reset value from configuration on",
    "CASEINCOMPLETE": "values without a case keep the default that was assigned before",
    "WIDTHEXPAND": "operands are extended by Verilog's own rules, which the generator knows",
    "WIDTHTRUNC": "results are cut by Verilog's own rules; `!` of a number asks if it is zero",
    "ASCRANGE": "a choice among one has zero bits, written [-1:0]",
}


def waivers(file: str) -> str:
    """Return the waivers for ``file`` in Verilator's language."""
    lines = ["// Waivers for verilator --lint-only -Wall; generated.", "`verilator_config"]
    for rule, reason in WAIVERS.items():
        lines += [f"// {reason}", f'lint_off -rule {rule} -file "*{file}"']
    return "\n".join(lines) + "\n"


def core_file(config: Config, module: str) -> str:
    """Return the FuseSoC core file (CAPI2)."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", config.name)
    return f"""CAPI=2:
name: "twillcore:ip:{name}:{version("twillcore")}"
description: "N:M sparse neural-network accelerator, configuration {config.hash}"

filesets:
  rtl:
    files:
      - {module}.v
    file_type: verilogSource
  waivers:
    files:
      - lint.vlt
    file_type: vlt

targets:
  default: &default
    filesets: [rtl]
    toplevel: {module}
  lint:
    <<: *default
    filesets: [rtl, waivers]
    flow: lint
    flow_options:
      tool: verilator
      verilator_options: [-Wall]
"""
