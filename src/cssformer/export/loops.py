"""The loops of an ONNX file: PyTorch's tracing exporter writes none, so each is put in the place of one node."""

import io
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cssformer.ops.runs import DOMAIN, Body, Function

if TYPE_CHECKING:
    import onnx


class _Module(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


def write_loops(model: "onnx.ModelProto", bodies: list[Body], opset: int) -> None:
    """Replace the nodes of :func:`cssformer.ops.runs.as_loops` by ONNX's Loop, in place."""
    from onnx import helper

    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes += (
            _loop(node, bodies[helper.get_node_attr_value(node, "body")], opset) if node.domain == DOMAIN else [node]
        )
    imports = [opset_id for opset_id in model.opset_import if opset_id.domain != DOMAIN]
    graph = helper.make_graph(nodes, model.graph.name, model.graph.input, model.graph.output, model.graph.initializer)
    model.graph.CopyFrom(graph)
    del model.opset_import[:]
    model.opset_import.extend(imports)


def _loop(node: "onnx.NodeProto", body: Body, opset: int) -> list["onnx.NodeProto"]:
    """The loop over the first axis of what the body takes run by run; all else it sees as its surroundings do."""
    import onnx
    from onnx import TensorProto, helper

    tensors = (*body.each, *body.shared)
    names = [f"taken_{i}" for i in range(len(tensors))]
    # Tables have rows for each picture's pixels. A run's sides are the same for any picture.
    free = {name: {0: "rows"} for name in names[len(body.each) :]}
    file: Any = io.BytesIO()  # which the exporter takes, though its types do not say so
    torch.onnx.export(
        _Module(body.function),
        tensors,
        file,
        dynamo=False,
        input_names=names,
        output_names=["run"],
        dynamic_axes=free,
        opset_version=opset,
    )
    prefix = f"{node.output[0]}/"
    graph = onnx.compose.add_prefix_graph(onnx.load_from_string(file.getvalue()).graph, prefix)
    index, going, still, count, runs = (prefix + name for name in ("index", "going", "still", "count", "runs"))
    around = dict(zip((prefix + name for name in names), node.input, strict=True))
    taken = list(around)[: len(body.each)]
    for inner in graph.node:
        inner.input[:] = [name if name in taken else around.get(name, name) for name in inner.input]
    slices = [helper.make_node("Gather", [around[name], index], [name], axis=0) for name in taken]
    once = helper.make_graph(
        [*slices, *graph.node, helper.make_node("Identity", [going], [still])],
        prefix,
        [
            helper.make_tensor_value_info(index, TensorProto.INT64, []),
            helper.make_tensor_value_info(going, TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info(still, TensorProto.BOOL, []), *graph.output],
        graph.initializer,
    )
    return [
        helper.make_node("Shape", [node.input[0]], [count], end=1),
        helper.make_node("Squeeze", [count], [runs]),
        helper.make_node("Loop", [runs, ""], node.output, name=node.name, body=once),
    ]
