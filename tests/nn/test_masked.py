"""Masked layers: who depends on whom, found out by differentiation."""

import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mezzotint.core.errors import ConfigError
from mezzotint.nn.masked import MaskedConv2d, MaskedMLP


def jacobian(function, x):
    """d y / d x of one row, |.| of each pair: (outputs..., inputs...)."""
    return torch.autograd.functional.jacobian(function, x).abs()


@pytest.mark.parametrize(("kind", "kernel"), [("A", 3), ("B", 3), ("A", (1, 5)), ("B", (5, 3)), ("A", 1), ("B", 1)])
@pytest.mark.parametrize("colours", [1, 3])
def test_a_masked_convolution_sees_all_before_in_its_window_and_nothing_else(kind, kernel, colours):
    layer = MaskedConv2d(6, 3, kernel, kind, colours).double()
    torch.nn.init.uniform_(layer.weight, 0.5, 1.0)
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    seen = jacobian(lambda x: layer(x[None])[0], torch.randn(6, 5, 5, dtype=torch.float64)) > 0
    places = list(itertools.product(range(5), range(5)))
    for (i, j), (row, column), out, channel in itertools.product(places, places, range(3), range(6)):
        inside = abs(row - i) <= height // 2 and abs(column - j) <= width // 2
        ours, theirs = out * colours // 3, channel * colours // 6
        before = (row, column) < (i, j) or (
            (row, column) == (i, j) and (theirs < ours or (kind == "B" and theirs == ours))
        )
        assert seen[out, i, j, channel, row, column] == (inside and before)


def test_stacked_masked_convolutions_depend_on_earlier_values_alone():
    """Also on those of red and green, for blue: eq. 66 of the survey."""
    first, second = MaskedConv2d(3, 9, 3, "A", 3).double(), MaskedConv2d(9, 3, 3, "B", 3).double()
    x = torch.randn(3, 4, 4, dtype=torch.float64)
    seen = jacobian(lambda x: second(F.elu(first(x[None])))[0], x) > 0
    in_order = seen.permute(1, 2, 0, 4, 5, 3).reshape(48, 48)  # values as they come: row, column, colour
    assert not in_order.triu().any()
    assert in_order[1, 0]  # green sees red,
    assert in_order[2, 0]  # blue both
    assert in_order[2, 1]


def test_convolutions_that_cannot_be_masked_are_refused():
    with pytest.raises(ConfigError, match="odd"):
        MaskedConv2d(1, 1, 4, "A")
    with pytest.raises(ConfigError, match="shared out"):
        MaskedConv2d(2, 6, 3, "A", 3)


CHOICES = {
    "no hidden layer": {"widths": (), "direct": True},
    "one": {"widths": (40,)},
    "two, direct": {"widths": (30, 40), "direct": True},
    "several numbers": {"widths": (40,), "outputs": 3},
    "reversed": {"widths": (40,), "orders": "reversed"},
    "random orders": {"widths": (30, 30), "orders": "random", "masks": 3},
    "resampled": {"widths": (40,), "masks": 2},
    "told a vector": {"widths": (40,), "context": 4},
    "told a vector, no hidden layer": {"widths": (), "direct": True, "context": 4, "outputs": 2},
}


def network(choice):
    made = MaskedMLP(6, activation=torch.tanh, **CHOICES[choice]).double()
    context = torch.randn(3, CHOICES[choice]["context"], dtype=torch.float64) if "context" in CHOICES[choice] else None
    return made, context


@pytest.mark.parametrize("choice", CHOICES)
def test_each_answer_depends_on_the_inputs_before_it_in_the_order(choice):
    made, context = network(choice)
    x = torch.randn(1, 6, dtype=torch.float64)
    told = context[:1] if context is not None else None
    for number in range(made.masks):
        seen = jacobian(lambda x, number=number: made(x, told, number), x)[0, :, :, 0] > 0  # (D, outputs, D)
        places = made.places(number)
        in_order = seen[places][:, :, places]
        for out in range(made.outputs):
            assert torch.equal(in_order[:, out], torch.ones(6, 6).tril(-1).bool())


def test_each_number_has_masks_of_its_own_and_an_order_where_these_are_random():
    orders = [tuple(network("random orders")[0].places(number).tolist()) for number in range(3)]
    assert len(set(orders)) == 3
    same, _ = network("resampled")
    assert torch.equal(same.places(0), same.places(1))
    x = torch.randn(1, 6, dtype=torch.float64)
    assert not torch.allclose(same(x, number=0), same(x, number=1))


def test_every_answer_may_depend_on_all_that_is_told():
    for choice in ("told a vector", "told a vector, no hidden layer"):
        made, context = network(choice)
        x = torch.randn(1, 6, dtype=torch.float64)
        seen = jacobian(lambda told, made=made, x=x: made(x, told), context[:1])[0, :, :, 0] > 0
        if choice == "told a vector":
            assert seen[1:].all()  # hidden units see at least the first input, so the first answer sees none of them
        else:
            assert seen.all()


@pytest.mark.parametrize("choice", CHOICES)
def test_one_input_after_the_other_gives_the_same_answers(truth, choice):
    made, context = network(choice)
    x, error = torch.randn(3, 6, dtype=torch.float64), 0.0
    for number in range(made.masks):
        whole, cache, value = made(x, context, number), made.begin(3, context, number), None
        for place in made.places(number):
            error = max(error, (made.step(cache, value) - whole[:, place]).abs().max().item())
            value = x[:, place]
    truth("made", f"one input after the other ({choice})", "all at once", error, 1e-15)


def test_all_steps_together_multiply_as_often_as_one_pass():
    made = MaskedMLP(12, (30, 20), direct=True)
    once, steps = FlopCounterMode(display=False), FlopCounterMode(display=False)
    with torch.no_grad(), once:
        made(torch.zeros(5, 12))
    with torch.no_grad(), steps:
        cache = made.begin(5)
        for place in range(12):
            made.step(cache, torch.zeros(5) if place else None)
    assert steps.get_total_flops() == once.get_total_flops()


def test_a_saved_network_keeps_its_masks():
    one, other = (MaskedMLP(6, (20,), orders="random", seed=seed) for seed in (0, 1))
    x = torch.randn(2, 6)
    assert not torch.equal(one.places(), other.places())
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))


def test_layers_that_would_see_nothing_are_refused():
    with pytest.raises(ConfigError, match="choose one"):
        MaskedMLP(4, ())
    with pytest.raises(ConfigError, match="at least 1"):
        MaskedMLP(4, (3,), masks=0)
