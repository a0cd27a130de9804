"""Orthogonal transforms of any usual size by few operations: n = K * 2^m, a Hadamard matrix of order K by Paley's
constructions (Paley, J. Math. Phys. 12, 1933) and Sylvester's butterflies for the rest.

As a matrix the transform is kron(M, S) / sqrt(n): M of order K, S of order 2^m. Where these constructions give no M, it
is the cosine transform of an odd order K: orthogonal, with entries that are sqrt(2) times as large at most.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spqt_ti.errors import QuantizationError

__all__ = ["ONLINE_RUN", "Passes", "Transform", "paley", "prime_power"]

F32Array = npt.NDArray[np.float32]
F64Array = npt.NDArray[np.float64]

ONLINE_RUN = 16  # least 2^m of a transform that kernels compute: what a vector of theirs holds

_LARGEST = 512  # order K: its product with M is a dense one
_LARGEST_ODD = 127  # of a cosine transform
_LONGEST_RUN = 1024  # that a group of GPU threads shares


@dataclass(frozen=True)
class Transform:
    """The orthogonal matrix of order `size`; equal for equal sizes. `of` finds it."""

    size: int
    order: int  # K
    construction: str  # of M: "sylvester", "paley" or "cosine"

    @classmethod
    @functools.cache
    def of(cls, size: int, least: int = 1) -> Transform:
        """The transform of the smallest K that has a Hadamard matrix here and leaves 2^m of `least` or more.
        QuantizationError for a size without.
        """
        order = size & -size
        for power in range(order.bit_length() - 1, least.bit_length() - 2, -1):
            k = size >> power
            if k == 1:
                return cls(size, 1, "sylvester")
            if k <= _LARGEST and _paley_field(k) is not None:
                return cls(size, k, "paley")
        odd = size // order
        if odd <= _LARGEST_ODD and order >= least:
            return cls(size, odd, "cosine")
        raise QuantizationError(
            f"{size} = {order} * {odd} has no Hadamard transform here: none of {odd} times a power of two is an order "
            f"up to {_LARGEST} that Paley's constructions make"
            f"{f' and leaves a power of two of {least} or more' if least > 1 else ''}; leave out this rotation"
        )

    def apply(self, x: F64Array) -> F64Array:
        """x @ Q of x f64 [..., size]: a new array."""
        k, rest = self.order, self.size // self.order
        y = x.reshape(-1, k, rest)
        width = 1
        while width < rest:
            pairs = y.reshape(-1, 2, width)
            y = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
            width *= 2
        y = y.reshape(-1, k, rest) / np.sqrt(rest)
        if k > 1:
            y = np.matmul(self.factor().T, y)
        return y.reshape(x.shape)

    def factor(self) -> F64Array:
        """M / sqrt(K), f64 [K, K], orthogonal."""
        return _cosine(self.order) if self.construction == "cosine" else paley(self.order) / np.sqrt(self.order)

    def __str__(self) -> str:
        return f"{self.construction} {self.order} * {self.size // self.order}"


@dataclass(frozen=True)
class Passes:
    """A transform as kernels compute it: Sylvester's of each of `order` runs of `run` values, unscaled, then across the
    runs with `factor`, which has the scale.
    """

    transform: Transform
    order: int
    run: int  # a power of two

    @classmethod
    @functools.cache
    def of(cls, transform: Transform) -> Passes:
        """With the longest runs, of at most 1024 values."""
        run = min(transform.size // transform.order, _LONGEST_RUN)
        return cls(transform, transform.size // run, run)

    def factor(self) -> F32Array:
        """f32 [order, order]: run k of the result is the sum over j of factor[k, j] times run j."""
        rest = self.order // self.transform.order
        sylvester = Transform.of(rest).apply(np.eye(rest))
        return (np.kron(self.transform.factor(), sylvester).T / np.sqrt(self.run)).astype(np.float32)


@functools.cache
def paley(order: int) -> F64Array:
    """A Hadamard matrix f64 [order, order] (+1 and -1, rows orthogonal) by the first or the second construction.

    ValueError for an order that neither makes; 1 and 2 are Sylvester's.
    """
    if order <= 2:
        return np.array([[1.0, 1.0], [1.0, -1.0]])[:order, :order]
    field = _paley_field(order)
    if field is None:
        raise ValueError(f"Paley's constructions make no Hadamard matrix of order {order}")
    p, k = field
    q = p**k
    bordered = np.ones((q + 1, q + 1))
    bordered[0, 0] = 0
    bordered[1:, 1:] = _jacobsthal(p, k)
    if q % 4 == 3:  # the first: I + S, S skew
        bordered[1:, 0] = -1
        return np.eye(q + 1) + bordered
    # The second: 0 becomes [[1, -1], [-1, -1]], and +-1 becomes +-[[1, 1], [1, -1]].
    return np.kron(bordered, [[1, 1], [1, -1]]) + np.kron(np.eye(q + 1), [[1, -1], [-1, -1]])


def prime_power(n: int) -> tuple[int, int] | None:
    """(p, k) with n = p^k and p a prime, None where there are none."""
    p = next((d for d in range(2, int(n**0.5) + 1) if n % d == 0), n)
    k = 0
    while n > 1 and n % p == 0:
        n, k = n // p, k + 1
    return (p, k) if n == 1 and k else None


def _paley_field(order: int) -> tuple[int, int] | None:
    """The finite field of order p^k from which Paley makes a Hadamard matrix of this order."""
    for q, remainder in ((order - 1, 3), (order // 2 - 1, 1)):
        if order % 4 == 0 and q % 4 == remainder and q > 1:
            field = prime_power(q)
            if field is not None and field[1] <= 3:
                return field
    return None


def _jacobsthal(p: int, k: int) -> F64Array:
    """f64 [q, q] of the field of q = p^k elements: 1 where a - b is a square, -1 where it is none, 0 where it is 0."""
    elements = np.array(list(itertools.product(range(p), repeat=k)))  # polynomials' coefficients, lowest last
    modulus = _irreducible(p, k)
    weights = p ** np.arange(k - 1, -1, -1)
    character = np.full(p**k, -1.0)
    for element in elements[1:]:
        character[int(weights @ _square(element, modulus, p))] = 1
    character[0] = 0
    differences = (elements[:, None] - elements[None]) % p @ weights
    return character[differences]


def _square(element: npt.NDArray[np.int64], modulus: npt.NDArray[np.int64], p: int) -> npt.NDArray[np.int64]:
    """The square of a polynomial, modulo `modulus` (monic) and p."""
    product = np.convolve(element, element) % p
    k = len(element)
    for i in range(len(product) - k):
        product[i : i + k + 1] = (product[i : i + k + 1] - product[i] * modulus) % p
    return product[-k:]


def _irreducible(p: int, k: int) -> npt.NDArray[np.int64]:
    """Coefficients [k + 1], highest first, of a monic polynomial without roots modulo p: irreducible for k up to 3."""
    if k == 1:
        return np.array([1, 0])
    for rest in itertools.product(range(p), repeat=k):
        if all(np.polyval((1, *rest), x) % p for x in range(p)):
            return np.array([1, *rest])
    raise ValueError(f"no irreducible polynomial of degree {k} modulo {p}")


@functools.cache
def _cosine(order: int) -> F64Array:
    """The orthogonal cosine transform (DCT-II), f64 [order, order]."""
    i, j = np.arange(order)[:, None], np.arange(order)
    matrix = np.cos(np.pi * (j + 0.5) * i / order) * np.sqrt(2 / order)
    matrix[0] /= np.sqrt(2)
    return matrix
