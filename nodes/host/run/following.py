"""Whether what a step returns still has PAG's part in it.

Functions of other nodes after CFG, and guiders, may put something else in the place of the prediction that they are
given. So, in some of the steps in which PAG acts, its result is followed through all operations after it: what is
computed from it has PAG's part. Where it leaves torch, for numpy or as a number, nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves

_LEAVING = ("numpy", "tolist", "data_ptr", "__array__", "__dlpack__", "__deepcopy__")
_SHAPE_ONLY = ("_like", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros")

_current: ContextVar[Following | None] = ContextVar("current", default=None)


class Following:
    """Of one step.

    Attributes:
        is_lost: whether something left torch, so that nothing is known of what comes back.
        dropper: the function that returned something without PAG's part.
    """

    def __init__(self) -> None:
        self.is_lost = False
        self.dropper: Callable | None = None
        self._storages: set[StorageWeakRef] = set()  # weak, so that nothing stays longer in memory
        self._modes = _Operations(self), _Methods(self)

    @property
    def has_begun(self) -> bool:
        """Whether PAG has returned a result."""
        return self.is_lost or bool(self._storages)

    def has(self, tensor: torch.Tensor) -> bool:
        """Whether PAG's part is, or may be, in a tensor."""
        storage = None if self.is_lost else _storage(tensor)
        return storage is None or storage in self._storages

    def add(self, tensor: torch.Tensor) -> None:
        """PAG's part is in this tensor."""
        storage = _storage(tensor)
        if storage is None:
            self.is_lost = True
        else:
            self._storages.add(storage)

    def among(self, values) -> list[torch.Tensor]:
        """The tensors with PAG's part in the arguments of a call."""
        return [value for value in tree_leaves(values)
                if isinstance(value, torch.Tensor) and value.layout is torch.strided and self.has(value)]

    def watched(self, functions: list[Callable]) -> list[Callable]:
        """These post-CFG functions, and after each one of ours that looks at what it has returned."""
        return [one for function in functions for one in (function, self._look_after(function))]

    def _look_after(self, function: Callable) -> Callable[[dict], torch.Tensor]:
        def look(args: dict) -> torch.Tensor:
            if self.dropper is None and self.has_begun and not self.has(args["denoised"]):
                self.dropper = function
            return args["denoised"]
        return look

    @contextmanager
    def running(self) -> Iterator[None]:
        """For the rest of the step."""
        before = _current.set(self)
        try:
            with ExitStack() as stack:
                for mode in self._modes:
                    stack.enter_context(mode)
                yield
        finally:
            _current.reset(before)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For calls of the model, which may be compiled."""
        operations, methods = self._modes
        if _get_current_dispatch_mode() is not operations or _get_current_function_mode() is not methods:
            yield  # another one was entered since
            return
        before = _current.set(None)
        methods.__exit__(None, None, None)
        operations.__exit__(None, None, None)
        try:
            yield
        finally:
            operations.__enter__()
            methods.__enter__()
            _current.reset(before)


def _storage(tensor: torch.Tensor) -> StorageWeakRef | None:
    """None where a tensor has none, as sparse ones and those inside torch.func's transformations."""
    if tensor.layout is not torch.strided:
        return None
    try:
        return StorageWeakRef(tensor.untyped_storage())
    except NotImplementedError:
        return None


def begun(is_wanted: bool) -> Following | None:
    """A new one, if it is wanted; of several PAGs that act in a step, the first node's alone follows it."""
    return Following() if is_wanted and _current.get() is None else None


def follow(result: torch.Tensor) -> torch.Tensor:
    """The same tensor, which has PAG's part in it."""
    if following := _current.get():
        following.add(result)
    return result


@contextmanager
def unfollowed() -> Iterator[None]:
    """For calls of the model."""
    following = _current.get()
    if following is None:
        yield
        return
    with following.paused():
        yield


class _Operations(TorchDispatchMode):
    """What is computed from a tensor that is followed is followed, too."""

    supports_higher_order_operators = True

    def __init__(self, following: Following) -> None:
        super().__init__()
        self.following = following

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        name = func.__name__.partition(".")[0]
        if not name.endswith(_SHAPE_ONLY) and self.following.among((args, kwargs)):
            # Those without a result change what they are given.
            for result in tree_leaves(args if found is None else found):
                if isinstance(result, torch.Tensor):
                    self.following.add(result)
                elif found is not None and isinstance(result, (int, float, complex)) and not isinstance(result, bool):
                    self.following.is_lost = True
        return found


class _Methods(TorchFunctionMode):
    """Where a tensor that is followed leaves torch, which no operation tells."""

    def __init__(self, following: Following) -> None:
        super().__init__()
        self.following = following

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in _LEAVING and self.following.among((args, kwargs)):
            self.following.is_lost = True
        return func(*args, **(kwargs or {}))
