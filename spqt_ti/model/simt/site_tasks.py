"""What a token does at each site of a layer, as parts of tasks: collect active inputs, multiply."""

from dataclasses import dataclass
from typing import Any

from spqt_ti.backend import ti
from spqt_ti.kernels.shared.geometry import LANES
from spqt_ti.kernels.simt.active_list import SEGMENT, ActiveList, Segments
from spqt_ti.kernels.simt.collect import Inputs, Rule, make_collect_segment, make_zero_inactive
from spqt_ti.kernels.simt.groups import SHARED
from spqt_ti.kernels.simt.products import Product, make_product
from spqt_ti.kernels.simt.schemes.decoder import Matrix
from spqt_ti.model.selectors import SelectorMap
from spqt_ti.model.simt.maps import FloatMap, IntegerMap
from spqt_ti.model.simt.weights import LayerSpan
from spqt_ti.model.sites import SITE_COUNT, Site

ATTEND = 512  # threads that attend with a head
_COLLECTORS = (SEGMENT, ATTEND, SEGMENT, SEGMENT)  # threads of the groups that collect a site's segment


@dataclass(frozen=True)
class SiteTasks:
    """`collect` and `multiply` are ti.funcs, see there. Lists are by site: `threads` of the product's task, in groups
    of `groups`.
    """

    collect: Any
    multiply: Any
    products: list[Product]
    segments: list[Segments]

    @property
    def threads(self) -> list[int]:
        return [product.threads for product in self.products]

    @property
    def groups(self) -> list[int]:
        return [product.group for product in self.products]


def make_site_tasks(span: LayerSpan, selectors: SelectorMap, floats: FloatMap, ints: IntegerMap) -> SiteTasks:
    """Build them for the layers of a span. `dense_up_to` of both: the threshold up to which every input is multiplied
    and none is listed; 0, or -1 for inputs of which the zeros shall be skipped in any case.
    """
    matrix_maps = [span.matrices[site.label] for site in Site]
    segments = [matrix_map.segments for matrix_map in matrix_maps]
    products = [make_product(matrix_map.shape, matrix_map.division, matrix_map.segments) for matrix_map in matrix_maps]
    multiplies = [product.multiply for product in products]
    collects = [make_collect_segment(*pair) for pair in zip(segments, _COLLECTORS, strict=True)]
    sources = (floats.x, floats.attention, floats.x, floats.activation)  # of the inputs
    needs_zeros = [product.needs_zeros for product in products]
    zero_inactive = [make_zero_inactive(*pair) for pair in zip(segments, _COLLECTORS, strict=True)]

    @ti.func
    def collect(
        values: ti.template(), x, a: ti.template(), integers: ti.template(), layer, site: ti.template(), segment, t,
        dense_up_to: ti.template(),
    ):  # fmt: skip
        """The active ones among the inputs values[x:] of a segment, unless their site is dense, and their number. For a
        matrix that is read whole, the others become zero in the f32 array, where values[x:] have been put as well.
        """
        # Not inside the condition: Taichi's SPIR-V compiler fails on shared memory that is declared there.
        shared = ti.simt.block.SharedArray((SHARED,), ti.i32)
        threshold = a[floats.selectors + layer * SITE_COUNT + site]
        if threshold > dense_up_to:  # the same for all groups
            weighted = a[floats.selectors + selectors.weighted + layer * SITE_COUNT + site] > 0.0
            weights = floats.selectors + (selectors.weights + (layer * SITE_COUNT + site) * selectors.stride) * LANES
            inputs = ti.static(Inputs(values, x))
            rule = ti.static(Rule(threshold, a, weights, weighted))
            active = ti.static(ActiveList(integers, ints.active, ints.lengths))
            collects[site](inputs, segment, rule, active, shared, t)
            if ti.static(needs_zeros[site]):
                first = sources[site] + segment * segments[site].length
                zero_inactive[site](inputs, segment, rule, ti.static(Inputs(a, first)), t)

    @ti.func
    def multiply(
        i, quants: ti.template(), headers: ti.template(), a: ti.template(), integers: ti.template(), layer,
        site: ti.template(), x, dense_up_to: ti.template(),
    ):  # fmt: skip
        quants_at = layer * span.quants_stride + (span.quants + matrix_maps[site].quants)
        headers_at = layer * span.headers_stride + (span.headers + matrix_maps[site].headers)
        matrix = ti.static(Matrix(quants, quants_at, headers, headers_at))
        active = ti.static(ActiveList(integers, ints.active, ints.lengths))
        count = multiplies[site](
            i, matrix, a, x, active, a[floats.selectors + layer * SITE_COUNT + site] > dense_up_to, floats.partial
        )
        if i == 0:
            integers[ints.counts + layer * SITE_COUNT + site] = count

    return SiteTasks(collect, multiply, products, segments)
