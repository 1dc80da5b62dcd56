"""The integer graph as bytes, without torch: JSON for structure, npz for arrays."""

import dataclasses
import io
import json
import zipfile

import numpy as np

from twillcore.compiler import graph as ir
from twillcore.compiler.graph import Graph, Op, Tensor
from twillcore.config import Config
from twillcore.isa import ElementwiseOp, Function

_OPS = {
    c.__name__: c
    for c in (
        ir.Linear, ir.Conv, ir.MaxPool, ir.Concat, ir.Map, ir.MatMul, ir.Attention, ir.Softmax,
        ir.LayerNorm, ir.Elementwise,
    )
}  # fmt: skip
_ENUMS = {"function": Function, "op": ElementwiseOp}


def graph_to_bytes(graph: Graph) -> bytes:
    """Return ``graph`` as the bytes of an npz file."""
    arrays: dict[str, np.ndarray] = {}

    def plain(value: object) -> object:
        if isinstance(value, np.ndarray):
            arrays[f"a{len(arrays)}"] = value
            return {"array": f"a{len(arrays) - 1}"}
        return int(value) if isinstance(value, np.integer) else value

    def record(item: Op | Tensor) -> dict:
        fields = dataclasses.fields(item)
        return {f.name: plain(getattr(item, f.name)) for f in fields}

    structure = {
        "config": dataclasses.asdict(graph.config),
        "tensors": [record(tensor) for tensor in graph.tensors.values()],
        "ops": [{"kind": type(op).__name__, **record(op)} for op in graph.ops],
        "inputs": graph.inputs,
        "outputs": graph.outputs,
        "masks": graph.masks,
        "notes": graph.notes,
    }
    arrays["structure"] = np.frombuffer(json.dumps(structure).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def graph_from_bytes(data: bytes) -> Graph:
    """Read what :func:`graph_to_bytes` wrote. Raises ``ValueError`` if it is something else."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        structure = json.loads(arrays["structure"].tobytes())
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"not a graph: {error}") from None

    def value_of(name: str, value: object) -> object:
        if isinstance(value, dict):
            return arrays[value["array"]]
        value = tuple(value) if isinstance(value, list) else value
        return _ENUMS[name](value) if name in _ENUMS else value

    def fields_of(record: dict) -> dict:
        return {name: value_of(name, value) for name, value in record.items() if name != "kind"}

    tensors = [Tensor(**fields_of(record)) for record in structure["tensors"]]
    return Graph(
        config=Config(**structure["config"]),
        tensors={tensor.name: tensor for tensor in tensors},
        ops=tuple(_OPS[record["kind"]](**fields_of(record)) for record in structure["ops"]),
        inputs=tuple(structure["inputs"]),
        outputs=tuple(structure["outputs"]),
        masks=tuple(structure["masks"]),
        notes=structure["notes"],
    )
