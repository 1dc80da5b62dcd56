"""A small program and a simulated board that can run it."""

from functools import cache

from twillcore.compiler.gemm_graph import gemm_graph
from twillcore.compiler.pipeline import compile_graph
from twillcore.fpga.boards import board_config, find_board
from twillcore.sim.reference import run_graph

BOARD = find_board("ulx3s")
CONFIG = board_config(BOARD)
MEMORY_KIB = 32


@cache
def example():
    """Return a program, its inputs and what comes out."""
    graph, inputs = gemm_graph(9, 20, 11, CONFIG, beats=2)
    return compile_graph(graph), inputs, run_graph(graph, inputs)
