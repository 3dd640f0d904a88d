"""Gradient caching: the exact gradient of a large batch, with the activations of a small chunk.

A loss needs all embeddings at once, the network does not: embed chunk by chunk without a graph, take the
loss and its gradient with respect to the embeddings, then embed each chunk again, with a graph, and send its
rows of that gradient back through it. By the chain rule that is the gradient of the whole batch (Gao et al.,
Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, RepL4NLP 2021, eq. 6-8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..engine import check
from . import rows
from .replay import Buffers, RandomState, generators, random_state_kept

Model = Callable[..., Any]
Progress = Callable[[str, int, int], None]


class Scaler(Protocol):
    """What is asked of ``torch.amp.GradScaler``."""

    def scale(self, outputs: Tensor) -> Tensor: ...


def cached_step(
    model: Model | Sequence[Model],
    loss: Callable[..., Tensor],
    batch: Any,
    *,
    chunk: int,
    scaler: Scaler | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Loss of a batch and its gradients in ``.grad``, as ``loss(model(inputs), ...).backward()`` would.

    Only ``chunk`` rows at a time have activations. It costs one more forward pass, under ``no_grad``.
    Clearing gradients and stepping the optimizer remain the caller's.

        batch = images, labels
        value = fastdml.cached_step(model, loss, batch, chunk=256)      # loss(model(images), labels)

        batch = texts, images
        value = fastdml.cached_step((text_tower, image_tower), loss, batch, chunk=256)

    Args:
        model: maps inputs to embeddings: a tensor whose first dimension is the batch, or a tuple of
            such; a sequence of models is one tower each (one may occur twice). Modules rather than
            functions around them, so that DDP and running statistics are seen.
        loss: called with the embeddings of all towers, then the rest of the batch.
        batch: a tuple (or list) with the inputs of each tower, then what the loss takes beside
            embeddings, such as labels. With one tower it may be its inputs alone, if these are a tensor
            or a mapping. A tensor or a list or tuple of texts is passed as ``model(x)``, another
            tuple as ``model(*x)``, a mapping as ``model(**x)``; within these, any nesting of tensors
            whose first dimension is the batch.
        chunk: rows per pass through the network, at least 1.
        scaler: a ``GradScaler``, which scales the loss before its backward pass.
        progress: called as ``progress(what, chunks done, chunks in all)``, with "embed", then "gradient".

    Returns:
        The loss, without a graph.

    Raises:
        ValueError: an argument is out of range, or not what is described here.
    """
    towers: list[Model] = list(model) if isinstance(model, Sequence) else [model]
    inputs, rest = _split(batch, len(towers))
    with GradientCache(chunk=chunk, progress=progress) as cache:
        embeddings: list[Tensor] = []
        for tower, own in zip(towers, inputs, strict=True):
            if isinstance(own, Mapping):
                found = cache.embed(tower, **own)
            else:
                several = isinstance(own, tuple | list) and not rows.has_rows(own)
                found = cache.embed(tower, *(own if several else (own,)))
            embeddings += found if isinstance(found, tuple) else (found,)
        value = loss(*embeddings, *rest)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(f"loss: expected it to return one number, got {check.seen(value)}")
        cache.backward(value if scaler is None else scaler.scale(value))
    return value.detach()


def _split(batch: Any, towers: int) -> tuple[list[Any], list[Any]]:
    """Inputs of each tower, and what the loss takes beside their embeddings."""
    if isinstance(batch, list | tuple):
        if len(batch) < towers:
            raise ValueError(
                f"batch: expected the inputs of {towers} towers, got a tuple of {len(batch)}"
            )
        return list(batch[:towers]), list(batch[towers:])
    if towers != 1:
        raise ValueError(
            f"batch: expected a tuple with the inputs of {towers} towers, got {type(batch).__name__}"
        )
    return [batch], []


@dataclass
class _Pass:
    """One call of :meth:`GradientCache.embed`: all that its second pass needs."""

    model: Model
    arguments: tuple[dict[int, Any], dict[str, Any]]  # by place and by name
    bounds: list[tuple[int, int]]
    devices: set[torch.device]
    casts: dict[str, dict[str, Any]]
    inputs: list[tuple[Tensor, Tensor]]  # those that want a gradient, and the leaf that gathers it
    states: list[RandomState] = field(default_factory=list)
    embeddings: list[Tensor] = field(default_factory=list)
    is_tuple: bool = False

    def run(self, start: int, stop: int) -> list[Tensor]:
        args, kwargs = rows.part(self.arguments, start, stop)
        found = self.model(*args.values(), **kwargs)
        self.is_tuple = isinstance(found, tuple | list)
        outputs = list(found) if self.is_tuple else [found]
        for output in outputs:
            if not isinstance(output, Tensor):
                got = type(output).__name__
            elif output.dim() < 1 or len(output) != stop - start or not output.is_floating_point():
                got = f"{output.dtype} {tuple(output.shape)}"
            else:
                continue
            raise ValueError(
                f"model: expected embeddings of {stop - start} rows, or a tuple of such, got {got}"
            )
        return outputs


class GradientCache:
    """A context in which embeddings cost no activations; for training loops written by hand.

        with GradientCache(chunk=256) as cache:
            embeddings = cache.embed(model, images)
            value = loss(embeddings, labels)
            value.backward()
        optimizer.step()

    Leaving the context runs the second pass, which adds to ``.grad`` of the networks' parameters. Random
    states are replayed for each chunk, so that dropout is the same in both passes; buffers are taken
    back before the second pass, so that running statistics move once. Gradients reach the loss's own
    parameters, and inputs that require them, as usual. Where ``embed`` is called within
    ``torch.autocast`` both passes are, whether or not the context is left within it.
    Of a model wrapped in DDP all chunks but the last skip the synchronisation (``no_sync``).

    Batch-norm in training mode normalises each chunk by the chunk's own statistics: right gradients of
    that, which is not the network that sees the whole batch at once.

    Args:
        chunk: rows per pass through the network, at least 1.
        progress: called as ``progress(what, chunks done, chunks in all)``: "embed" in each ``embed``,
            "gradient" on leaving.

    Raises:
        ValueError: an argument is out of range; on leaving: no gradient has reached the embeddings.
    """

    def __init__(self, *, chunk: int, progress: Progress | None = None) -> None:
        self._chunk = check.whole(chunk, "chunk", 1)
        self._tell: Progress = progress or (lambda what, done, total: None)
        self._passes: list[_Pass] = []
        self._before = Buffers()
        self._open = False

    def __enter__(self) -> GradientCache:
        if self._open:
            raise ValueError("GradientCache: expected one context at a time, got a nested one")
        self._passes, self._before, self._open = [], Buffers(), True
        return self

    def embed(self, model: Model, /, *args: Any, **kwargs: Any) -> Any:
        """``model(*args, **kwargs)`` of all rows, chunk by chunk, as leaves that gather a gradient.

        Args:
            model: returns ``[rows, ...]`` embeddings, or a tuple of such. A module without a
                parameter to train (a locked tower) is embedded once and gathers nothing.
            args, kwargs: tensors whose first dimension is the batch, in any nesting of tuples, lists
                and mappings; lists and tuples of texts; what is neither is passed to every chunk.

        Raises:
            ValueError: rows are not equally many, or the model does not return as many; the model is
                inside of another that runs in DDP; its parameters have hooks that run after their
                gradients are gathered, of which every chunk would run one.
        """
        if not self._open:
            raise ValueError("GradientCache.embed: expected to be called within the context")
        given = (dict(enumerate(args)), kwargs)  # a tuple of texts would be rows
        size = rows.count(given)
        # An empty batch is one empty chunk: a rank without rows takes part in DDP's synchronisation.
        bounds = [(i, min(i + self._chunk, size)) for i in range(0, max(size, 1), self._chunk)]
        if len(bounds) > 1 or any(p.model is model for p in self._passes):
            _refuse_steps_in_backward(model)
        if len(bounds) > 1:
            _refuse_inside_ddp(model)
        devices = generators(rows.tensors(given), model)
        wanted: list[tuple[Tensor, Tensor]] = []

        def leaf(x: Tensor) -> Tensor:
            if not x.requires_grad:
                return x
            wanted.append((x, x.detach().requires_grad_()))
            return wanted[-1][1]

        arguments = rows.with_tensors(given, leaf)
        one = _Pass(model, arguments, bounds, devices, _casts(), wanted)
        locked = isinstance(model, nn.Module) and not (
            wanted or any(p.requires_grad for p in model.parameters())
        )
        if not locked:
            self._before.save(model)
        found = []
        with torch.no_grad(), _no_sync(model):
            for i, (start, stop) in enumerate(bounds):
                if not locked:
                    one.states.append(RandomState(one.devices))
                found.append(one.run(start, stop))
                self._tell("embed", i + 1, len(bounds))
        # Older versions of torch would use the casts of weights made here again, which have no graph.
        torch.clear_autocast_cache()
        outputs = [torch.cat(chunks) for chunks in zip(*found, strict=True)]
        if not locked:
            one.embeddings = [output.requires_grad_() for output in outputs]
            self._passes.append(one)
        return tuple(outputs) if one.is_tuple else outputs[0]

    def backward(self, value: Tensor) -> None:
        """``value.backward()``, outside of autocast."""
        with _without_autocast():
            value.backward()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        passes, before = self._passes, self._before
        self._passes, self._before, self._open = [], Buffers(), False
        if error is not None:
            return
        # A tower that the loss has not used has no gradient, as without caching.
        used = [p for p in passes if any(e.grad is not None for e in p.embeddings)]
        if passes and not used:
            raise ValueError(
                "GradientCache: expected backward() of a loss of the embeddings within the context, "
                "but no gradient has reached them"
            )
        after = Buffers()
        for p in passes:
            after.save(p.model)
        before.restore()
        devices = {device for p in used for device in p.devices}
        try:
            with random_state_kept(devices):
                self._second_pass(used)
        finally:
            # What the second pass has left is equal, unless a tower was passed over.
            after.restore()

    def _second_pass(self, passes: list[_Pass]) -> None:
        chunks = [(p, i) for p in passes for i in range(len(p.bounds))]
        # The last chunk of each model synchronises its gradients.
        last = {id(p.model): chunk for chunk, (p, _) in enumerate(chunks)}
        for number, (p, i) in enumerate(chunks):
            start, stop = p.bounds[i]
            with ExitStack() as stack:
                stack.enter_context(torch.enable_grad())
                if last[id(p.model)] != number:
                    stack.enter_context(_no_sync(p.model))
                p.states[i].restore()
                stack.enter_context(_autocast(p.casts))
                outputs = p.run(start, stop)
                reached = [
                    (output, e.grad[start:stop])
                    for output, e in zip(outputs, p.embeddings, strict=True)
                    if e.grad is not None and output.requires_grad
                ]
                _backward(reached)
            self._tell("gradient", number + 1, len(chunks))
        # Once, after all chunks: a graph that inputs have is freed by its backward pass.
        _backward([(x, leaf.grad) for p in passes for x, leaf in p.inputs if leaf.grad is not None])


def _backward(reached: list[tuple[Tensor, Tensor]]) -> None:
    """From tensors and their gradients, if there are any, outside of autocast."""
    if reached:
        with _without_autocast():
            torch.autograd.backward([x for x, _ in reached], [g for _, g in reached])


def _no_sync(model: Model) -> Any:
    """DDP's and FSDP's context in which backward passes gather gradients locally."""
    return model.no_sync() if hasattr(model, "no_sync") else nullcontext()


def _refuse_steps_in_backward(model: Model) -> None:
    """An optimizer in the backward pass would step after each chunk, and the next one see other weights."""
    for name, p in model.named_parameters() if isinstance(model, nn.Module) else ():
        if p.requires_grad and getattr(p, "_post_accumulate_grad_hooks", None):
            raise ValueError(
                "model: expected parameters without hooks of register_post_accumulate_grad_hook, which would "
                f"run once a chunk, got some of {name!r}; step the optimizer after the context"
            )


def _refuse_inside_ddp(model: Model) -> None:
    """DDP around more than the model would reduce the first chunk's gradients, and no others."""
    ddp = torch.nn.parallel.DistributedDataParallel
    active: Any = getattr(ddp, "_active_ddp_module", None)  # whose forward we are in
    if active is not None and active.require_backward_grad_sync and not isinstance(model, ddp):
        raise ValueError(
            "GradientCache: expected DDP around the network itself, which is called in chunks, got a "
            f"{type(model).__name__} inside of DDP around {type(active.module).__name__}"
        )


def _casts() -> dict[str, dict[str, Any]]:
    """How autocast stands, by device: arguments of ``torch.autocast``."""
    return {
        kind: {
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
            "cache_enabled": torch.is_autocast_cache_enabled(),
        }
        for kind in ("cpu", "cuda")
    }


def _autocast(casts: dict[str, dict[str, Any]]) -> ExitStack:
    """Autocast as it stood. A device where it is off, then as now, may not be there: it is left alone."""
    stack = ExitStack()
    for kind, cast in casts.items():
        if cast["enabled"] or torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, **cast))
    return stack


def _without_autocast() -> ExitStack:
    """Backward passes use the types that their forward passes chose."""
    return _autocast({kind: {**cast, "enabled": False} for kind, cast in _casts().items()})
