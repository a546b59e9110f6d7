"""Losses against their formulas in plain loops, masks, dtypes, and gradient caching."""

import math
from itertools import pairwise

import pytest
import torch

from lsr.errors import InputError
from lsr.training.gradient_cache import cached_backward
from lsr.training.losses import (
    LOSSES,
    Contrastive,
    Kl,
    MarginMse,
    NegativeLikelihood,
    PairwiseCrossEntropy,
    TermRecall,
)

B, N, V = 3, 4, 20


def vectors(seed=0, b=B, n=N):
    generator = torch.Generator().manual_seed(seed)
    queries = torch.rand(b, V, generator=generator).sub(0.5).relu()
    documents = torch.rand(b * n, V, generator=generator).sub(0.5).relu()
    return queries.requires_grad_(), documents.requires_grad_()


def batch(b=B, n=N, scores=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "query_ids": torch.randint(0, V, (b, 5), generator=generator),
        "query_mask": torch.ones(b, 5, dtype=torch.int64),
        "document_ids": torch.randint(0, V, (b * n, 7), generator=generator),
        "document_mask": torch.ones(b * n, 7, dtype=torch.int64),
        "teacher_scores": torch.randn(b, n, generator=generator) * 3 if scores else None,
        "base_scores": None,
        "false_negatives": torch.zeros(b, b * n, dtype=torch.bool),
    }


def dot(queries, documents, i, j, n=N):
    """Score of document j of query i, in Python."""
    return sum(a * b for a, b in zip(queries[i].tolist(), documents[i * n + j].tolist(), strict=True))


def softmax(values):
    exponentials = [math.exp(v) for v in values]
    return [e / sum(exponentials) for e in exponentials]


def test_contrastive_is_the_cross_entropy_over_all_documents():
    q, d = vectors()
    expected = 0.0
    for i in range(B):
        scores = [dot(q[i : i + 1], d, 0, j) / 0.5 for j in range(len(d))]
        expected -= math.log(softmax(scores)[i * N]) / B
    assert Contrastive(temperature=0.5)(q, d, batch()).item() == pytest.approx(expected, abs=1e-5)


def test_contrastive_without_in_batch_negatives_sees_its_own_documents():
    q, d = vectors()
    expected = -sum(math.log(softmax([dot(q, d, i, j) for j in range(N)])[0]) for i in range(B)) / B
    assert Contrastive(in_batch=False)(q, d, batch()).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("in_batch", [True, False])
def test_false_negatives_do_not_count(in_batch):
    """The loss is that of scores without the masked document, which gets no gradient from the query."""
    q, d = vectors(b=1)
    masked = batch(b=1)
    masked["false_negatives"][0, 1] = True
    loss = Contrastive(in_batch=in_batch)(q, d, masked)
    expected = -math.log(softmax([dot(q, d, 0, j) for j in range(N) if j != 1])[0])
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    loss.backward()
    assert not d.grad[1].any()
    assert d.grad[2].any()


def test_pairwise_cross_entropy():
    q, d = vectors()
    pairs = [(i, j) for i in range(B) for j in range(1, N)]
    expected = sum(-math.log(softmax([dot(q, d, i, 0), dot(q, d, i, j)])[0]) for i, j in pairs) / len(pairs)
    assert PairwiseCrossEntropy()(q, d, batch()).item() == pytest.approx(expected, abs=1e-5)


def test_negative_likelihood():
    q, d = vectors()
    expected = sum(1 - softmax([dot(q, d, i, j) for j in range(N)])[0] for i in range(B)) / B
    assert NegativeLikelihood()(q, d, batch()).item() == pytest.approx(expected, abs=1e-5)


def test_margin_mse():
    q, d = vectors()
    t = batch()["teacher_scores"]
    pairs = [(i, j) for i in range(B) for j in range(1, N)]
    errors = [(dot(q, d, i, 0) - dot(q, d, i, j) - 2 * float(t[i, 0] - t[i, j])) ** 2 for i, j in pairs]
    assert MarginMse(teacher_scale=2)(q, d, batch()).item() == pytest.approx(sum(errors) / len(pairs), rel=1e-5)


def test_kl():
    q, d = vectors()
    t = batch()["teacher_scores"]
    expected = 0.0
    for i in range(B):
        target = softmax([30 * float(s) / 20 for s in t[i]])
        student = softmax([dot(q, d, i, j) / 20 for j in range(N)])
        expected += sum(p * math.log(p / s) for p, s in zip(target, student, strict=True)) / B
    assert Kl(temperature=20, teacher_scale=30)(q, d, batch()).item() == pytest.approx(expected, abs=1e-5)


def test_kl_is_zero_where_the_student_is_the_teacher():
    q, d = vectors()
    own = batch()
    own["teacher_scores"] = (q[:, None] * d.view(B, N, V)).sum(-1).detach() + 5  # a constant does not matter
    assert Kl()(q, d, own).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.needs_negatives])
def test_base_scores_are_added_to_the_student_s(name):
    """As if each vector had one term more, which gives the base score."""
    q, d = vectors()
    own = batch()
    own["base_scores"] = torch.randn(B, N, generator=torch.Generator().manual_seed(5))
    wider = torch.cat([q, torch.ones(B, 1)], 1), torch.cat([d, own["base_scores"].reshape(-1, 1)], 1)
    loss = LOSSES[name]()
    assert loss(q, d, own).item() == pytest.approx(loss(*wider, batch()).item(), rel=1e-5)
    assert loss(q, d, own).item() != pytest.approx(loss(q, d, batch()).item(), rel=1e-3)


def test_term_recall():
    q, d = vectors()
    texts = batch()
    expected = 0.0
    for i in range(B):
        in_query = set(texts["query_ids"][i].tolist()) - {0}
        in_document = set(texts["document_ids"][i * N].tolist()) - {0}
        expected += sum((float(d[i * N][t]) - (t in in_query)) ** 2 for t in in_document) / len(in_document) / B
        expected += sum((float(q[i][t]) - (t in in_document)) ** 2 for t in in_query) / len(in_query) / B
    assert TermRecall(special_ids=(0,))(q, d, texts).item() == pytest.approx(expected, abs=1e-5)


def test_term_recall_does_not_see_padding():
    q, d = vectors()
    texts = batch()
    longer = {**texts, "document_ids": torch.nn.functional.pad(texts["document_ids"], (0, 3), value=7)}
    longer["document_mask"] = torch.nn.functional.pad(texts["document_mask"], (0, 3))
    assert TermRecall()(q, d, longer) == TermRecall()(q, d, texts)


@pytest.mark.parametrize("name", LOSSES)
def test_float32_under_autocast(name):
    """Vectors of a half-precision encoder, inside autocast: the loss is that of their float32 values."""
    loss = LOSSES[name]()
    q, d = (side.detach().bfloat16() for side in vectors())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(q, d, batch())
    assert inside.dtype == torch.float32
    assert torch.equal(inside, loss(q.float(), d.float(), batch()))


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.needs_scores])
def test_missing_teacher_scores_are_refused(name):
    with pytest.raises(InputError, match="lsr distill"):
        LOSSES[name]()(*vectors(), batch(scores=False))


@pytest.mark.parametrize("make", [lambda: Contrastive(temperature=0), lambda: Kl(teacher_scale=-1)])
def test_impossible_options_are_refused(make):
    with pytest.raises(InputError, match="must be finite and above 0"):
        make()


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_descent_lowers_the_loss(name):
    torch.manual_seed(0)
    loss = LOSSES[name]()
    q, d = (torch.rand(side.shape, requires_grad=True) for side in vectors())
    optimizer = torch.optim.SGD([q, d], lr=0.05)
    values = []
    for _ in range(20):
        value = loss(q, d, batch())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value))
    assert values[-1] < values[0]


class Dropping(torch.nn.Module):
    """An encoder with dropout, shared by both sides."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, V)

    def forward(self, texts):
        return torch.log1p(torch.relu(torch.nn.functional.dropout(self.layer(texts), 0.3, self.training)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("sizes", [[4, 4], [1] * 8, [3, 3, 2]])
def test_gradient_caching_is_exact(sizes, training):
    """The gradient, by chunks, of a loss that couples all texts, equals the plain one; also with dropout."""
    torch.manual_seed(0)
    encoder = Dropping().double().train(training)
    queries, documents = torch.randn(8, 6).double(), torch.randn(16, 6).double()

    def objective(q, d):
        return Contrastive()(q, d, batch(8, 2)).double() + d.mean(0).square().sum() + q.mean(0).square().sum()

    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()

    def forward(start, end):
        return encoder(queries[start:end]), encoder(documents[2 * start : 2 * end])

    forwards = [lambda s=s, e=e: forward(s, e) for s, e in pairwise(ends)]
    torch.manual_seed(1)
    chunks = [part() for part in forwards]  # the same dropout masks as below
    plain = objective(*(torch.cat(side) for side in zip(*chunks, strict=True)))
    expected = torch.autograd.grad(plain, list(encoder.parameters()))
    after = torch.rand(1)

    torch.manual_seed(1)
    entered = []

    class NoSync:
        def __enter__(self):
            entered.append(True)

        def __exit__(self, *_):
            pass

    value = cached_backward(forwards, objective, lambda scalar: scalar.backward(), no_sync=NoSync)
    assert torch.rand(1) == after, "random numbers go on as after one pass"
    assert len(entered) == len(sizes) - 1, "gradients are exchanged once"
    assert value == plain
    for parameter, gradient in zip(encoder.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-7, rtol=1e-6)  # scores are float32


def test_gradient_caching_with_a_side_that_has_no_gradient():
    """An IDF table's vectors take no gradient."""
    encoder = Dropping().eval()
    documents = torch.randn(4, 6)
    fixed = torch.rand(4, V)
    forwards = [lambda i=i: (fixed[i : i + 2], encoder(documents[i : i + 2])) for i in (0, 2)]
    cached_backward(forwards, lambda q, d: Contrastive()(q, d, batch(4, 1)), lambda s: s.backward())
    got = encoder.layer.weight.grad.clone()
    encoder.zero_grad()
    Contrastive()(fixed, encoder(documents), batch(4, 1)).backward()
    torch.testing.assert_close(got, encoder.layer.weight.grad)
