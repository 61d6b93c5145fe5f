"""Inverse autoregressive flow: its Jacobian, its inverse, its density; and bounds of the ladder of convolutions."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.func import jacrev
from vae.quadrature import Given, binary_pictures, hermite, likelihood_of, together

from mezzotint.core.batch import Batch
from mezzotint.core.errors import ConfigError
from mezzotint.core.model import abilities
from mezzotint.vae.gaussian import Gaussian
from mezzotint.vae.iaf import IAFVAE, IAFConfig, IAFStep
from mezzotint.vae.likelihoods import BernoulliConfig
from mezzotint.vae.objectives import ELBO, ImportanceWeighted


def config(**choices) -> IAFConfig:
    given = {"image_size": 8, "latent": 2, "width": 6, "depths": (1, 2), "likelihood": BernoulliConfig()}
    return IAFConfig(**{**given, **choices})


def model(**choices) -> IAFVAE:
    return IAFVAE(config(**choices)).double()


def strong(step: IAFStep) -> IAFStep:
    """With weights under which a place says much of the next."""
    with torch.no_grad():
        for parameter in step.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return step.double()


STEPS = [{}, {"flow_layers": 2}, {"weight_norm": True}, {"latent": 3, "gate": 1.0}]


@pytest.mark.parametrize("choices", STEPS)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_jacobian_is_triangular_and_its_determinant_is_told(truth, choices, reverse):
    c = config(**choices)
    step, z, context = strong(IAFStep(c, reverse)), torch.randn(c.latent, 3, 2).double(), torch.randn(6, 3, 2).double()

    def flat(values):
        """Elements in their order: place after place, the channels within."""
        maps = values.view(3, 2, c.latent).permute(2, 0, 1)
        return step(maps[None], context[None])[0][0].permute(1, 2, 0).flatten()

    jacobian = jacrev(flat)(z.permute(1, 2, 0).flatten())
    beyond = jacobian.tril(-1) if reverse else jacobian.triu(1)
    assert not beyond.any()
    within = jacobian.triu(1) if reverse else jacobian.tril(-1)
    assert (within != 0).sum() > len(jacobian)  # and it is no diagonal
    assert (jacobian.diagonal() > 0).all()
    log_det = step(z[None], context[None])[1]
    error = (log_det.sum() - jacobian.slogdet().logabsdet).abs().detach()
    truth(f"iaf step {choices}, reverse={reverse}", "ln |det|, nats", "autograd's Jacobian, float64", error, 1e-14)


@pytest.mark.parametrize("choices", STEPS)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_inverse_inverts(truth, choices, reverse):
    c = config(**choices)
    step, z, context = (
        strong(IAFStep(c, reverse)),
        torch.randn(2, c.latent, 3, 2).double(),
        torch.randn(2, 6, 3, 2).double(),
    )
    with torch.no_grad():
        error = (step.inverse(step(z, context)[0], context) - z).abs().max()
    truth(f"iaf step {choices}, reverse={reverse}", "inverse of a step", "identity", error, 5e-15)


def test_the_context_reaches_every_element_but_the_first():
    """Which sees nothing at all: what the picture says of it, the Gaussian before the flow must say."""
    step, z, context = strong(IAFStep(config())), torch.randn(1, 2, 3, 2).double(), torch.zeros(1, 6, 3, 2).double()
    moved = (step(z, context + 1)[0] != step(z, context)[0])[0].permute(1, 2, 0).flatten()
    assert moved.tolist() == [False] + [True] * 11


def test_the_density_of_z_is_that_of_where_the_flow_began(truth):
    """ln q(z) = ln N(z_0) - ln |det|, with z_0 by the inverse and the determinant by autograd, for two steps."""
    level = model(flow_steps=2).levels[0]
    for step in level.flow:
        strong(step)
    prior, *begin = (torch.randn(1, 2, 2, 2).double() for _ in range(3))
    context, rest = torch.randn(1, 6, 2, 2).double(), (torch.zeros(1).double(),) * 4
    prior = Gaussian(prior, 0.3 * prior)
    drawn = level.posterior(prior, rest, (*begin, context)).draw(torch.randn(1, 2, 2, 2).double(), prior)
    with torch.no_grad():
        z_0 = level.flow[0].inverse(level.flow[1].inverse(drawn.z, context), context)

    def through(values):
        z = values.view(1, 2, 2, 2)
        for step in level.flow:
            z = step(z, context)[0]
        return z.flatten()

    assert torch.allclose(through(z_0), drawn.z.flatten(), atol=1e-10)
    log_q = Normal(begin[0], begin[1].exp()).log_prob(z_0).sum() - jacrev(through)(z_0.flatten()).slogdet().logabsdet
    log_p = Normal(prior.mean, prior.log_std.exp()).log_prob(drawn.z).sum()
    error = (drawn.log_ratio[0] - (log_p - log_q)).abs().detach()
    truth("iaf-vae", "ln p(z) - ln q(z | x), nats", "inverse and Jacobian", error, 5e-14)
    assert torch.allclose(drawn.kl.sum(), -drawn.log_ratio[0])


def test_without_steps_divergences_are_in_closed_form(truth):
    """Each level's KL by torch.distributions, at the state to which the z above it led."""
    made, x = model(flow_steps=0), binary_pictures()[:3].repeat(1, 1, 4, 4)
    batch = Batch(x, seeds=range(3))
    seen, state, expected = made.recognise(batch), made.start(3), []
    noise = [torch.randn(3, 2, *size).double() for size in ((2, 2), (2, 2), (4, 4))]
    inferred = made.infer(batch, seen, together(noise))
    for k, (level, e) in enumerate(zip(made.levels, noise, strict=True)):
        prior, rest = level.look(state)
        mean, log_std = rest[0] + seen[3 * k], rest[1] + seen[3 * k + 1]
        kl = kl_divergence(Normal(mean, log_std.exp()), Normal(prior.mean, prior.log_std.exp()))
        expected.append(kl.sum((2, 3)))
        state = level.onward(state, rest, mean + log_std.exp() * e)
    error = (inferred.kl - torch.cat(expected, 1)).abs().max().detach()
    truth("iaf-vae", "KL of each map, no flow, nats", "torch.distributions", error, 2e-15)


def test_generation_is_inference_whose_posterior_is_the_prior(truth):
    made = model(flow_steps=0)
    with torch.no_grad():
        for level in made.levels:
            level.down.weight[4:8] = level.down.weight[:4]
    noise = [torch.randn(3, 2, *size).double() for size in ((2, 2), (2, 2), (4, 4))]
    nothing = [torch.zeros(3, maps, *e.shape[2:]).double() for e in noise for maps in (2, 2, 6)]
    numbers = made.descend(3, tuple(nothing), lambda k, prior, posterior: posterior.draw(noise[k], prior).z)
    inferred = made.infer(Batch(torch.ones(3, 1, 8, 8).double()), tuple(nothing), together(noise))
    error = inferred.kl.abs().max().detach()
    truth("iaf-vae", "KL of a posterior that is the prior, nats", "0", error, 1e-15)
    assert torch.equal(made.generate(3, together(noise)), numbers)


def test_bounds_are_below_the_likelihood_which_sums_to_one(truth):
    """Two channels at one place: the second of the flow hangs on the first. All means by quadrature over both."""
    made, x = model(image_size=2, depths=(1,), residual=1.0), binary_pictures()
    values, weights = hermite(40)
    noise = torch.cartesian_prod(values, values)
    weight = torch.outer(weights, weights).flatten()
    with torch.no_grad():
        for parameter in made.levels[0].flow[0].parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
        made.levels[0].flow[0].gate = 4.0  # keep most of z, so that the posterior stays wide and weights bounded
        made.last.weight.mul_(4.0)
        exact = likelihood_of(made, made.generate(1600, Given(noise)), weight.log())
        bounds, likelihoods = [], []
        for one in x:
            many = Batch(one.expand(1600, 1, 2, 2))
            inferred = made.infer(many, made.recognise(many), Given(noise))
            bounds.append((weight * inferred.elbo).sum())
            likelihoods.append((weight * inferred.log_weight.exp()).sum().log())
    truth("iaf-vae", "sum of p(x) over all 2 x 2 pictures", "1", (exact.exp().sum() - 1).abs(), 2e-15)
    truth("iaf-vae", "ln E[w], nats", "ln p(x) by quadrature", (torch.stack(likelihoods) - exact).abs().max(), 5e-5)
    gaps = exact - torch.stack(bounds)
    assert gaps.min() > 1e-4
    assert gaps.mean() > 0.01
    error = (made.elbo(x, samples=5000) - exact).abs().max()
    truth("iaf-vae", "bound of 5,000 samples, nats", "ln p(x) by quadrature", error, 0.02)


@pytest.mark.parametrize("objective", [ELBO(free_bits=0.1, warmup_steps=9), ImportanceWeighted(2)])
@pytest.mark.parametrize("choices", [{"weight_norm": True}, {"placed": True}])
def test_the_loss_of_a_batch_is_the_mean_over_its_halves(truth, objective, choices):
    made = model(objective=objective, flow_steps=2, **choices)
    whole = Batch(binary_pictures()[:4].repeat(1, 1, 4, 4), seeds=range(4))
    total = made(whole).total
    error = ((total - (made(whole[:2]).total + made(whole[2:]).total) / 2) / total).abs().detach()
    truth("iaf-vae", "loss of a batch, relative", "mean over its halves", error, 1e-15)


def test_of_fewer_levels_only_those_are_drawn():
    made = model(flow_steps=1)
    assert torch.equal(made.sample(2, layers=3), made.sample(2))
    assert torch.equal(made.sample(2, layers=3, temperature=0.0), made.sample(2, layers=0))
    one = made.sample(2, layers=1)
    assert not torch.allclose(one, made.sample(2), atol=1e-6)
    assert torch.allclose(one[1], made.sample(1, layers=1, seeds=1)[0])


def test_every_choice_is_that_of_the_network():
    made = model(flow_steps=3, flow_layers=2, placed=True, weight_norm=True)
    for level in made.levels:
        assert [step.reverse for step in level.flow] == [False, True, False]
        assert all(len(step.layers) == 2 for step in level.flow)
    assert made.above.shape == (6, 2, 2)
    plain = model()
    assert plain.above.shape == (6, 1, 1)
    assert any("original0" in name for name, _ in made.named_parameters())  # the lengths of weights
    assert not any("original0" in name for name, _ in plain.named_parameters())


@torch.no_grad()
def test_a_block_answers_as_loudly_as_it_is_told():
    quiet, loud = model(residual=0.1).levels[0], model(residual=1.0).levels[0]
    loud.load_state_dict(quiet.state_dict())
    state, z = torch.randn(1, 6, 2, 2).double(), torch.randn(1, 2, 2, 2).double()
    rest = quiet.look(state)[1]
    assert torch.allclose(10 * (quiet.onward(state, rest, z) - state), loud.onward(state, rest, z) - state)
    x = torch.randn(1, 6, 4, 4).double()
    quiet, loud = model(residual=0.1).levels[-1], model(residual=1.0).levels[-1]
    loud.load_state_dict(quiet.state_dict())
    assert torch.allclose(10 * (quiet.see(x)[1] - x), loud.see(x)[1] - x)


@torch.no_grad()
def test_the_gate_is_what_a_step_keeps_of_z_where_the_network_says_nothing():
    for gate in (0.0, 2.0):
        step = IAFStep(config(gate=gate)).double()
        for parameter in step.last.parameters():
            parameter.zero_()
        z = torch.randn(1, 2, 3, 2).double()
        y, log_sigma = step(z, torch.zeros(1, 6, 3, 2).double())
        assert torch.allclose(y, torch.sigmoid(torch.tensor(gate).double()) * z)
        assert torch.allclose(log_sigma.exp(), torch.sigmoid(torch.tensor(gate).double()))


def test_pictures_in_colour_are_drawn_reproduced_and_diagnosed():
    made = IAFVAE(IAFConfig(8, 3, 2, 6, (1, 2)))
    assert made.sample(2).shape == (2, 3, 8, 8)
    x = torch.rand(2, 3, 8, 8)
    seen = made.recognise(Batch(x))
    still = [torch.zeros(2, 2, size, size) for size in (2, 2, 4)]
    expected = made.descend(2, seen, lambda k, prior, posterior: posterior.draw(still[k], prior).z)
    assert torch.equal(made.reconstruct(x), made.likelihood.mean(expected))
    found = made.latents(torch.rand(2, 3, 8, 8))
    assert found.kl.shape == (2, 2 * 3)  # maps of three groups
    assert found.means.shape == (2, 2 * (4 + 4 + 16))
    assert made.encode(x).shape == (2, 2 * (4 + 4 + 16))
    assert IAFConfig.from_dict(made.config.to_dict()) == made.config
    assert {"sample", "elbo", "encode and decode", "reconstruct"} <= set(abilities(IAFVAE))


@pytest.mark.parametrize(
    ("choices", "complaint"),
    [
        ({"image_size": 6}, "halved 2 times"),
        ({"depths": ()}, "at least one level"),
        ({"latent": 8}, "width must be at least 8"),
        ({"flow_layers": 0}, "flow_layers"),
        ({"objective": ImportanceWeighted(3, "doubly")}, "doubly"),
    ],
)
def test_choices_that_cannot_be_are_refused(choices, complaint):
    with pytest.raises(ConfigError, match=complaint):
        IAFVAE(config(**choices))
