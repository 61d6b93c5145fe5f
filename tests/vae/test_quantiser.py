"""Vector quantisation: the nearest code, the gradients that pass it, and a codebook that follows what it stands for."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vae.two_processes import in_two_processes

from mezzotint.core.errors import ConfigError
from mezzotint.vae.quantiser import SCORES, CodebookConfig, VectorQuantiser, kmeans, nearest, spread

PLAIN = {"codes": 7, "width": 3, "kmeans": 0, "revive_below": 0.0}  # the paper's, and nothing beside


def quantiser(**settings) -> VectorQuantiser:
    return VectorQuantiser(CodebookConfig(**{**PLAIN, **settings})).double()


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def chances(z: torch.Tensor, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(z), *z.shape[2:], dtype=torch.float64, generator=generator)


def step(module: VectorQuantiser, z: torch.Tensor, seed: int = 1):
    """One step of training; what was quantised in it."""
    quantised = module(z, chances(z, seed))
    module.after_step()
    return quantised


# The nearest code ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "offset"), [(64, 0.0), (4, 0.0), (4, 3.0)])
def test_the_code_that_is_found_is_the_nearest(width, offset, truth):
    vectors, codebook = torch.randn(2500, width) + offset, torch.randn(1024, width) + offset
    assert len(vectors) * len(codebook) > 2 * SCORES  # in several parts, the last of them short
    codes = nearest(vectors, codebook)
    squares = torch.cdist(vectors.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist") ** 2
    beyond = squares.gather(1, codes[:, None])[:, 0] - squares.min(1).values
    error = (beyond / squares.min(1).values.clamp_min(1e-3)).max()
    what = f"squared distance of the nearest of 1024 codes in {width} dimensions, offset {offset:g}, relative"
    truth("vq-vae", what, "every distance in float64", error, 1e-5)
    assert (codes == squares.argmin(1)).double().mean() > 0.999


def test_the_matrix_of_distances_is_never_whole():
    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            for tensor in [found] if isinstance(found, torch.Tensor) else []:
                self.seen = max(self.seen, tensor.untyped_storage().nbytes() // tensor.element_size())
            return found

    vectors, codebook = torch.randn(8192, 8), torch.randn(1024, 8)
    with Largest() as largest:
        nearest(vectors, codebook)
    assert largest.seen <= SCORES == len(vectors) * len(codebook) // 8


def test_one_vector_and_one_code_will_do():
    assert nearest(torch.ones(1, 2), torch.zeros(1, 2)).tolist() == [0]
    assert nearest(torch.ones(0, 2), torch.zeros(3, 2)).shape == (0,)


def test_codes_are_chosen_in_full_precision_whatever_autocast_says():
    module = VectorQuantiser(CodebookConfig(codes=512, width=8)).eval()
    z = torch.randn(4, 8, 16, 16)
    expected = module(z).codes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(z).codes, expected)
        assert torch.equal(module.nearest(z.permute(0, 2, 3, 1)), expected)
        assert module(z.bfloat16()).vectors.dtype == torch.float32


# Gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["average", "gradient"])
def test_the_gradient_of_what_follows_passes_straight_through(update, truth):
    module, z = quantiser(update=update), maps(2, 3, 4, 4).requires_grad_()
    quantised = module(z, chances(z))
    assert torch.equal(quantised.vectors, module.lookup(quantised.codes))  # what `decode` is given, to the last bit
    quantised.vectors.retain_grad()
    torch.sin(quantised.vectors * maps(2, 3, 4, 4, seed=2)).sum().backward()
    truth("vq-vae", f"gradient of z_e, codes by {update}", "of z_q", (z.grad - quantised.vectors.grad).abs().max(), 0.0)
    assert module.codebook.grad is None  # nothing reaches the codebook on this way (their section 3.2)


@pytest.mark.parametrize("positions", ["sum", "mean"])
def test_beta_weighs_the_term_that_moves_the_encoder(positions, truth):
    """Eq. 3: the codebook follows |sg[z_e] - e|^2, the encoder beta |z_e - sg[e]|^2."""
    module, z = quantiser(update="gradient", beta=0.25, positions=positions), maps(2, 3, 4, 5).requires_grad_()
    quantised = module(z, chances(z))
    count = 1 if positions == "sum" else 4 * 5
    difference = (z - module.lookup(quantised.codes)).detach()
    squares = difference.square().sum((1, 2, 3)) / count
    error = (quantised.codebook + quantised.commitment - 1.25 * squares).detach().abs().max()
    truth("vq-vae", f"both terms of the codebook, {positions} over positions", "eq. 3 as it stands", error, 1e-14)
    (quantised.commitment + quantised.codebook).sum().backward()
    error = (z.grad - 0.25 * 2 * difference / count).abs().max()
    truth("vq-vae", f"gradient of the encoder, {positions} over positions", "2 beta (z_e - e)", error, 5e-17)
    pulls = torch.zeros_like(module.codebook)
    flat = difference.permute(0, 2, 3, 1).reshape(-1, 3)
    pulls.index_add_(0, quantised.codes.flatten(), -2 * flat / count)
    error = (module.codebook.grad - pulls).abs().max()
    truth("vq-vae", f"gradient of the codes, {positions} over positions", "2 (e - z_e)", error, 1e-15)


def test_codes_that_are_averages_have_no_gradient_and_no_second_term():
    module, z = quantiser(), maps(2, 3, 4, 4).requires_grad_()
    quantised = module(z, chances(z))
    assert not quantised.codebook.any()
    assert not list(module.parameters())


def test_perplexity_counts_codes_that_are_chosen_equally_often():
    module = quantiser(codes=4, width=1)
    module.codebook.copy_(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
    even = module.eval()(torch.tensor([0.0, 1.0, 1.0, 0.0]).double().view(1, 1, 2, 2))
    assert (float(even.usage), float(even.perplexity)) == pytest.approx((0.5, 2.0))
    uneven = module(torch.tensor([0.0, 0.0, 0.0, 3.0]).double().view(1, 1, 2, 2))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(uneven.perplexity) == pytest.approx(math.exp(entropy))


# The moving averages -------------------------------------------------------------------------------------------------


def test_without_memory_a_step_is_one_of_kmeans(truth):
    module, z = quantiser(decay=0.0, smoothing=0.0), 0.1 * maps(4, 3, 5, 5)
    before, quantised = module.codebook.clone(), step(module, z)
    flat, codes = z.permute(0, 2, 3, 1).reshape(-1, 3), quantised.codes.flatten()
    for i in range(7):
        mine = flat[codes == i]
        before[i] = mine.mean(0) if len(mine) else before[i]  # Lloyd leaves a mean without vectors where it is
    truth("vq-vae", "averages of decay 0", "a step of k-means", (module.codebook - before).abs().max(), 5e-17)


@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 0.5])
def test_averages_follow_the_equations_of_the_appendix(epsilon, truth):
    """Eq. 6-8, N and m begun at 1 and e; with N' the smoothed counts, which add up to the same."""
    module, gamma = quantiser(decay=0.9, smoothing=epsilon), 0.9
    codes, counts = module.codebook.clone(), torch.ones(7, dtype=torch.float64)
    sums = codes.clone()
    for k in range(5):
        z = maps(3, 3, 4, 4, seed=k)
        step(module, z)
        flat = z.permute(0, 2, 3, 1).reshape(-1, 3)
        chosen = torch.cdist(flat, codes).argmin(1)
        for i in range(7):
            mine = flat[chosen == i]
            counts[i] = counts[i] * gamma + len(mine) * (1 - gamma)
            sums[i] = sums[i] * gamma + mine.sum(0) * (1 - gamma)
        smoothed = (counts + epsilon) / (counts.sum() + 7 * epsilon) * counts.sum()
        codes = sums / smoothed[:, None]
    error = (module.codebook - codes).abs().max()
    truth("vq-vae", f"averages after 5 steps, epsilon {epsilon:g}", "eq. 6-8 as they stand", error, 3e-15)


@pytest.mark.parametrize("settings", [{}, {"kmeans": 5, "revive_below": 0.4}])
def test_a_batch_may_come_in_parts_and_in_any_order(settings, truth):
    """What lets accumulation and processes change nothing: sums, and vectors that are chosen by their own lots."""
    whole = quantiser(**settings)
    parts = copy.deepcopy(whole)
    for k in range(4):
        z, chance = maps(6, 3, 4, 4, seed=k), chances(maps(6, 3, 4, 4), seed=k)
        whole(z, chance)
        for rows in ([4, 1], [0, 5, 2, 3]):
            parts(z[rows], chance[rows])
        whole.after_step()
        parts.after_step()
    name = "with k-means and codes that move" if settings else "averages"
    error = (whole.codebook - parts.codebook).abs().max()
    truth("vq-vae", f"codebook of batches in parts, {name}", "of whole batches", error, 1e-15)


def _several_steps(rows: slice) -> VectorQuantiser:
    torch.manual_seed(0)
    module = quantiser(kmeans=3, revive_below=0.4)
    for k in range(3):
        z, chance = maps(6, 3, 4, 4, seed=k), chances(maps(6, 3, 4, 4), seed=k)
        module(z[rows], chance[rows])
        module.after_step()
    return module


def test_two_processes_learn_the_codebook_of_one(truth):
    codebooks = in_two_processes(lambda rank: _several_steps(slice(rank, None, 2)).codebook.tolist())
    assert codebooks[0] == codebooks[1]  # to the last bit, or they drift apart
    one = _several_steps(slice(None)).codebook
    error = (torch.tensor(codebooks[0], dtype=torch.float64) - one).abs().max()
    # two steps whose sums have another order, each of which may move a code by two ulps, of 4 at most
    assert one.abs().max() < 4
    truth("vq-vae", "codebook learned in two processes", "in one", error, 2e-15)


def test_nothing_is_learned_outside_of_training():
    module, z = quantiser(), maps(2, 3, 4, 4)
    before = module.codebook.clone()
    module.eval()(z)
    with torch.no_grad():
        module.train()(z)
    module.after_step()
    assert torch.equal(module.codebook, before)
    assert module.updates == 0
    with pytest.raises(ValueError, match="chance"):
        module(z)


def test_what_is_no_number_leaves_the_codebook_alone():
    module, z = quantiser(kmeans=2, revive_below=0.1), maps(2, 3, 4, 4)
    step(module, z)
    before = module.codebook.clone()
    z[0, 0, 0, 0] = math.nan
    step(module, z)
    assert torch.equal(module.codebook, before)


def test_a_resumed_codebook_goes_on_to_the_last_bit():
    module = quantiser(kmeans=3, revive_below=0.4)
    for k in range(2):
        step(module, maps(4, 3, 4, 4, seed=k), seed=k)
    resumed = quantiser(kmeans=3, revive_below=0.4)
    resumed.load_state_dict(module.state_dict())
    for one in (module, resumed):
        step(one, maps(4, 3, 4, 4, seed=9), seed=9)
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), resumed.state_dict().values()))


# Where codes begin, and those that nobody chooses --------------------------------------------------------------------


def clusters(n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors close to seven points that lie apart, half of them close to the first: (1, 3, n, 1), (7, 3)."""
    points = 10 * torch.cat([torch.eye(3), -torch.eye(3), torch.zeros(1, 3)]).double()
    which = torch.cat([torch.arange(7), torch.zeros(n // 2), torch.arange(n - n // 2 - 7) % 7]).long()
    return (points[which] + 0.01 * maps(n, 3)).T.reshape(1, 3, n, 1), points


def test_codes_begin_where_the_first_batch_lies(truth):
    z, points = clusters()
    module = quantiser(kmeans=5)
    step(module, z)
    error = torch.cdist(points, module.codebook).min(1).values.max()
    truth("vq-vae", "codes after the first step", "the centres of 7 clusters", error, 0.02)
    assert module.eval()(z).usage == 1
    assert module.counts.sum() == pytest.approx(200)


def test_codes_begin_at_vectors_that_differ():
    """Half of the vectors are the same, as the background of pictures is."""
    vectors = torch.cat([torch.zeros(50, 2), torch.arange(8.0).view(4, 2)])
    found = spread(vectors, torch.rand(54), 5)
    assert len(found.unique(dim=0)) == 5
    assert len(spread(vectors, torch.rand(54), 9)) == 5  # there are no more
    module, z = quantiser(kmeans=2, codes=9, width=2), vectors.double().T.reshape(1, 2, 54, 1)
    idle = module.codebook[5:].clone()
    step(module, z)
    assert module.eval()(z).usage == pytest.approx(5 / 9)
    step(module.train(), z)
    assert torch.equal(module.codebook[5:], idle)  # for which there are no vectors, now or later


def test_kmeans_finds_what_scikit_learn_finds(truth):
    sklearn = pytest.importorskip("sklearn.cluster")
    vectors = maps(300, 3)
    theirs = sklearn.KMeans(5, init=vectors[:5].numpy(), n_init=1, max_iter=4, tol=0, algorithm="lloyd").fit(vectors)
    ours, _ = kmeans(vectors, vectors[:5], 4)
    error = (ours - torch.from_numpy(theirs.cluster_centers_)).abs().max()
    truth("vq-vae", "k-means after 4 iterations", "scikit-learn's KMeans", error, 2e-15)


@pytest.mark.parametrize("update", ["average", "gradient"])
def test_codes_that_nobody_chooses_move_to_vectors_that_have_none_near(update):
    z, points = clusters()
    module = quantiser(revive_below=0.2, decay=0.5, update=update)
    with torch.no_grad():
        module.codebook.copy_(points + 100)
        module.sums.copy_(module.codebook)
        module.codebook[0], module.sums[0] = points[0], points[0]
    assert module.eval()(z).usage < 0.5
    module.train()
    for k in range(8):
        step(module, z, seed=k)
    assert module.eval()(z).usage == 1


def test_no_code_moves_to_where_there_is_one():
    module = quantiser(revive_below=0.9, decay=0.0, smoothing=0.0)
    z = module.codebook[:2].T.reshape(1, 3, 2, 1).clone()
    before = module.codebook.clone()
    step(module, z)
    assert torch.allclose(module.codebook[2:], before[2:])


@pytest.mark.parametrize(
    "settings", [{"codes": 0}, {"width": 0}, {"beta": -1.0}, {"decay": 1.0}, {"kmeans": -1}, {"revive_below": 1.0}]
)
def test_a_codebook_that_cannot_be_is_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        CodebookConfig(**settings)


# Beside independent implementations ----------------------------------------------------------------------------------


@pytest.mark.oracles
@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_codebook_and_losses_are_those_of_vector_quantize_pytorch(epsilon, truth):
    """Its defaults are a decay of 0.8, beta 1 and a rotated gradient; its terms are means over D as well."""
    library = pytest.importorskip("vector_quantize_pytorch")
    theirs = library.VectorQuantize(
        dim=3, codebook_size=7, decay=0.9, eps=epsilon, commitment_weight=0.25, rotation_trick=False,
        accept_image_fmap=True,
    ).train()  # fmt: skip
    ours = VectorQuantiser(CodebookConfig(**{**PLAIN, "decay": 0.9, "smoothing": epsilon, "positions": "mean"}))
    theirs._codebook.embed.copy_(ours.codebook[None])
    theirs._codebook.embed_avg.copy_(ours.codebook[None])
    errors = dict.fromkeys(("codes", "quantised", "commitment", "gradient", "codebook"), 0.0)
    for k in range(6):
        a = maps(3, 3, 4, 4, seed=k).float().requires_grad_()
        b = a.detach().clone().requires_grad_()
        weights = maps(3, 3, 4, 4, seed=k + 50).float()
        quantised = step(ours, a)
        found, codes, loss = theirs(b)
        (quantised.vectors * weights).sum().add(quantised.commitment.mean() / 3).backward()
        (found * weights).sum().add(loss).backward()
        for name, one, other in (
            ("codes", quantised.codes, codes),
            ("quantised", quantised.vectors, found),
            ("commitment", quantised.commitment.mean() / 3, loss),
            ("gradient", a.grad, b.grad),
            ("codebook", ours.codebook, theirs._codebook.embed[0]),
        ):
            errors[name] = max(errors[name], float((one - other).detach().abs().max()))
    tolerances = {"codes": 0.0, "quantised": 6e-7, "commitment": 5e-8, "gradient": 5e-8, "codebook": 4e-7}
    for name, error in errors.items():
        what = f"{name} over 6 steps, epsilon {epsilon:g}"
        truth("vq-vae", what, "vector-quantize-pytorch 1.32.0", error, tolerances[name])


@pytest.mark.oracles
def test_codes_by_gradient_are_those_of_vector_quantize_pytorch(truth):
    library = pytest.importorskip("vector_quantize_pytorch")
    theirs = library.VectorQuantize(
        dim=3, codebook_size=7, learnable_codebook=True, ema_update=False, rotation_trick=False, accept_image_fmap=True
    ).train()
    ours = VectorQuantiser(CodebookConfig(**{**PLAIN, "update": "gradient", "beta": 1.0, "positions": "mean"}))
    with torch.no_grad():
        theirs._codebook.embed.copy_(ours.codebook[None])
    a = maps(3, 3, 4, 4).float().requires_grad_()
    b = a.detach().clone().requires_grad_()
    quantised = ours(a, chances(a))
    # its one term |z_e - e|^2 has both gradients; ours are two terms, each with one of them
    (quantised.commitment + quantised.codebook).mean().div(3).backward()
    theirs(b)[2].backward()
    error = (a.grad - b.grad).abs().max() + (ours.codebook.grad - theirs._codebook.embed.grad[0]).abs().max()
    truth("vq-vae", "gradients of both terms", "vector-quantize-pytorch 1.32.0, learnable_codebook", error, 3e-8)


@pytest.mark.oracles
def test_codes_and_losses_are_those_of_pythae(truth):
    """Its factors are for means over all numbers, so beta is for a D-th of ours."""
    utils = pytest.importorskip("pythae.models.vq_vae.vq_vae_utils")
    config = pytest.importorskip("pythae.models.vq_vae").VQVAEConfig(
        input_dim=(1, 4, 4), latent_dim=3, num_embeddings=7, commitment_loss_factor=0.25, quantization_loss_factor=1.0,
        use_ema=False,
    )  # fmt: skip
    config.embedding_dim = 3
    theirs = utils.Quantizer(config)
    ours = VectorQuantiser(CodebookConfig(**{**PLAIN, "update": "gradient", "positions": "mean"}))
    with torch.no_grad():
        theirs.embeddings.weight.copy_(ours.codebook)
    a = maps(3, 3, 4, 4).float().requires_grad_()
    b = a.detach().clone().requires_grad_()
    quantised, output = ours(a, chances(a)), theirs(b.permute(0, 2, 3, 1))
    assert torch.equal(quantised.codes, output.quantized_indices[:, 0])
    loss = (quantised.commitment + quantised.codebook).mean() / 3
    loss.backward()
    output.loss.backward()
    error = (loss - output.loss).detach().abs() + (a.grad - b.grad).abs().max()
    error = error + (ours.codebook.grad - theirs.embeddings.weight.grad).abs().max()
    truth("vq-vae", "terms of the codebook, and their gradients", "pythae 0.1.2 Quantizer", error, 5e-8)
