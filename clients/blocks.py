"""People in blocks of one shape, so that what is computed for one does not depend on who else is there.

Matrix kernels treat the rows at the end of a batch in another way, so a row's last bits depend on how many others
there are. A coordinator that chooses the weights can blow such a bit up: into another gradient, another score.
In blocks of one shape, the last one filled up with nobody, a row's bits could depend on its place alone;
`size_for` makes sure that they do not. What a kernel does in a place depends on shapes, never
on values, so trying some rows of random numbers tells.
"""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

SIZE = 128  # people in a block, where their places turn out to be alike; else 1, which has one place
PEOPLE = 50  # to try: two orders of adding up often round one row alike


def filled(size: int, *tensors: Tensor) -> list[Tensor]:
    """`tensors`, which share their first axis, with zeros up to whole blocks of `size`; nobody is one block of zeros."""
    n = len(tensors[0])
    missing = -n % size if n else size
    return [torch.cat([t, t.new_zeros(missing, *t.shape[1:])]) if missing else t for t in tensors]


def by_blocks(
    function: Callable[..., Tensor], t: Tensor, *others: Tensor | None, size: int | None = None
) -> Tensor:
    """`function(block, *others)` of each block of `size` (None: `SIZE`) of `t`, one after another."""
    return torch.cat([function(block, *others) for block in torch.split(t, size or SIZE)])


def size_for(run: Callable[[Tensor], Iterable[Tensor]], row: tuple[int, ...], dtype: torch.dtype) -> int:
    """`SIZE` where copies of a person have the same bits in every place of three blocks, for many people; else 1.

    run: x (3 x SIZE, *row) -> everything that is computed of each person, in blocks of `SIZE`.
    """
    people = torch.randn(PEOPLE, *row, generator=torch.Generator().manual_seed(0), dtype=dtype)
    for person in people:
        found = run(person.expand(3 * SIZE, *row).contiguous())
        if not all(bool((t == t[:1]).all()) for t in found):
            return 1
    return SIZE


def stirred(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy with random weights: zeros would hide a difference."""
    other = copy.deepcopy(module).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for p in other.parameters():
        p.data.normal_(generator=generator)
    return other


def logits(module: nn.Module, x: Tensor) -> Tensor:
    """The module's logits of x (n, d), (n,), each a function of its own row and the weights alone."""
    key = (str(module), tuple(x.shape[1:]))
    if key not in _tried:
        other = stirred(module, x.dtype)
        _tried[key] = size_for(lambda people: [by_blocks(other, people)], key[1], x.dtype)
    size = _tried[key]
    (whole,) = filled(size, x)
    return by_blocks(module, whole, size=size)[: len(x)]


_tried: dict[tuple[str, tuple[int, ...]], int] = {}  # (architecture, shape of a row) -> size of block
