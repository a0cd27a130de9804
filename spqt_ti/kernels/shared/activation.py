"""The functions between gate and up: silu, gelu, gelu's tanh form, relu and its kin, of a value or of 16 lanes."""

from spqt_ti.backend import ti


def make_activate(name: str, exp, threshold: float = 0.0, of_up: bool = False):
    """Build the ti.func `activate(gate, up)`: function `name` (as config.json has it) of gate, times up; with `of_up`
    times the function of up.

    `exp`: the engine's exponential, of what gate is; `threshold`: of fatrelu. Raises KeyError for another name.
    """

    @ti.func
    def silu(x):
        return x / (1.0 + exp(0.0 - x))

    @ti.func
    def relu(x):
        return ti.max(x, 0.0)

    @ti.func
    def relu2(x):
        """ReLU squared (arXiv 2109.08668)."""
        return ti.max(x, 0.0) * ti.max(x, 0.0)

    @ti.func
    def fatrelu(x):
        """x above the threshold, else 0 (ProSparse, arXiv 2402.13516, section 3.3)."""
        return ti.select(x > threshold, x, 0.0)

    @ti.func
    def gelu_tanh(x):
        """x (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), as x / (1 + exp(-2 u)): nothing cancels."""
        return x / (1.0 + exp((x + 0.044715 * x * x * x) * -1.5957691216057308))

    @ti.func
    def gelu(x):
        """x Phi(x) = max(x, 0) - |x| erfc(|x| / sqrt(2)) / 2: the tails do not cancel either.

        erfc by Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: error below 1.5e-7.
        """
        size = ti.max(x, 0.0 - x)
        t = 1.0 / (1.0 + 0.23164190 * size)  # 0.3275911 / sqrt(2)
        p = 1.061405429 * t - 1.453152027
        p = p * t + 1.421413741
        p = p * t - 0.284496736
        p = p * t + 0.254829592
        return ti.max(x, 0.0) - 0.5 * size * (p * t) * exp(-0.5 * size * size)

    function = {
        "silu": silu, "relu": relu, "relu2": relu2, "fatrelu": fatrelu, "gelu": gelu, "gelu_pytorch_tanh": gelu_tanh,
    }[name]  # fmt: skip

    @ti.func
    def activate(gate, up):
        factor = up
        if ti.static(of_up):
            factor = function(up)
        return function(gate) * factor

    return activate
