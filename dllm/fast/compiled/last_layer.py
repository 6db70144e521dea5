"""The last layer of a traced body behind its attention, on the positions that are read only.

As :mod:`dllm.fast.head.last_layer` does it for modules, found in the graph: backwards from the hidden states, operators
that compute each position from itself, for as long as nothing else uses them.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from dllm.fast.head.traced import ROWS, Trace, TracedTensor, is_copy, is_rowwise


def keep_read_rows(graph: fx.GraphModule) -> int:
    """Let a graph compute its last operators for the positions that are read, in place; returns how many they are. All
    other positions of its output are zero then.

    Args:
        graph: of torch's functions, whose outputs are hidden states [B, L, H] and a copy of the positions that are
            read, int64 [N]. A graph with other outputs stays as it is.
    """
    outputs = graph.graph.output_node().args[0]
    read = [node for node in outputs if _value(node).dtype == torch.int64]
    hidden = [node for node in outputs if _value(node).dim() == 3]
    if not len(read) == len(hidden) == 1 or len(outputs) != 2:
        return 0
    own = _computed_for_themselves(graph.graph, hidden[0])
    if own:
        _move_to_rows(graph.graph, own, hidden[0], read[0])
        graph.recompile()
    return len(own)


def _computed_for_themselves(graph: fx.Graph, hidden: fx.Node) -> list[fx.Node]:
    """The nodes that nothing but `hidden` needs, and that compute each position from itself, in order."""
    positions, own = _value(hidden).shape[:2], {}
    for node in reversed(graph.nodes):
        wanted = node is hidden if node in graph.output_node().all_input_nodes else node.users
        if wanted and all(user in own or node is hidden for user in node.users) and _is_rowwise(node, positions):
            own[node] = None
    parts = [node for node in own if node.target is operator.getitem and node.args[0] not in own]
    for node in parts:  # of a tuple that is needed whole
        del own[node]
    return [node for node in graph.nodes if node in own]


def _move_to_rows(graph: fx.Graph, own: list[fx.Node], hidden: fx.Node, read: fx.Node) -> None:
    """Compute nodes for the positions that are read, and put these into zeros."""
    positions, chosen, whole = _value(hidden).shape[:2], {}, None
    with graph.inserting_before(graph.output_node()):
        for node in own:
            for source in node.all_input_nodes:
                if source not in chosen:
                    is_states = _has_positions(_value(source), positions)
                    chosen[source] = graph.call_function(_gather, (source, read)) if is_states else source
                    whole = source if is_states else whole
            chosen[node] = graph.node_copy(node, chosen.__getitem__)
        everywhere = graph.call_function(_scatter, (chosen[hidden], read, whole))
    graph.output_node().replace_input_with(hidden, everywhere)
    for node in reversed(own):
        graph.erase_node(node)


def _gather(states: Tensor, read: Tensor) -> Tensor:
    """Rows [1, N, H] of states [B, L, H]."""
    return states.flatten(0, 1).index_select(0, read)[None]


def _scatter(rows: Tensor, read: Tensor, like: Tensor) -> Tensor:
    """States [B, L, H] of rows [1, N, H], zero elsewhere."""
    batch, columns, width = like.shape[0], like.shape[1], rows.shape[2]
    return rows.new_zeros(batch * columns, width).index_copy(0, read, rows[0]).view(batch, columns, width)


def _is_rowwise(node: fx.Node, positions: torch.Size) -> bool:
    """Whether a node computes each position from itself, by its operators on tensors without values."""
    if node.op not in ("call_function", "call_method"):
        return False
    mixed = []

    def rule(*operation: object) -> bool:
        mixed.append(not (is_rowwise(*operation) or is_copy(*operation)))
        return True

    trace = Trace(rule)
    try:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda part: _probe(part, positions, trace))
        with torch.no_grad():
            function = node.target if node.op == "call_function" else getattr(torch.Tensor, node.target)
            results = tree_leaves(function(*args, **kwargs))
    except Exception:  # sizes that are not known, or an operator that takes no such tensors
        return False
    return all(isinstance(each, TracedTensor) and each.shape[:2] == (1, ROWS) for each in results) and not any(mixed)


def _probe(node: fx.Node, positions: torch.Size, trace: Trace) -> object:
    """What a node stands for, without values; states have `ROWS` positions."""

    def probe(value: object) -> object:
        is_states = isinstance(value, Tensor) and _has_positions(value, positions)
        shape = (1, ROWS, value.shape[2]) if is_states else getattr(value, "shape", (value,))
        if not all(type(size) is int for size in shape):  # int() of a symbol would make torch guard on its value
            raise TypeError("a size is no number yet")
        probe = torch.empty(shape, dtype=value.dtype, device="meta")
        return TracedTensor(probe, trace) if is_states else probe

    return tree_map(probe, _value(node))


def _value(node: fx.Node) -> object:
    """The tensor, or tensors, that a node stood for while it was traced."""
    return node.meta["example_value"]


def _has_positions(value: object, positions: torch.Size) -> bool:
    """Whether a value is states [B, L, H]. Sizes are compared as texts: asking whether symbols are equal would make
    torch guard on it."""
    if not isinstance(value, Tensor) or value.dim() != 3:
        return False
    return [str(size) for size in value.shape[:2]] == [str(size) for size in positions]
