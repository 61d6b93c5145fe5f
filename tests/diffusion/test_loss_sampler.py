"""Times drawn by their losses: unbiased, less noisy, and the same for however many processes and sessions."""

from types import SimpleNamespace

import pytest
import torch

from mezzotint.core.batch import Batch, PictureRandom
from mezzotint.diffusion.chain import REMEMBERED, ChainConfig, ChainModel, LossSecondMoment
from mezzotint.nn.unet import UNetConfig

TINY = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention=(False, True), groups=4)
T = 50
# Losses as of a bound: the first terms are hundreds of times the last; each picture's own factor
LOSSES = 100.0 / torch.arange(1, T + 1, dtype=torch.float64) ** 1.5


def told(losses=LOSSES, rounds=REMEMBERED):
    """A sampler that has seen each step so many times."""
    sampler = LossSecondMoment(T)
    for _ in range(rounds):
        sampler.note(torch.arange(T), losses)
        sampler.update()
    return sampler


def test_times_are_uniform_until_every_step_has_ten_losses():
    sampler = told(rounds=REMEMBERED - 1)
    sampler.note(torch.arange(T - 1), LOSSES[:-1])
    sampler.update()
    assert torch.equal(sampler.probabilities, torch.full((T,), 1 / T, dtype=torch.float64))
    sampler.note(torch.tensor([T - 1]), LOSSES[-1:])
    sampler.update()
    assert not torch.equal(sampler.probabilities, torch.full((T,), 1 / T, dtype=torch.float64))


def test_probabilities_are_those_of_the_paper(truth):
    """Nichol and Dhariwal 2021, eq. 18, of ten different losses of each step, but for a thousandth that stays even."""
    sampler, losses = LossSecondMoment(T), torch.rand(REMEMBERED, T) * LOSSES.float()
    for row in losses:
        sampler.note(torch.arange(T), row)
    sampler.update()
    roots = losses.double().square().mean(0).sqrt()
    expected = 0.999 * roots / roots.sum() + 0.001 / T
    error = (sampler.probabilities / expected - 1).abs().max()
    truth("loss-second-moment", "probabilities, relative", "eq. 18", error, 1e-13)
    truth("loss-second-moment", "sum of the probabilities", "1", abs(sampler.probabilities.sum() - 1), 1e-14)


def test_the_expected_loss_is_the_mean_over_all_steps(truth):
    """Exactly, by adding up every step with its chance, also where the losses have changed since: E_p[L / (T p)]."""
    sampler = told()
    now = LOSSES.flip(0) + 0.3
    expected = (sampler.probabilities * sampler.importance(torch.arange(T)) * now).sum()
    truth("loss-second-moment", "expected loss, relative", "mean over all steps", abs(expected / now.mean() - 1), 1e-14)


def test_the_loss_is_less_noisy_than_with_uniform_times(truth):
    """The variance of one draw, by adding up: with p in proportion to the loss it would be 0."""
    sampler = told()
    importance = sampler.importance(torch.arange(T))
    variance = (sampler.probabilities * (importance * LOSSES - LOSSES.mean()) ** 2).sum()
    uniform = ((LOSSES - LOSSES.mean()) ** 2).mean()
    what = "variance of the loss, losses k^-1.5, relative to uniform times"
    truth("loss-second-moment", what, "0", variance / uniform, 2e-6)


def test_steps_are_drawn_with_their_probabilities(truth):
    """Of evenly spread random numbers, every step gets its share of them."""
    sampler, n = told(), 100_000
    even = torch.arange(n) * (2**53 // n) + 2**52 // n
    k = sampler.draw(SimpleNamespace(integers=lambda low, high: even, device="cpu"))
    shares = torch.bincount(k, minlength=T) / n
    truth(
        "loss-second-moment",
        "shares of 100 000 even numbers",
        "probabilities",
        (shares - sampler.probabilities).abs().max(),
        2e-5,
    )


def test_the_time_of_a_picture_depends_on_its_seed_alone():
    sampler = told()
    together = sampler.draw(PictureRandom([3, 4, 5]))
    assert together.tolist() == [int(sampler.draw(PictureRandom([seed]))) for seed in (3, 4, 5)]
    assert len(set(sampler.draw(PictureRandom(range(40))).tolist())) > 3


def test_only_the_last_ten_losses_of_a_step_count():
    """Whatever came in one batch or another, as a list of each step's losses would have it."""
    generator = torch.Generator().manual_seed(0)
    sampler, lists = LossSecondMoment(4), [[] for _ in range(4)]
    for size in (3, 30, 1, 60, 0, 7):
        k, loss = torch.randint(4, (size,), generator=generator), torch.rand(size, generator=generator)
        sampler.note(k, loss)
        sampler.update()
        for step, value in zip(k.tolist(), loss.tolist()):
            lists[step].append(value)
    assert [sorted(row) for row in sampler.losses.tolist()] == [sorted(row[-REMEMBERED:]) for row in lists]
    assert sampler.counts.tolist() == [len(row) for row in lists]


def test_losses_that_are_not_numbers_are_forgotten():
    sampler = told()
    before = sampler.probabilities
    sampler.note(torch.tensor([1, 2, 3]), torch.tensor([float("nan"), float("inf"), float("-inf")]))
    sampler.update()
    assert torch.equal(sampler.probabilities, before)


def test_losses_of_zero_leave_uniform_times():
    assert torch.equal(told(0 * LOSSES).probabilities, torch.full((T,), 1 / T, dtype=torch.float64))
    assert told(torch.cat([LOSSES[:-1], LOSSES.new_zeros(1)])).probabilities[-1] == pytest.approx(0.001 / T)


def test_several_processes_learn_what_one_would(monkeypatch):
    """Process r of three has the pictures r, r + 3, ...; the losses of all are put back in their order."""
    k, loss = torch.randint(4, (60,)), torch.rand(60)
    alone = LossSecondMoment(4)
    alone.note(k, loss)
    alone.update()
    shares = [k[r::3] for r in range(3)], [loss[r::3] for r in range(3)]

    def all_gather(parts, mine):
        everyone = shares[0] if mine.dtype == torch.int64 else shares[1]
        for part, value in zip(parts, everyone):
            part.copy_(value)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    for rank in range(3):
        one = LossSecondMoment(4)
        for half in (slice(0, 10), slice(10, 20)):  # a batch may go through the model in parts
            one.note(shares[0][rank][half], shares[1][rank][half])
        one.update()
        assert torch.equal(one.losses, alone.losses)
        assert torch.equal(one.counts, alone.counts)


# In a model -----------------------------------------------------------------------------------------------------------


def model(seed=0):
    torch.manual_seed(seed)
    return ChainModel(
        ChainConfig(8, 1, network=TINY, times="loss-second-moment", variance="learned", objective="hybrid")
    )


def batch(step=0, n=4):
    images = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(step)) * 2 - 1
    return Batch(images, seeds=list(range(step * n, step * n + n)))


def warm(made):
    """Ten losses for each of the thousand steps."""
    for _ in range(REMEMBERED):
        made.sampler.note(torch.arange(1000), 1 / torch.arange(1, 1001))
    made.sampler.update()
    return made


def train(made, steps):
    optimizer = torch.optim.SGD(made.parameters(), lr=1e-2)
    losses = []
    for step in steps:
        loss = made(batch(step)).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        made.after_step(step)
        losses.append(loss.detach())
    return losses


def test_the_loss_of_a_batch_is_the_mean_of_its_parts_while_it_learns(truth):
    """What a picture costs is known to the sampler only after the step, so no part of a batch moves another."""
    made, whole = warm(model()).double().train(), batch(1, 6)
    whole.images = whole.images.double()
    total = made(whole).total
    halves = (made(whole[:2]).total * 2 + made(whole[2:]).total * 4) / 6
    truth(
        "loss-second-moment",
        "loss of a batch, relative",
        "mean over its parts",
        abs(total / halves - 1).detach(),
        1e-14,
    )


def test_what_is_noted_is_the_loss_of_each_picture(truth):
    """Without its importance: the loss of the batch is the mean of both together."""
    made = warm(model()).double()
    one = batch()
    one.images = one.images.double()
    total = made(one).total
    ((k, losses),) = made.sampler._seen
    mean = (made.sampler.importance(k) * losses).mean()
    truth(
        "loss-second-moment", "losses that are noted, relative (float32)", "loss", abs(mean / total - 1).detach(), 1e-7
    )


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped():
    through = warm(model())
    losses = train(through, range(4))
    stopped = warm(model())
    train(stopped, range(2))
    resumed = model(seed=1)
    resumed.load_state_dict(stopped.state_dict())
    assert torch.equal(torch.stack(train(resumed, range(2, 4))), torch.stack(losses[2:]))
    assert torch.equal(resumed.sampler.losses, through.sampler.losses)
    assert through.sampler.counts.sum() == 10_000 + 4 * 4


def test_looking_at_a_loss_teaches_nothing():
    made = warm(model()).eval()
    made(batch())
    made.after_step(0)
    assert made.sampler.counts.sum() == 10_000


def test_other_models_have_no_memory_of_losses():
    plain = ChainModel(ChainConfig(8, 1, network=TINY))
    assert not list(plain.buffers())
    plain.after_step(0)
