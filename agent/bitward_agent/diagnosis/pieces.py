"""A model in pieces: its chain of blocks, run from any of them on, and one backward pass that holds one block at a time.

Nothing is known of the model but that most of its work is done by a list of blocks, each fed with what the one before gave. That is
checked by looking on while it runs; a model that is built otherwise is one piece, and everything still works, only slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitward_agent.diagnosis.objectives import Batch, LossFunction

GradientSink = Callable[[nn.Parameter, Tensor], None]
"""Called once for each parameter with its gradient, which is dropped afterwards."""


@dataclass(frozen=True, slots=True)
class BlockCall:
    """How a block was called: ``hidden`` is its first argument, detached."""

    hidden: Tensor
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


class _StopHere(Exception):
    """Ends a forward pass where nothing after it matters."""


def find_blocks(model: nn.Module) -> tuple[list[str], list[nn.Module]]:
    """The longest list of modules of one class, with their names; empty if there is no list of two or more."""
    best_names: list[str] = []
    best: list[nn.Module] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > len(best) and len({type(one) for one in module}) == 1:
            best_names = [f"{name}.{number}" if name else str(number) for number in range(len(module))]
            best = list(module)
    return (best_names, best) if len(best) > 1 else ([], [])


def _own_parameters(model: nn.Module, blocks: Sequence[nn.Module]) -> bool:
    """Whether no block shares a parameter with another, or with what is outside of the blocks: else a part would run without the rest."""
    of_blocks = [id(one) for block in blocks for one in block.parameters()]
    inside = {id(module) for block in blocks for module in block.modules()}
    outside = {id(one) for module in model.modules() if id(module) not in inside for one in module.parameters(recurse=False)}
    return len(of_blocks) == len(set(of_blocks)) and outside.isdisjoint(of_blocks)


class Pieces:
    """Runs ``loss(model, batch)`` whole, from a block on, or backward block by block.

    ``block_names`` is empty when the model is no chain. Parameters keep their dtype; nothing is trained.
    """

    def __init__(self, model: nn.Module, loss: LossFunction, batch: Batch) -> None:
        self.model, self.loss = model, loss
        model.requires_grad_(False)
        names, blocks = find_blocks(model)
        self.block_names, self.blocks = names, blocks
        self._besides: list[tuple[Any, ...] | None] = [None] * len(blocks)  # what a tuple that a block gives holds after the hidden state
        if blocks and not (_own_parameters(model, blocks) and self._is_chain(batch)):
            self.block_names, self.blocks = [], []
        self.after_blocks = self._find_after_blocks(batch) if self.blocks else frozenset[str]()
        self._block_of = {id(parameter): number for number, block in enumerate(self.blocks) for parameter in block.parameters()}

    def block_of(self, parameter: nn.Parameter) -> int | None:
        """The number of the block that a parameter belongs to; ``None`` outside the chain (embeddings, last norm, head)."""
        return self._block_of.get(id(parameter))

    def losses(self, batch: Batch) -> Tensor:
        """One loss per item, on the CPU."""
        with torch.no_grad():
            return self.loss(self.model, batch).detach().float().cpu()

    def calls(self, batch: Batch) -> tuple[list[BlockCall], Tensor]:
        """How each block was called in one forward pass, and its losses. Memory: one hidden state per block."""
        calls: list[BlockCall] = []

        def before(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            calls.append(BlockCall(arguments[0].detach(), arguments[1:], keywords))

        with ExitStack() as hooks:
            for block in self.blocks:
                hooks.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
            losses = self.losses(batch)
        return calls, losses

    def losses_from(self, number: int, call: BlockCall, batch: Batch) -> Tensor:
        """The losses when block ``number`` is fed with what it got in ``call``; the blocks before it do not run."""
        with self._skipping(range(number)), self._fed(number, call.hidden):
            return self.losses(batch)

    def backward(self, batch: Batch, sink: GradientSink, keep: Callable[[nn.Parameter], bool] = lambda _: True) -> Tensor:
        """Show the gradient of the mean loss by each parameter for which ``keep`` holds to ``sink``; returns the losses.

        Beside the model it holds one hidden state per block, and activations and gradients of one block at a time (of the head or the
        embedding, if these are larger).
        """
        if not self.blocks:
            return self._backward_whole(batch, sink, keep)
        calls, _ = self.calls(batch)
        block_parameters = self._block_of
        outer = [one for one in self.model.parameters() if id(one) not in block_parameters and keep(one)]
        last = len(self.blocks) - 1
        with _gradients_of(outer):
            leaf = self._output_of(last, calls[last]).detach().requires_grad_()
            losses = self._tail_backward(batch, last, leaf)
            gradient = leaf.grad
            for number in range(last, -1, -1):
                gradient = self._block_backward(number, calls[number], gradient, sink, keep)
                calls[number] = calls[0]
            self._stem_backward(batch, gradient)
            for parameter in outer:
                if parameter.grad is not None:
                    sink(parameter, parameter.grad.to_dense())
                    parameter.grad = None
        return losses

    def _tail_backward(self, batch: Batch, last: int, leaf: Tensor) -> Tensor:
        """From the losses back to the last block's output."""
        with torch.enable_grad(), self._skipping(range(last)), self._giving(last, leaf):
            losses = self.loss(self.model, batch)
            losses.mean().backward()
        return losses.detach().float().cpu()

    def _is_chain(self, batch: Batch) -> bool:
        order: list[int] = []
        inputs: list[Any] = []
        outputs: list[Any] = []

        def before(number: int) -> Callable[..., None]:
            def hook(_: nn.Module, arguments: tuple[Any, ...], __: dict[str, Any]) -> None:
                order.append(number)
                inputs.append(arguments[0] if arguments else None)

            return hook

        def after(_: nn.Module, __: tuple[Any, ...], ___: dict[str, Any], output: Any) -> None:
            if isinstance(output, tuple) and output:
                self._besides[len(outputs)] = output[1:]
                output = output[0]
            outputs.append(output)

        with ExitStack() as hooks, torch.no_grad():
            for number, block in enumerate(self.blocks):
                hooks.callback(block.register_forward_pre_hook(before(number), with_kwargs=True).remove)
                hooks.callback(block.register_forward_hook(after, with_kwargs=True).remove)
            self.loss(self.model, batch)
        if order != list(range(len(self.blocks))) or not all(isinstance(one, Tensor) for one in inputs):
            return False
        return all(given is taken for given, taken in zip(outputs, inputs[1:], strict=False))

    def _find_after_blocks(self, batch: Batch) -> frozenset[str]:
        """Names of the parameters outside the chain whose modules have not run when the first block does: the last norm, the head."""
        inside = {id(module) for block in self.blocks for module in block.modules()}
        outside = [(name, module) for name, module in self.model.named_modules() if id(module) not in inside]
        early: set[int] = set()

        def note(module: nn.Module, _: tuple[Any, ...]) -> None:
            early.update(id(one) for one in module.parameters(recurse=False))

        with ExitStack() as hooks:
            for _, module in outside:
                hooks.callback(module.register_forward_pre_hook(note).remove)
            self._run_to_first_block(batch)
        own = {id(one) for _, module in outside for one in module.parameters(recurse=False)}
        return frozenset(name for name, one in self.model.named_parameters() if id(one) in own - early)

    def _output_of(self, number: int, call: BlockCall) -> Tensor:
        output = self.blocks[number](call.hidden, *call.arguments, **call.keywords)
        return output if isinstance(output, Tensor) else output[0]

    def _block_backward(
        self, number: int, call: BlockCall, gradient: Tensor | None, sink: GradientSink, keep: Callable[[nn.Parameter], bool]
    ) -> Tensor | None:
        parameters = [one for one in self.blocks[number].parameters() if keep(one)]
        leaf = call.hidden.detach().requires_grad_()
        with _gradients_of(parameters), torch.enable_grad():
            torch.autograd.backward([self._output_of(number, BlockCall(leaf, call.arguments, call.keywords))], [gradient])
            for parameter in parameters:
                if parameter.grad is not None:
                    sink(parameter, parameter.grad)
        return leaf.grad

    def _stem_backward(self, batch: Batch, gradient: Tensor | None) -> None:
        """From the first block's input back to what made it."""
        with torch.enable_grad(), self._sparse_embeddings():
            taken = self._run_to_first_block(batch)
        if taken.requires_grad:
            torch.autograd.backward([taken], [gradient])

    @contextmanager
    def _sparse_embeddings(self) -> Iterator[None]:
        """While this holds gradients of embeddings are sparse: adding them to those of a tied head needs no second such tensor."""
        dense = [one for one in self.model.modules() if isinstance(one, nn.Embedding) and not one.sparse]
        for one in dense:
            one.sparse = True
        try:
            yield
        finally:
            for one in dense:
                one.sparse = False

    def _run_to_first_block(self, batch: Batch) -> Tensor:
        """What the first block is fed with."""
        taken: list[Tensor] = []

        def stop(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            taken.append(arguments[0])
            raise _StopHere

        handle = self.blocks[0].register_forward_pre_hook(stop)
        try:
            self.loss(self.model, batch)
        except _StopHere:
            pass
        finally:
            handle.remove()
        return taken[0]

    def _backward_whole(self, batch: Batch, sink: GradientSink, keep: Callable[[nn.Parameter], bool]) -> Tensor:
        parameters = [one for one in self.model.parameters() if keep(one)]

        def drop(parameter: nn.Parameter) -> None:
            if parameter.grad is not None:
                sink(parameter, parameter.grad)
                parameter.grad = None

        with _gradients_of(parameters), ExitStack() as hooks, torch.enable_grad():
            for parameter in parameters:
                hooks.callback(parameter.register_post_accumulate_grad_hook(drop).remove)
            losses = self.loss(self.model, batch)
            losses.mean().backward()
        return losses.detach().float().cpu()

    @contextmanager
    def _skipping(self, numbers: Sequence[int]) -> Iterator[None]:
        """The blocks of these numbers give what they got."""
        with ExitStack() as patches:
            for number in numbers:
                besides = self._besides[number]
                patches.enter_context(_forward_as(self.blocks[number], _passing_on(besides)))
            yield

    @contextmanager
    def _fed(self, number: int, hidden: Tensor) -> Iterator[None]:
        def instead(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            return (hidden, *arguments[1:])

        handle = self.blocks[number].register_forward_pre_hook(instead)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _giving(self, number: int, output: Tensor) -> Iterator[None]:
        besides = self._besides[number]
        whole: Any = output if besides is None else (output, *besides)
        with _forward_as(self.blocks[number], lambda *_, **__: whole):
            yield


def _passing_on(besides: tuple[Any, ...] | None) -> Callable[..., Any]:
    return lambda hidden, *_, **__: hidden if besides is None else (hidden, *besides)


@contextmanager
def _forward_as(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    module.forward = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]


@contextmanager
def _gradients_of(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    for parameter in parameters:
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
