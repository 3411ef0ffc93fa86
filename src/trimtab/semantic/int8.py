"""Let an ONNX graph whose weights are int8 also multiply in int8.

Some exporters store int8 weights and turn them back into floats before each product: a quarter of the file, none of the
speed. Here each such product becomes onnxruntime's `DynamicQuantizeMatMul`, which quantizes the activations as they
come (https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

_DOMAIN: Final = "com.microsoft"


def multiply_in_int8(source: Path) -> bytes:
    """The changed graph, as a file would hold it. Raises ValueError if there is nothing to change.

    A product counts if its right side is `Mul(Cast(int8 constant), constant scale by column)`. Its bias goes along.
    """
    model = onnx.load(source)
    if not _change(model.graph):
        raise ValueError(f"{source}: no product with int8 weights")
    model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    changed: bytes = model.SerializeToString()
    return changed


def _change(graph: GraphProto) -> int:
    constants = {one.name: one for one in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    instead: dict[str, NodeProto | None] = {}  # by the output of the node it replaces
    for node in graph.node:
        weights = _weights(node, makers, constants)
        if weights is None:
            continue
        quantized, scale = weights
        for name in (node.input[1], makers[node.input[1]].input[0]):  # the floats, if nobody else wants them
            if len(users[name]) == 1:
                instead[name] = None
        flat = numpy_helper.from_array(numpy_helper.to_array(scale).reshape(-1), f"{scale.name}/{node.output[0]}")
        graph.initializer.append(flat)
        out, bias = node.output[0], ""
        if len(users[out]) == 1 and (added := _bias(users[out][0], out, constants)):
            bias = added
            instead[out] = None
            out = users[out][0].output[0]
        inputs = [node.input[0], quantized.name, flat.name, "", bias]
        instead[out] = helper.make_node("DynamicQuantizeMatMul", inputs, [out], domain=_DOMAIN)
    # The node that made the last of a product's inputs came before it, so its place or its bias's is right for it.
    nodes = [instead.get(node.output[0], node) for node in graph.node]
    del graph.node[:]
    graph.node.extend(node for node in nodes if node is not None)
    return sum(node is not None for node in instead.values())


def _weights(
    node: NodeProto, makers: dict[str, NodeProto], constants: dict[str, TensorProto]
) -> tuple[TensorProto, TensorProto] | None:
    """The int8 weights and their scale, if this is a product with such."""
    if node.op_type != "MatMul":
        return None
    scaled = makers.get(node.input[1])
    if scaled is None or scaled.op_type != "Mul":
        return None
    cast, scale = makers.get(scaled.input[0]), constants.get(scaled.input[1])
    if cast is None or cast.op_type != "Cast" or scale is None:
        return None
    weights = constants.get(cast.input[0])
    if weights is None or weights.data_type != TensorProto.INT8 or list(scale.dims) != [1, weights.dims[1]]:
        return None
    return weights, scale


def _bias(node: NodeProto, product: str, constants: dict[str, TensorProto]) -> str:
    """The name of what is added to the product alone, if that is a constant row."""
    if node.op_type != "Add":
        return ""
    other = node.input[1] if node.input[0] == product else node.input[0]
    return other if other in constants and len(constants[other].dims) == 1 else ""
