"""The C kernels of pure training beside the reference in PyTorch: integers and exact sums agree bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from onebit.engine.training import training_library
from onebit.errors import EngineError
from onebit.nn import pure_kernels, torch_pure
from onebit.nn.pure_storage import pack_codes, pack_counters, packed_width
from onebit.optim.pure_deposit import Factors, update_moments
from onebit.quant.counters import Counter, counter_named

from .pure_models import pure_model, train

try:
    from onebit.nn import c_pure
except EngineError as error:
    pytest.skip(str(error), allow_module_level=True)

# The instruction set is the same for all examples of a test.
SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
COUNTERS = ("int8", "int4", "none")
DTYPES = (torch.float32, torch.bfloat16)
rows_ = st.integers(1, 9)
# Widths around a byte's codes, a random block, vectors, and the 512 columns that the kernels take at once.
cols_ = st.one_of(st.integers(1, 70), st.sampled_from([127, 255, 511, 512, 513, 1100]))
seeds_ = st.integers(0, 2**32 - 1)


def gradient(rows: int, cols: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(rows, 1, generator=generator) * torch.rand(1, cols, generator=generator)
    return (torch.randn(rows, cols, generator=generator) * sizes * 1e-4).to(dtype)


def factors_of(g_OI: Tensor) -> Factors:
    rows, cols = g_OI.shape
    peak = g_OI.abs().amax().float()
    sums = torch_pure.square_sums(g_OI, peak, rows)
    return update_moments((torch.zeros(rows), torch.zeros(cols)), sums, peak, torch.tensor(1))


def stored_counters(rows: int, cols: int, counter: Counter, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    bound = counter.bound
    counts = torch.randint(-bound, bound + 1, (rows, cols), generator=generator, dtype=torch.int8)
    return pack_counters(counts, counter).clone()


def stored_codes(rows: int, cols: int, seed: int, *, is_binary: bool) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0 if is_binary else -1, 2, (rows, cols), generator=generator, dtype=torch.int8)
    return pack_codes(codes * 2 - 1 if is_binary else codes, is_binary=is_binary)


@pytest.fixture(params=["avx512", "avx2", "baseline"], autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs on each instruction set of this processor."""
    library = training_library()
    if not library.ob_train_choose(request.param.encode()):
        pytest.skip(f"this processor has no {request.param}")
    yield c_pure.instruction_set()
    library.ob_train_choose(None)


def test_the_instruction_set_is_the_chosen_one(isa: str, request: pytest.FixtureRequest) -> None:
    assert isa in request.node.name


@settings(SETTINGS, max_examples=60)
@given(rows_, cols_, seeds_, st.sampled_from(DTYPES))
def test_sums(rows: int, cols: int, seed: int, dtype: torch.dtype) -> None:
    g = gradient(rows, cols, seed, dtype)
    peak = g.abs().amax().float()
    for got, expected in zip(c_pure.square_sums(g, peak, 64), torch_pure.square_sums(g, peak, 64), strict=True):
        assert torch.equal(got, expected)
    factors = factors_of(g)
    assert torch.equal(c_pure.update_energy(g, factors), torch_pure.update_energy(g, factors))


@settings(SETTINGS, max_examples=30)
@given(rows_, cols_, seeds_, st.sampled_from(DTYPES), st.sampled_from([None, 3e38, float("inf"), float("nan")]))
def test_the_largest_number(rows: int, cols: int, seed: int, dtype: torch.dtype, odd: float | None) -> None:
    g = gradient(rows, cols, seed, dtype)
    if odd is not None:
        g[seed % rows, seed % cols] = -odd
    assert torch.equal(c_pure.peak_of(g).nan_to_num(-1.0), torch_pure.peak_of(g).nan_to_num(-1.0))


@pytest.mark.parametrize("peak", [0.0, 1.0, 2.0**-140, 3e38, float("inf"), float("nan")])
def test_moments_and_factors(peak: float) -> None:
    rows, cols = 150, 210
    sizes = torch.rand(2 * (rows + cols), generator=torch.Generator().manual_seed(1))
    old = sizes[:rows], sizes[rows : rows + cols] * 1e-9
    sums = sizes[rows + cols :].double().split((rows, cols))
    sums[0][3] = sums[1][4] = old[0][3] = old[1][4] = 0.0  # below the floor
    for count in (1, 1000):
        moments, expected_moments = ((old[0].clone(), old[1].clone()) for _ in range(2))
        got, expected = (
            kernels.update_moments(kept, sums, torch.tensor(peak), torch.tensor(count))
            for kernels, kept in ((c_pure, moments), (torch_pure, expected_moments))
        )
        for ours, wanted in zip(moments, expected_moments, strict=True):
            assert torch.equal(ours, wanted)
        assert got.is_finite == expected.is_finite == (peak < 1e19)
        # float64 is added up in another order, which may move float32's last place
        for ours, wanted in ((got.row_O1, expected.row_O1), (got.column_I, expected.column_I)):
            torch.testing.assert_close(ours, wanted, rtol=2.0**-23, atol=0.0)


@settings(SETTINGS, max_examples=80)
@given(
    rows_, cols_, seeds_, st.sampled_from(DTYPES), st.sampled_from(COUNTERS), st.sampled_from([0.01, 1.0]),
    st.integers(1, 2**40), st.sampled_from([None, float("nan"), 1e30]),
)  # fmt: skip
def test_a_whole_deposit_is_its_steps(
    rows: int, cols: int, seed: int, dtype: torch.dtype, name: str, eta: float, step: int, odd: float | None
) -> None:
    counter, g = counter_named(name), gradient(rows, cols, seed, dtype)
    if odd is not None:
        g[seed % rows, seed % cols] = odd
    stored, moments = stored_counters(rows, cols, counter, seed), (torch.rand(rows) * 1e-9, torch.rand(cols) * 1e-9)
    expected, expected_moments = stored.clone(), (moments[0].clone(), moments[1].clone())
    random = {"seed": seed, "tensor": 2**32 - 1 - seed, "step": torch.tensor(step - 1)}
    assert c_pure.deposit_whole(stored, moments, g, eta, counter, **random)
    assert random["step"] == step, "the deposit is counted"
    peak = c_pure.peak_of(g)
    sums = torch_pure.square_sums(g, peak, rows)
    factors = c_pure.update_moments(expected_moments, sums, peak, random["step"])
    mean_square = torch_pure.update_energy(g, factors) / g.numel()
    torch_pure.deposit(expected, g, factors, eta, mean_square, counter, **random)
    assert torch.equal(stored, expected)
    assert all(torch.equal(got, wanted) for got, wanted in zip(moments, expected_moments, strict=True))


@settings(SETTINGS, max_examples=150)
@given(
    rows_, cols_, seeds_, st.sampled_from(DTYPES), st.sampled_from(COUNTERS), st.sampled_from([0.3, 1.7]),
    st.sampled_from([0.01, 1.0, 1e9]), st.integers(0, 2**40), st.integers(0, 2**20),
)  # fmt: skip
def test_deposits(
    rows: int, cols: int, seed: int, dtype: torch.dtype, name: str, mean: float, eta: float, step: int, first_row: int
) -> None:
    counter, g = counter_named(name), gradient(rows, cols, seed, dtype)
    stored = stored_counters(rows, cols, counter, seed)
    expected, before = stored.clone(), stored._version
    for kernels, counters in ((torch_pure, expected), (c_pure, stored)):
        kernels.deposit(
            counters, g, factors_of(g), eta, torch.tensor(mean).double(), counter,
            seed=seed, tensor=2**32 - 1 - seed, step=torch.tensor(step), first_row=first_row,
        )  # fmt: skip
    assert torch.equal(stored, expected)
    assert stored._version > before


@settings(SETTINGS, max_examples=100)
@given(rows_, cols_, seeds_, st.sampled_from(COUNTERS), st.booleans())
def test_fire(rows: int, cols: int, seed: int, name: str, is_binary: bool) -> None:
    counter = counter_named(name)
    counters, codes = stored_counters(rows, cols, counter, seed), stored_codes(rows, cols, seed, is_binary=is_binary)
    expected_counters, expected_codes = counters.clone(), codes.clone()
    expected = torch_pure.fire([(expected_codes, expected_counters, cols)], counter, is_binary=is_binary)
    before = codes._version
    assert torch.equal(c_pure.fire([(codes, counters, cols)], counter, is_binary=is_binary), expected)
    assert torch.equal(codes, expected_codes)
    assert torch.equal(counters, expected_counters)
    assert codes._version > before


@settings(SETTINGS, max_examples=60)
@given(rows_, cols_, seeds_, st.booleans(), st.sampled_from([*DTYPES, torch.int8, torch.float64]))
def test_codes_as_numbers(rows: int, cols: int, seed: int, is_binary: bool, dtype: torch.dtype) -> None:
    codes = stored_codes(rows, cols, seed, is_binary=is_binary)
    expected = torch_pure.unpack(codes, cols, dtype, is_binary=is_binary)
    got = c_pure.unpack(codes, cols, dtype, is_binary=is_binary)
    assert got.dtype == dtype
    assert torch.equal(got, expected)


@settings(SETTINGS, max_examples=60)
@given(rows_, cols_, seeds_, st.booleans(), st.sampled_from([None, 0, 1, 7, 64, 1000]), st.sampled_from(DTYPES))
def test_the_gradient_of_a_scale(
    rows: int, cols: int, seed: int, is_binary: bool, group: int | None, dtype: torch.dtype
) -> None:
    """group: None for one scale of the matrix, 0 for one of each row."""
    g, codes = gradient(rows, cols, seed, dtype), stored_codes(rows, cols, seed, is_binary=is_binary)
    groups = -(-cols // (group or cols))
    shape = () if group is None else (rows, groups) if group else (rows,)
    scale = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    got = c_pure.scale_gradient(g, codes, scale, group or 0, is_binary=is_binary)
    scales = scale.double().expand(rows, 1) if scale.ndim == 0 else scale.double().view(rows, -1)
    w = torch_pure.unpack(codes, cols, torch.float64, is_binary=is_binary)
    products = g.double() * w * scales.repeat_interleave(group or cols, dim=1)[:, :cols]
    along = (0, 1) if scale.ndim == 0 else 1
    # float32 sums of up to 1100 terms, 16 at a time, then those of groups or rows: each error at most so many roundings
    # of the sum of sizes
    error = (got.double() - products.sum(along)).abs()
    roundings = 70 + 2 + (rows if scale.ndim == 0 else groups)
    assert bool((error <= products.abs().sum(along) * roundings * 2.0**-24).all())


@settings(SETTINGS, max_examples=40)
@given(rows_, cols_, seeds_, st.booleans(), st.integers(1, 40), st.sampled_from(DTYPES))
def test_products(rows: int, cols: int, seed: int, is_binary: bool, tokens: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = stored_codes(rows, cols, seed, is_binary=is_binary)
    numbers = torch_pure.unpack(codes, cols, torch.int64, is_binary=is_binary)
    x = torch.randint(-127, 128, (tokens, cols), generator=generator, dtype=torch.int8)
    expected = (x.long() @ numbers.t()).to(dtype)  # rounded once
    assert torch.equal(c_pure.forward_product(x, codes, dtype, is_binary=is_binary), expected)
    g = torch.randn(2, tokens, rows, generator=generator)
    got = c_pure.input_gradient(g, codes, cols, is_binary=is_binary)
    torch.testing.assert_close(got, (g.double() @ numbers.double()).float(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_an_input_gradient_in_blocks(dtype: torch.dtype, has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_pure, "_BLOCK", 300)  # four rows and a rest
    monkeypatch.setattr(c_pure, "_HAS_BFLOAT16_PRODUCT", has_bfloat16)
    codes = stored_codes(9, 70, 0, is_binary=False)
    g = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    got = c_pure.input_gradient(g, codes, 70, is_binary=False)
    assert (got.dtype, got.shape) == (dtype, (2, 5, 70))
    exact = g.double() @ torch_pure.unpack(codes, 70, torch.float64, is_binary=False)
    torch.testing.assert_close(got.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_a_processor_with_an_int8_product_of_its_own_multiplies_with_that(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = stored_codes(33, 70, 0, is_binary=False)
    x = torch.randint(-127, 128, (2, 5, 70), dtype=torch.int8)
    expected = c_pure.forward_product(x, codes, torch.float32, is_binary=False)
    monkeypatch.setattr(c_pure, "HAS_INT8_PRODUCT", True)
    assert torch.equal(c_pure.forward_product(x, codes, torch.float32, is_binary=False), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", COUNTERS)
def test_a_gradient_that_is_no_number_changes_nothing(bad: float, name: str) -> None:
    counter, g = counter_named(name), gradient(5, 600, 0)
    g[3, 599] = bad
    stored = stored_counters(5, 600, counter, 0)
    before = stored.clone()
    rule = (torch.tensor(1.0), torch.tensor(1.0).double(), counter)
    c_pure.deposit(stored, g, factors_of(g), *rule, seed=0, tensor=0, step=torch.tensor(1))
    assert torch.equal(stored, before)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads: int) -> None:
    rows, cols, counter = 301, 517, counter_named("int4")
    g, stored = gradient(rows, cols, 1), stored_counters(rows, cols, counter, 1)
    codes, peak, factors = stored_codes(rows, cols, 1, is_binary=False), g.abs().amax(), factors_of(g)
    rule = (g, factors, 0.4, torch.tensor(1.0).double(), counter)
    random = {"seed": 1, "tensor": 2, "step": torch.tensor(3)}
    expected, expected_codes = stored.clone(), codes.clone()
    torch_pure.deposit(expected, *rule, **random)
    expected_moves = torch_pure.fire([(expected_codes, expected, cols)], counter, is_binary=False)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for got, sums in zip(c_pure.square_sums(g, peak, rows), torch_pure.square_sums(g, peak, rows), strict=True):
            assert torch.equal(got, sums)
        assert torch.equal(c_pure.update_energy(g, factors), torch_pure.update_energy(g, factors))
        x = torch.randint(-128, 128, (40, cols), dtype=torch.int8)
        assert torch.equal(
            c_pure.forward_product(x, codes, torch.float32, is_binary=False),
            torch_pure.forward_product(x, codes, torch.float32, is_binary=False),
        )
        c_pure.deposit(stored, *rule, **random)
        assert torch.equal(c_pure.fire([(codes, stored, cols)], counter, is_binary=False), expected_moves)
        assert torch.equal(
            c_pure.unpack(codes, cols, torch.float32, is_binary=False),
            torch_pure.unpack(expected_codes, cols, torch.float32, is_binary=False),
        )
    finally:
        torch.set_num_threads(before)
    assert torch.equal(stored, expected)
    assert torch.equal(codes, expected_codes)


@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize("quantizer", ["absmean", "binary"])
def test_a_model_trains_to_the_same_codes_and_counters(
    counter: str, quantizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    for kernels in (torch_pure, c_pure):
        monkeypatch.setattr(pure_kernels, "kernels_on", lambda _, kernels=kernels: kernels)
        model = pure_model(counter=counter, quantizer=quantizer)
        train(model, 1, gradient_accumulation_steps=1)
        states.append(model.state_dict())
    reference, ours = states
    for name, value in reference.items():
        if name.endswith(("codes", "counters", "moments")):
            assert torch.equal(value, ours[name]), name


def test_packed_rows_are_whole_bytes() -> None:
    assert [packed_width(9, bits) for bits in (1, 2, 4, 8)] == [2, 3, 5, 9]
