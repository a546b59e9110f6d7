"""The fused sparse head against the plain formula on the whole logits tensor."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lsr import sparse_head
from lsr.errors import InputError
from lsr.sparse_head import ACTIVATIONS, fused_sparse_head, winning_logits

CASES = [*itertools.product(["max", "sum"], ACTIVATIONS, [False]), *(("max", act, True) for act in ACTIVATIONS)]


def plain_head(
    states: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, pooling: str, activation: str,
    importance: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Everything at once: (texts, length, vocabulary)."""
    acts = {
        "log1p": lambda x: (1 + x.relu()).log(),
        "log1p_log1p": lambda x: (1 + (1 + x.relu()).log()).log(),
        "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    }
    logits = states @ weight.T if bias is None else states @ weight.T + bias
    weights = acts[activation](logits) * mask[:, :, None]
    if importance is not None:
        weights = weights * importance[:, :, None]
    return weights.amax(1) if pooling == "max" else weights.sum(1)


def inputs(
    texts: int = 3, length: int = 7, hidden: int = 5, vocabulary: int = 600, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    lengths = torch.randint(1, length + 1, (texts,))
    return {
        "states": torch.randn(texts, length, hidden, dtype=dtype),
        "mask": (torch.arange(length)[None] < lengths[:, None]).long(),
        "weight": torch.randn(vocabulary, hidden, dtype=dtype),
        "bias": torch.randn(vocabulary, dtype=dtype),
        "importance": torch.rand(texts, length, dtype=dtype) + 0.1,
    }


def leaves(given: dict[str, Tensor], importance: bool) -> dict[str, Tensor | None]:
    copies = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in given.items()}
    return copies if importance else {**copies, "importance": None}


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of the vocabulary, and several steps of the backward pass."""
    monkeypatch.setitem(sparse_head.BLOCK_ELEMENTS, "cpu", 1)
    monkeypatch.setattr(sparse_head, "PAIRS", 700)


@pytest.mark.parametrize(("pooling", "activation", "importance"), CASES)
@pytest.mark.usefixtures("small_blocks")
def test_values_and_gradients_are_those_of_the_plain_formula(pooling, activation, importance):
    fused, plain = leaves(inputs(), importance), leaves(inputs(), importance)
    ours = fused_sparse_head(**fused, pooling=pooling, activation=activation)
    theirs = plain_head(**plain, pooling=pooling, activation=activation)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(theirs)
    ours.backward(upstream)
    theirs.backward(upstream)
    for name, leaf in fused.items():
        if leaf is not None and leaf.is_floating_point():
            torch.testing.assert_close(leaf.grad, plain[name].grad, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("pooling", "activation", "importance"), CASES)
def test_gradcheck(pooling, activation, importance):
    given = leaves(inputs(texts=2, length=3, hidden=2, vocabulary=4), importance)
    mask = given.pop("mask")
    names = [name for name, leaf in given.items() if leaf is not None]

    def head(*values):
        named = dict.fromkeys(given) | dict(zip(names, values, strict=True))
        return fused_sparse_head(mask=mask, pooling=pooling, activation=activation, **named)

    assert torch.autograd.gradcheck(head, [given[name] for name in names])


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_shape_and_any_mask(data):
    """Holes in the mask, texts without a token, one term, a bias or none: values and gradients."""
    texts, length, hidden = (data.draw(st.integers(1, 4)) for _ in range(3))
    vocabulary = data.draw(st.sampled_from([1, 3, 300]))
    pooling, activation, _ = data.draw(st.sampled_from(CASES))
    mask = torch.tensor(data.draw(st.lists(st.lists(st.integers(0, 1), min_size=length, max_size=length),
                                           min_size=texts, max_size=texts)))  # fmt: skip
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    tensors = [torch.randn(texts, length, hidden, dtype=torch.float64), torch.randn(vocabulary, hidden).double()]
    bias = torch.randn(vocabulary).double() if data.draw(st.booleans()) else None
    upstream = torch.randn(texts, vocabulary).double()
    grads = []
    for head in (fused_sparse_head, plain_head):
        states, weight = (tensor.clone().requires_grad_() for tensor in tensors)
        pooled = head(states, mask, weight, bias, pooling=pooling, activation=activation)
        pooled.backward(upstream)
        grads.append((pooled.detach(), states.grad, weight.grad))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_padding_changes_nothing_whatever_stands_there(pooling, activation):
    """softplus(0) is 0.69: masked before the activation, every padding token would add that."""
    given = inputs(length=4)
    given["mask"] = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    wide = {**given, "importance": None}
    expected = fused_sparse_head(**wide, pooling=pooling, activation=activation)
    for filler in (0.0, 1e6, -1e6, torch.nan):
        padded = torch.where(given["mask"].bool()[:, :, None], given["states"], filler).requires_grad_()
        pooled = fused_sparse_head(**(wide | {"states": padded}), pooling=pooling, activation=activation)
        assert torch.equal(pooled, expected)
        (gradient,) = torch.autograd.grad(pooled.sum(), padded)
        assert (gradient[given["mask"] == 0] == 0).all()
        assert gradient.isfinite().all()


def test_the_gradient_of_a_tie_goes_to_the_first_token():
    states = torch.ones(1, 3, 2, requires_grad=True)
    weight = torch.ones(300, 2, requires_grad=True)
    mask = torch.tensor([[0, 1, 1]])
    fused_sparse_head(states, mask, weight, None).sum().backward()
    assert states.grad[0, 0].tolist() == states.grad[0, 2].tolist() == [0, 0]
    torch.testing.assert_close(states.grad[0, 1], torch.full((2,), 300 / 3), rtol=1e-5, atol=0)  # d log(1 + 2) = 1/3
    torch.testing.assert_close(weight.grad, torch.full_like(weight, 1 / 3))


def test_texts_without_tokens_get_zeros_and_no_gradient():
    given = inputs() | {"mask": torch.zeros(3, 7, dtype=torch.long), "importance": None}
    states = given["states"].requires_grad_()
    pooled = fused_sparse_head(**given)
    assert pooled.shape == (3, 600)
    assert not pooled.any()
    pooled.sum().backward()
    assert not states.grad.any()


def test_nan_is_not_hidden():
    given = inputs() | {"importance": None}
    given["states"][1, 0] = torch.nan
    pooled = fused_sparse_head(**given)
    assert pooled[1].isnan().all()
    assert pooled[[0, 2]].isfinite().all()


@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_under_autocast_factors_are_bfloat16_and_sums_float32(pooling):
    given = inputs(hidden=64, dtype=torch.float32) | {"importance": None}
    states, weight, bias = (given[name].requires_grad_() for name in ("states", "weight", "bias"))
    with torch.autocast("cpu", torch.bfloat16):
        pooled = fused_sparse_head(**given, pooling=pooling)
    assert pooled.dtype == torch.float32
    pooled.square().sum().backward()
    assert {states.grad.dtype, weight.grad.dtype, bias.grad.dtype} == {torch.float32}
    rounded = {k: v.detach().bfloat16().float().requires_grad_() for k, v in given.items() if k in ("states", "weight")}
    plain = plain_head(**(given | rounded | {"bias": bias.detach()}), pooling=pooling, activation="log1p")
    torch.testing.assert_close(pooled, plain, rtol=1e-5, atol=1e-5)  # products of bfloat16 are exact in float32
    plain.square().sum().backward()
    for leaf, expected in ((weight, rounded["weight"].grad), (states, rounded["states"].grad)):
        assert (leaf.grad - expected).norm() < 0.005 * expected.norm()


@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_bfloat16_weights_get_bfloat16_gradients(pooling):
    given = inputs(dtype=torch.bfloat16) | {"importance": None}
    states, weight = given["states"].requires_grad_(), given["weight"].requires_grad_()
    pooled = fused_sparse_head(**given, pooling=pooling)
    assert pooled.dtype == torch.float32
    pooled.sum().backward()
    assert states.grad.dtype == weight.grad.dtype == torch.bfloat16
    assert states.grad.any()


@pytest.mark.parametrize("pooling", ["max", "sum"])
@pytest.mark.parametrize("train", [False, True])
def test_the_logits_never_exist(monkeypatch, pooling, train):
    """The widest tensor that any operation makes, forward and backward, is far below texts × length × vocabulary."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        widest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            for tensor in made if isinstance(made, tuple) else (made,):
                if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                    self.widest = max(self.widest, tensor.numel())
            return made

    monkeypatch.setitem(sparse_head.BLOCK_ELEMENTS, "cpu", 256 * 4 * 50)
    states, mask = torch.randn(4, 50, 8, requires_grad=train), torch.ones(4, 50)
    weight = torch.randn(20_000, 8, requires_grad=train)
    with Watch() as watch:
        pooled = fused_sparse_head(states, mask, weight, None, pooling=pooling)
        if train:
            pooled.sum().backward()
    assert watch.widest <= 20_000 * 8 < 4 * 50 * 20_000 / 20


def test_sparse_and_dense_gradients_need_no_weights_they_do_not_want():
    given = inputs() | {"importance": None}
    weight = given["weight"].requires_grad_()
    fused_sparse_head(**given).sum().backward()
    assert weight.grad.any()
    states = given["states"].requires_grad_()
    fused_sparse_head(**(given | {"weight": weight.detach()})).sum().backward()
    assert states.grad.any()


def test_wrong_options_are_refused():
    given = inputs()
    with pytest.raises(InputError, match="choose pooling from max, sum and activation from log1p"):
        fused_sparse_head(**given, pooling="mean")
    with pytest.raises(InputError, match="an importance per token goes with max pooling only"):
        fused_sparse_head(**given, pooling="sum")


# --- on a GPU ----------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="the Triton kernel needs a CUDA device")


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("texts", "length", "hidden", "vocabulary"), [(1, 1, 16, 1), (5, 70, 40, 1_000),
                                                                       (9, 300, 384, 3_001)])  # fmt: skip
def test_the_triton_kernel_finds_what_torch_finds(dtype, texts, length, hidden, vocabulary):
    from lsr import sparse_head_triton

    given = inputs(texts, length, hidden, vocabulary, torch.float32)
    kept = given["mask"].bool()
    kept[-1, :] = texts == 1  # a text without tokens
    offsets = torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0)).cuda()
    states, weight = given["states"][kept].to("cuda", dtype), given["weight"].to("cuda", dtype)
    for bias in (None, given["bias"].cuda()):
        logits, winners = sparse_head_triton.winning_logits(states, weight, bias, offsets, True)
        exact = winning_logits(states.double(), weight.double(), None if bias is None else bias.double(), offsets)
        torch.testing.assert_close(logits.double(), exact[0], rtol=1e-4, atol=1e-3)
        assert logits.dtype == torch.float32
        full = states.double() @ weight.double().T + (0 if bias is None else bias.double())
        for text, (begin, end) in enumerate(itertools.pairwise(offsets.tolist())):
            if begin < end:
                won = winners[text].long()
                assert ((won >= begin) & (won < end)).all()
                torch.testing.assert_close(full.gather(0, won[None])[0], exact[0][text], rtol=1e-4, atol=1e-3)
        alone, nobody = sparse_head_triton.winning_logits(states, weight, bias, offsets, False)
        assert nobody is None
        assert torch.equal(alone, logits)


@needs_gpu
def test_the_triton_kernel_gives_ties_to_the_first_token_and_shows_nan():
    from lsr import sparse_head_triton

    states = torch.ones(200, 16, device="cuda", dtype=torch.bfloat16)
    weight = torch.ones(300, 16, device="cuda", dtype=torch.bfloat16)
    offsets = torch.tensor([0, 130, 200], device="cuda")
    logits, winners = sparse_head_triton.winning_logits(states, weight, None, offsets, True)
    assert (logits == 16).all()
    assert winners[:, 0].tolist() == [0, 130]
    assert (winners == winners[:, :1]).all()
    states[150] = torch.nan
    logits, _ = sparse_head_triton.winning_logits(states, weight, None, offsets, True)
    assert logits[0].isfinite().all()
    assert not logits[1].isfinite().any()


@needs_gpu
@pytest.mark.parametrize(("pooling", "activation", "importance"), CASES)
def test_the_gpu_gives_the_cpu_s_values_and_gradients(pooling, activation, importance):
    given = inputs(6, 90, 64, 2_000, torch.float32)
    results = []
    for device in ("cpu", "cuda"):
        here = leaves({name: tensor.to(device) for name, tensor in given.items()}, importance)
        pooled = fused_sparse_head(**here, pooling=pooling, activation=activation)
        pooled.square().sum().backward()
        results.append([pooled.detach().cpu(), *(here[n].grad.cpu() for n in ("states", "weight", "bias"))])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_the_three_backward_passes_agree(monkeypatch, share, wanted):
    """Sorted sparse products (CPU), rows added to rows and dense blocks (GPU, by how many terms survive)."""
    monkeypatch.setattr(sparse_head, "BLOCK_ELEMENTS", {"cpu": 1, "cuda": 1})  # blocks of 256 terms
    generator = torch.Generator().manual_seed(0)
    states, weight = (torch.randn(size, generator=generator) for size in ((40, 16), (700, 16)))
    _, winners = winning_logits(states, weight, None, torch.tensor([0, 10, 10, 25, 40]))
    grad = torch.randn(4, 700, generator=generator) * (torch.rand(4, 700, generator=generator) < share)
    grad[1] = 0  # a text without tokens
    plain = sparse_head._sparse_gradients(grad, winners, states, weight, wanted)
    for form in (sparse_head._added_gradients, sparse_head._dense_gradients):
        for expected, made in zip(plain, form(grad, winners, states, weight, wanted), strict=True):
            assert (expected is None) == (made is None)
            if expected is not None:
                torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)
