"""The trainer: schedules, steps, streams, resuming and stopping are what their names promise."""

import copy
import functools
import hashlib
import itertools
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from ce_baseline import CrossEntropy
from mcr2.backbones import BACKBONES
from mcr2.data import Augmentation, Split, batches
from mcr2.evaluation import evaluate
from mcr2.objectives import Objective, RateReduction, VariationalRateReduction
from mcr2.training import (
    Encoder,
    Feed,
    History,
    Interrupted,
    TrainingConfig,
    Watch,
    learning_rate,
    seeded,
    train,
)
from mcr2.training.checkpoint import read_checkpoint, write_checkpoint
from mcr2.training.config import SCHEDULES

K, D, N = 3, 6, 30
SHIFTS = Augmentation(shift=1, flip=True)


def make_split(n=N, seed=0):
    """Images that carry their class: a bright patch at the class's place, in noise."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 100, (n, 1, 8, 8), generator=generator)
    labels = torch.arange(n) % K
    for image, label in zip(images, labels, strict=True):
        image[0, :, 2 * int(label) : 2 * int(label) + 2] += 120
    return Split(images.to(torch.uint8), labels, labels)


SPLIT = make_split()


class Flat(nn.Module):
    """A linear layer on pixels: a network whose gradients one can follow by hand."""

    def __init__(self, d=D):
        super().__init__()
        self.linear = nn.Linear(64, d)

    def forward(self, images):
        return self.linear(images.flatten(1))


def network(seed=0, d=D):
    with seeded(seed):
        return BACKBONES["resnet10_w8"](in_channels=1, feature_dim=d)


def flat(seed=0, d=D):
    with seeded(seed):
        return Flat(d)


def cross_entropy(seed=0):
    with seeded(seed):
        return CrossEntropy(K, D)


def config(**changes):
    return TrainingConfig(
        **({"epochs": 3, "batch_size": 10, "lr": 0.05, "evaluate_every": 1} | changes)
    )


class Spy(Objective):
    """Pulls features to zero and remembers all that it was told."""

    def __init__(self):
        super().__init__(K)
        self.calls = []

    def loss(self, features, labels, context):
        draw = torch.rand(3, generator=context.generator)
        self.calls.append((features.detach().clone(), labels.clone(), context, draw))
        return features.square().mean(), {"step": torch.tensor(float(context.step))}


# --------------------------------------------------------------------------------- learning rates


def torch_rates(scheduler, steps):
    """The rates that a scheduler of torch's gives to each step."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    schedule = scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < steps:
            schedule.step()
    return rates


def our_rates(epochs, per_epoch, **changes):
    settings = TrainingConfig(epochs=epochs, lr=0.3, **changes)
    return [learning_rate(settings, step, per_epoch) for step in range(epochs * per_epoch)]


# No rise of exactly one step: there torch divides by zero.
@pytest.mark.parametrize("epochs, per_epoch", [(10, 7), (3, 1), (1, 2), (1, 4), (5, 1)])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.3, 0.75, 0.9, 1.0])
def test_one_cycle_is_torchs(epochs, per_epoch, warmup):
    total = epochs * per_epoch
    expected = torch_rates(
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            0.3,
            total_steps=total,
            pct_start=warmup,
            anneal_strategy="cos",
            cycle_momentum=False,
        ),
        total,
    )
    got = our_rates(epochs, per_epoch, schedule="one_cycle", warmup=warmup)
    assert got == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("epochs, per_epoch", [(10, 7), (1, 1), (4, 1)])
def test_cosine_is_torchs(epochs, per_epoch):
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, epochs * per_epoch),
        epochs * per_epoch,
    )
    assert our_rates(epochs, per_epoch, schedule="cosine") == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("milestones", [(), (2,), (1, 3), (2, 2), (0, 9)])
def test_steps_are_torchs_milestones_counted_in_epochs(milestones):
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [m for m in milestones if m], gamma=0.2),
        5,
    )
    # torch's scheduler is first asked after epoch 0, so a milestone there never comes.
    expected = np.repeat(expected, 4) * (0.2 if 0 in milestones else 1)
    got = our_rates(5, 4, schedule="steps", milestones=milestones, decay=0.2)
    assert got == pytest.approx(expected.tolist(), rel=1e-9)


def test_constant_is_constant():
    assert our_rates(3, 4, schedule="constant") == [0.3] * 12


# ------------------------------------------------------------------------------------- the steps


def by_hand(backbone, objective, settings, feed):
    """The same run once more: explicit gradients, explicit updates, no optimiser."""
    modules = nn.ModuleList([backbone, objective])
    modules.train()
    parameters = list(modules.parameters())
    first = [torch.zeros_like(p) for p in parameters]
    second = [torch.zeros_like(p) for p in parameters]
    per_epoch = math.ceil(len(SPLIT) / settings.batch_size)
    step = 0
    for epoch in range(settings.epochs):
        for images, labels, _ in feed.epoch(SPLIT, settings.batch_size, epoch):
            lr = learning_rate(settings, step, per_epoch)
            loss, _ = objective(objective.embed(backbone(images)), labels)
            gradients = torch.autograd.grad(loss, parameters)
            step += 1
            with torch.no_grad():
                for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                    if settings.optimizer == "sgd":
                        m.mul_(settings.momentum).add_(g + settings.weight_decay * p)
                        p.sub_(lr * m)
                    else:
                        p.mul_(1 - lr * settings.weight_decay)
                        m.mul_(0.9).add_(0.1 * g)
                        v.mul_(0.999).add_(0.001 * g * g)
                        unbiased = (v / (1 - 0.999**step)).sqrt() + 1e-8
                        p.sub_(lr * (m / (1 - 0.9**step)) / unbiased)
    return step


@pytest.mark.parametrize("make_network", [flat, network])
@pytest.mark.parametrize("make_objective", [cross_entropy, lambda: RateReduction(K)])
@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "lr": 0.02, "momentum": 0.7, "weight_decay": 0.03},
        {"optimizer": "adamw", "lr": 0.003, "weight_decay": 0.2, "schedule": "cosine"},
    ],
    ids=["sgd", "adamw"],
)
def test_training_is_a_loop_written_by_hand(make_network, make_objective, settings):
    settings = config(epochs=2, batch_size=12, **settings)
    feed = Feed(sampling_seed=3, augmentation_seed=4, augmentation=SHIFTS)
    # From weights at which no ReLU is about to flip: there, rounding would decide the gradient.
    ours, theirs = make_network(seed=1), make_network(seed=1)
    loss, same_loss = make_objective(), make_objective()
    start = copy.deepcopy(ours.state_dict())
    result = train(ours, loss, SPLIT, settings, feed)
    assert by_hand(theirs, same_loss, settings, feed) == result.steps == 2 * 3
    # Adam divides by the root of a squared gradient: rounding grows where that is tiny.
    tolerance = 1e-6 if make_network is flat and settings.optimizer == "sgd" else 2e-4
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(
            value, theirs.state_dict()[name], rtol=tolerance, atol=tolerance, msg=name
        )
        assert not torch.equal(value, start[name])
    for a, b in zip(loss.parameters(), same_loss.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


class Exempt(Objective):
    """Two parameters that the loss ignores, one of them exempt from weight decay."""

    def __init__(self):
        super().__init__(K)
        self.decayed = nn.Parameter(torch.ones(2))
        self.exempt = nn.Parameter(torch.ones(2))

    def loss(self, features, labels, context):
        return features.mean() + 0 * (self.decayed.sum() + self.exempt.sum()), {}

    def param_groups(self):
        return [{"params": [self.decayed]}, {"params": [self.exempt], "weight_decay": 0.0}]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_only_parameters_that_an_objective_exempts_keep_from_decaying(optimizer):
    loss = Exempt()
    settings = config(
        epochs=2,
        optimizer=optimizer,
        lr=0.1,
        momentum=0.0,
        weight_decay=0.5,
        schedule="constant",
    )
    train(flat(), loss, SPLIT, settings)
    assert torch.equal(loss.exempt, torch.ones(2))
    torch.testing.assert_close(loss.decayed.data, torch.full((2,), (1 - 0.1 * 0.5) ** 6))


# ----------------------------------------------------------------------------------- evaluations


@pytest.mark.parametrize(
    "epochs, every, expected",
    [(7, 3, [0, 3, 6, 7]), (6, 3, [0, 3, 6]), (2, 5, [0, 2]), (0, 1, [0])],
)
def test_evaluations_stand_at_zero_at_every_nth_epoch_and_at_the_last(epochs, every, expected):
    seen = []

    def count(encoder):
        seen.append(encoder)
        return {"count": len(seen)}

    settings = config(epochs=epochs, evaluate_every=every)
    result = train(flat(), Spy(), SPLIT, settings, watch=Watch(count))
    assert [entry["epoch"] for entry in result.history] == expected
    assert [entry["step"] for entry in result.history] == [3 * epoch for epoch in expected]
    assert [entry["measures"]["count"] for entry in result.history] == [
        i + 1 for i in range(len(expected))
    ]
    assert all(isinstance(encoder, Encoder) for encoder in seen)
    seconds = [entry["seconds"] for entry in result.history]
    assert seconds == sorted(seconds)
    assert result.wall_seconds >= seconds[-1] > 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_epochs_leave_the_network_as_it_was(schedule):
    net = network()
    start = copy.deepcopy(net.state_dict())
    result = train(net, RateReduction(K), SPLIT, config(epochs=0, schedule=schedule))
    assert result.steps == 0
    assert result.reason is None
    assert result.history[0]["loss"] is None
    assert all(torch.equal(v, start[k]) for k, v in net.state_dict().items())


def test_an_entry_averages_the_loss_and_its_terms_since_the_one_before():
    spy = Spy()
    settings = config(epochs=5, evaluate_every=2, schedule="one_cycle")
    result = train(flat(), spy, SPLIT, settings)
    losses = [float(features.square().mean()) for features, *_ in spy.calls]
    spans = [range(6), range(6, 12), range(12, 15)]
    assert result.history[0]["terms"] == {}
    for entry, span in zip(result.history[1:], spans, strict=True):
        assert entry["terms"] == {"step": pytest.approx(np.mean(span))}
        assert entry["loss"] == pytest.approx(np.mean([losses[i] for i in span]), rel=1e-6)
        assert entry["lr"] == learning_rate(settings, span[-1], 3)


@pytest.mark.parametrize("wanted", [{0, 4}, {2}, {6}, set(), {0, 2, 4, 6}, {1, 4}])
def test_exactly_the_weights_that_keep_asks_for_are_kept(wanted):
    states = []

    def snapshot(encoder):
        states.append(copy.deepcopy(encoder.state_dict()))
        return {}

    result = train(
        network(),
        cross_entropy(),
        SPLIT,
        config(epochs=6, evaluate_every=2),
        watch=Watch(snapshot, keep=lambda _: wanted),
    )
    assert result.kept.keys() == wanted & {0, 2, 4, 6}
    for epoch, kept in result.kept.items():
        assert kept.keys() == states[0].keys()
        assert all(torch.equal(kept[name], states[epoch // 2][name]) for name in kept)


def test_keep_may_change_its_mind_and_only_the_last_is_kept_by_default():
    best = iter([0.2, 0.5, 0.3, 0.6, 0.1])
    asked = []

    def keep(history):
        asked.append([entry["epoch"] for entry in history])
        return {max(history, key=lambda entry: entry["measures"]["score"])["epoch"]}

    result = train(
        flat(),
        Spy(),
        SPLIT,
        config(epochs=4),
        watch=Watch(lambda _: {"score": next(best)}, keep),
    )
    assert result.kept.keys() == {3}
    assert asked == [list(range(n)) for n in range(1, 6)]
    assert train(flat(), Spy(), SPLIT, config(epochs=4)).kept.keys() == {4}


def test_progress_is_told_once_an_epoch():
    told = []
    train(
        flat(),
        Spy(),
        SPLIT,
        config(epochs=4, evaluate_every=2),
        watch=Watch(lambda _: {"m": len(told)}, progress=told.append),
    )
    assert [p.epoch for p in told] == [1, 2, 3, 4]
    assert [p.epochs for p in told] == [4] * 4
    assert [p.terms["step"] for p in told] == [2, 5, 8, 11]
    assert [p.measures["m"] for p in told] == [0, 1, 1, 3]
    assert told[0].seconds_left > 0
    assert told[-1].seconds_left == 0


# --------------------------------------------------------------------------- what an objective sees


def test_the_context_says_which_samples_and_when():
    spy = Spy()
    train(flat(), spy, SPLIT, config(epochs=3), Feed(sampling_seed=5))
    contexts = [context for *_, context, _ in spy.calls]
    assert [c.step for c in contexts] == list(range(9))
    assert [c.epoch for c in contexts] == [0] * 3 + [1] * 3 + [2] * 3
    assert [c.progress for c in contexts] == pytest.approx([step / 9 for step in range(9)])
    orders = torch.cat([c.indices for c in contexts]).view(3, N)
    assert torch.equal(orders.sort(1).values, torch.arange(N).expand(3, N))
    assert not torch.equal(orders[0], orders[1])
    for _, labels, context, _ in spy.calls:
        assert torch.equal(labels, SPLIT.labels[context.indices])


def test_an_objectives_draws_are_a_stream_of_their_own():
    def draws(**seeds):
        spy = Spy()
        train(flat(), spy, SPLIT, config(epochs=2), Feed(**seeds))
        return torch.stack([draw for *_, draw in spy.calls])

    reference = draws(objective_seed=3)
    assert torch.equal(draws(objective_seed=3, sampling_seed=9, augmentation_seed=9), reference)
    assert not torch.equal(draws(objective_seed=4), reference)
    assert len(reference.unique(dim=0)) == len(reference) == 6


class Latched(Spy):
    """Remembers what it was shown before each epoch."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def on_epoch(self, features, labels):
        self.shown.append((features, labels, len(self.calls)))


def test_on_epoch_sees_all_samples_in_their_order_before_each_epoch():
    states = []

    def snapshot(encoder):
        states.append(copy.deepcopy(encoder))
        return {}

    loss = Latched()
    train(network(), loss, SPLIT, config(epochs=3), Feed(augmentation=SHIFTS), Watch(snapshot))
    assert [calls for *_, calls in loss.shown] == [0, 3, 6]
    for (features, labels, _), encoder in zip(loss.shown, states, strict=False):
        with torch.no_grad():
            expected = encoder.eval()(SPLIT.images.float() / 255)
        torch.testing.assert_close(features, expected)
        assert not features.requires_grad
        assert torch.equal(labels, SPLIT.labels)
    assert not torch.allclose(loss.shown[0][0], loss.shown[1][0])


def test_features_that_nobody_wants_are_not_computed():
    def passes(loss):
        modes = []
        net = flat()
        net.register_forward_pre_hook(lambda module, _: modes.append(module.training))
        train(net, loss, SPLIT, config(epochs=2))
        return modes

    assert passes(Spy()) == [True] * 6
    assert passes(Latched()) == ([False] * 3 + [True] * 3) * 2


# ---------------------------------------------------------------------------------------- streams


def digests(loss=None, *, split=SPLIT, augmentation=SHIFTS, **changes):
    seeds = {k: changes.pop(k) for k in list(changes) if k.endswith("seed")}
    seeds = {"sampling_seed": 1, "augmentation_seed": 2} | seeds
    shuffle = changes.pop("shuffle", True)
    return train(
        flat(),
        loss or Spy(),
        split,
        config(**({"epochs": 1} | changes)),
        Feed(augmentation=augmentation, shuffle=shuffle, **seeds),
    ).proof


def test_digests_are_of_the_first_epochs_order_and_images():
    streams = {"sampling_seed": 1, "augmentation_seed": 2, "augmentation": SHIFTS}
    fed = list(batches(SPLIT, 10, epoch=0, **streams))
    order = np.concatenate([batch.indices.numpy() for batch in fed])
    images = np.empty(SPLIT.images.shape, np.uint8)
    for batch in fed:
        images[batch.indices.numpy()] = np.rint(batch.images.numpy() * 255)
    assert digests(epochs=2) == {
        "sampling": hashlib.sha256(order.astype("<i8").tobytes()).hexdigest(),
        "augmentation": hashlib.sha256(images.tobytes()).hexdigest(),
    }


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 7},
        {"epochs": 3},
        {"lr": 0.3},
        {"optimizer": "adamw"},
        {"objective_seed": 5},
        {"loss": RateReduction(K)},
    ],
    ids=str,
)
def test_methods_with_other_recipes_are_fed_alike(change):
    assert digests(**change) == digests()


@pytest.mark.parametrize(
    "change, changed",
    [
        ({"augmentation_seed": 3}, {"augmentation"}),
        ({"augmentation": Augmentation(shift=1)}, {"augmentation"}),
        ({"sampling_seed": 3}, {"sampling"}),
        ({"shuffle": False}, {"sampling"}),
        ({"split": make_split(seed=1)}, {"augmentation"}),
    ],
    ids=str,
)
def test_a_digest_changes_with_its_own_stream_only(change, changed):
    reference, got = digests(), digests(**change)
    assert {name for name in reference if got[name] != reference[name]} == changed


@pytest.mark.parametrize("make_objective", [cross_entropy, lambda: RateReduction(K), Latched])
def test_the_global_generators_are_left_alone(make_objective):
    torch.manual_seed(11)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    train(network(), make_objective(), SPLIT, config(epochs=1), Feed(augmentation=SHIFTS))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_the_global_generators_have_no_say():
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = network()
        train(net, cross_entropy(), SPLIT, config(epochs=1), Feed(augmentation=SHIFTS))
        results.append(net.state_dict())
    assert all(torch.equal(v, results[1][k]) for k, v in results[0].items())


# --------------------------------------------------------------------------------------- resuming


class Buffered(Objective):
    """A loss with a stateful buffer, per-sample state and draws of its own."""

    def __init__(self):
        super().__init__(K)
        self.register_buffer("mean", torch.zeros(D))
        self.register_buffer("seen", torch.zeros(N, dtype=torch.int64))
        self.register_buffer("anchor", torch.zeros(D))

    def on_epoch(self, features, labels):
        self.anchor.copy_(features.mean(0))

    def loss(self, features, labels, context):
        self.seen[context.indices] += 1
        self.mean.mul_(0.9).add_(features.detach().mean(0), alpha=0.1)
        noise = torch.randn(features.shape, generator=context.generator)
        pull = (features - self.mean - self.anchor + 0.1 * noise).square().mean()
        spread = (1 + context.progress) * (features.std() - 1).square()
        return pull + spread, {"pull": pull, "spread": spread}


def with_dropout():
    with seeded(0):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(), nn.Linear(16, D))


RUNS = {
    "sgd-ce": (network, cross_entropy, {}),
    "sgd-mcr2": (network, lambda: RateReduction(K), {"batch_size": 15, "schedule": "cosine"}),
    "micro-batches": (network, lambda: RateReduction(K), {"batch_size": 15, "micro_batch": 5}),
    "bfloat16": (lambda: flat().bfloat16(), lambda: RateReduction(K), {"amp": True}),
    "adamw-ce": (network, cross_entropy, {"optimizer": "adamw", "lr": 0.003}),
    "vmcr2": (network, lambda: VariationalRateReduction(K, D, latch_every=3), {}),
    "buffered": (network, Buffered, {"schedule": "steps", "milestones": (3, 5)}),
    "dropout": (with_dropout, cross_entropy, {}),
}


def resumable(run, checkpoint, *, stop=None, progress=None):
    """A run of seven epochs, evaluated at every second, that keeps its best weights."""
    make_network, make_objective, changes = RUNS[run]
    net, loss = make_network(), make_objective()

    def score(encoder):
        encoder.eval()
        with torch.no_grad():
            features = encoder(SPLIT.images[:9].to(next(net.parameters()).dtype) / 255)
        return {"score": float(features.std()), "missing": None}

    def keep(history):
        best = min(history, key=lambda e: abs(e["measures"]["score"] - 0.4))
        return {best["epoch"], history[-1]["epoch"]}

    result = train(
        net,
        loss,
        SPLIT,
        config(epochs=7, evaluate_every=2, **changes),
        Feed(1, 2, 3, SHIFTS),
        Watch(score, keep, progress=progress),
        checkpoint=checkpoint,
        stop=stop,
    )
    return net, loss, result


def stops_after(*steps):
    """Asked after every step, says yes the so manieth times."""
    asked = itertools.count(1)
    return lambda: next(asked) in steps


def assert_same_run(got, expected):
    for a, b in zip(got[:2], expected[:2], strict=True):
        assert a.state_dict().keys() == b.state_dict().keys()
        for name, value in a.state_dict().items():
            assert torch.equal(value, b.state_dict()[name]), name
    ours, theirs = got[2], expected[2]
    assert [{**e, "seconds": 0} for e in ours.history] == [
        {**e, "seconds": 0} for e in theirs.history
    ]
    assert ours.kept.keys() == theirs.kept.keys()
    for epoch, state in theirs.kept.items():
        assert ours.kept[epoch].keys() == state.keys()
        for name, value in state.items():
            assert ours.kept[epoch][name].dtype == value.dtype
            assert torch.equal(ours.kept[epoch][name], value), name
    assert (ours.steps, ours.reason, ours.proof) == (theirs.steps, None, theirs.proof)


@pytest.mark.parametrize("run", RUNS)
def test_a_run_that_is_stopped_at_any_step_continues_to_the_same_bits(run, tmp_path):
    whole = resumable(run, None)
    path = tmp_path / "checkpoint"
    per_epoch = whole[2].steps // 7
    # In the first epoch and a later one, at an epoch's end, before an evaluation, at the very end.
    steps = [1, per_epoch, 2 * per_epoch, 3 * per_epoch + 1, whole[2].steps - 1, whole[2].steps]
    for before, step in itertools.pairwise([0, *steps]):
        with pytest.raises(Interrupted, match=f"stopped after step {step}"):
            resumable(run, path, stop=stops_after(step - before))
    told = []
    continued = resumable(run, path, progress=told.append)
    assert [p.epoch for p in told] == [7]
    assert_same_run(continued, whole)
    seconds = [entry["seconds"] for entry in continued[2].history]
    assert seconds == sorted(seconds)
    assert continued[2].wall_seconds >= seconds[-1]


def test_a_run_stopped_at_every_single_step_takes_each_once(tmp_path):
    whole, path = resumable("buffered", None), tmp_path / "checkpoint"
    for _ in range(whole[2].steps):
        with pytest.raises(Interrupted):
            resumable("buffered", path, stop=lambda: True)
    continued = resumable("buffered", path)
    assert_same_run(continued, whole)
    assert torch.equal(continued[1].seen, torch.full((N,), 7))


class Kill(BaseException):
    """Like KeyboardInterrupt: nothing in the trainer may catch it."""


def test_a_killed_run_continues_from_the_checkpoint_it_wrote_last(tmp_path, monkeypatch):
    whole, path = resumable("buffered", None), tmp_path / "checkpoint"
    original, train_often = Buffered.loss, functools.partial(train, checkpoint_seconds=0.0)

    def deadly(self, features, labels, context):
        if context.step == 13:
            raise Kill
        return original(self, features, labels, context)

    monkeypatch.setitem(globals(), "train", train_often)
    monkeypatch.setattr(Buffered, "loss", deadly)
    with pytest.raises(Kill):
        resumable("buffered", path)
    monkeypatch.setattr(Buffered, "loss", original)
    assert path.exists()
    assert_same_run(resumable("buffered", path), whole)


def test_a_checkpoint_is_written_no_more_often_than_asked(tmp_path):
    settings = config(epochs=3)
    train(flat(), Spy(), SPLIT, settings, checkpoint=tmp_path / "c", checkpoint_seconds=1e9)
    assert list(tmp_path.iterdir()) == []


def test_without_a_checkpoint_a_run_stops_all_the_same():
    with pytest.raises(Interrupted):
        train(flat(), Spy(), SPLIT, config(), stop=lambda: True)


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": network(d=5), "objective": CrossEntropy(K, 5)},
        {"objective": RateReduction(K)},
        {"config": config(lr=0.1)},
        {"feed": Feed(sampling_seed=1)},
        {"split": Split(SPLIT.images, SPLIT.labels.flip(0))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_checkpoint_of_another_run_is_refused_by_name_and_left_alone(change, tmp_path):
    path = tmp_path / "mine"
    given = {"backbone": network(), "objective": cross_entropy(), "split": SPLIT}
    given |= {"config": config(), "checkpoint": path}
    with pytest.raises(Interrupted):
        train(**given, stop=lambda: True)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=r"mine is the checkpoint of another run"):
        train(**given | change)
    assert path.read_bytes() == content


@pytest.mark.parametrize("damage", [lambda held: held[:-40], lambda _: b"not a checkpoint"])
def test_a_damaged_checkpoint_is_set_aside_and_the_run_begins_again(damage, tmp_path, caplog):
    whole, net = flat(), flat()
    expected = train(whole, cross_entropy(), SPLIT, config())
    path = tmp_path / "mine"
    with pytest.raises(Interrupted):
        train(flat(), cross_entropy(), SPLIT, config(), checkpoint=path, stop=stops_after(4))
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    result = train(net, cross_entropy(), SPLIT, config(), checkpoint=path)
    assert_same_run((net, net, result), (whole, whole, expected))
    assert [file.name for file in tmp_path.iterdir()] == ["mine.damaged"]
    assert (tmp_path / "mine.damaged").read_bytes() == damaged
    (record,) = caplog.records
    assert "mine is damaged" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_no_bit_of_a_checkpoint_can_be_flipped_unseen(tmp_path):
    path = tmp_path / "small"
    state = {"W": torch.ones(2), "half": torch.ones(1).bfloat16(), "loss": 0.1}
    write_checkpoint(path, "run", state)
    content = path.read_bytes()
    assert read_checkpoint(path, "run") == {**state, "W": pytest.approx([1, 1])}
    for place in range(len(content)):
        flipped = bytes([content[place] ^ 1 << place % 8])
        path.write_bytes(content[:place] + flipped + content[place + 1 :])
        assert read_checkpoint(path, "run") is None


# ----------------------------------------------------------------------------- the recorder alone


def test_a_recorder_that_does_not_copy_keeps_the_tensors_themselves():
    for copied in (True, False):
        net = nn.Linear(2, 2)
        history = History(net, Watch(), epochs=1, evaluate_every=1, copy=copied)
        history.evaluate_and_record(1, lr=None, loss=None, terms={})
        with torch.no_grad():
            net.weight.zero_()
        assert bool(history.result.kept[1]["weight"].any()) == copied


# ------------------------------------------------------------------------------------- not finite


class Broken(Objective):
    """Cross-entropy's stand-in that breaks at one step, in one of several ways."""

    def __init__(self, step, how):
        super().__init__(K)
        self.step, self.how = step, how

    def loss(self, features, labels, context):
        loss = features.square().mean()
        if context.step == self.step:
            if self.how == "gradient":
                # The value is 0, the gradient 0 times infinity.
                loss = loss + (0 * features).abs().sqrt().sum()
            else:
                loss = loss * float(self.how)
        return loss, {}


@pytest.mark.parametrize("how", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("step", [3, 4, 5])
def test_a_loss_that_is_not_finite_ends_the_run_with_a_reason(how, step):
    result = train(flat(), Broken(step, how), SPLIT, config(epochs=4), watch=Watch(lambda _: {}))
    assert result.reason.startswith("the loss stopped being finite in epoch 2")
    assert [entry["epoch"] for entry in result.history] == [0, 1]
    assert result.kept.keys() == {1}
    assert all(value.isfinite().all() for value in result.kept[1].values())


def test_weights_that_are_not_finite_behind_a_finite_loss_end_the_run():
    # The last step of the epoch breaks the weights, so that no loss ever shows it.
    result = train(flat(), Broken(5, "gradient"), SPLIT, config(epochs=4))
    assert "weights" in result.reason
    assert "epoch 2" in result.reason
    assert [entry["epoch"] for entry in result.history] == [0, 1]


def test_features_that_are_not_finite_end_the_run_where_the_loss_refuses_them():
    net = flat()
    net.linear.weight.data.fill_(math.inf)
    result = train(net, RateReduction(K), SPLIT, config(epochs=2))
    assert "features" in result.reason
    assert result.steps == 0


def test_an_error_of_the_loss_that_is_not_about_numbers_is_not_hidden():
    class Wrong(Objective):
        def loss(self, features, labels, context):
            raise ValueError("a mistake in the loss")

    with pytest.raises(ValueError, match="a mistake in the loss"):
        train(flat(), Wrong(K), SPLIT, config())


def test_a_loss_without_gradient_is_refused():
    class Detached(Objective):
        def loss(self, features, labels, context):
            return features.detach().sum(), {}

    with pytest.raises(ValueError, match=r"Detached\.loss returned a loss without gradient"):
        train(flat(), Detached(K), SPLIT, config())


@pytest.mark.parametrize("make_objective", [cross_entropy, lambda: RateReduction(K)])
@pytest.mark.parametrize("lr", [1e5, 1e9, 1e30])
def test_a_run_that_diverges_ends_with_a_reason_under_the_real_evaluator(make_objective, lr):
    # At some rates loss and weights are finite, but not the features in evaluation mode.
    def measures(encoder):
        return evaluate(encoder, SPLIT, SPLIT, num_classes=K, readout="ridge", full=False).measures

    settings = config(epochs=4, lr=lr, schedule="constant")
    result = train(network(), make_objective(), SPLIT, settings, watch=Watch(measures))
    assert result.reason is not None
    assert "finite" in result.reason
    assert len(result.history) < 5


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"optimizer": "lbfgs"}, "unknown optimizer 'lbfgs'; choose from sgd, adamw"),
        ({"schedule": "linear"}, "'linear'; choose from one_cycle, cosine, steps, constant"),
        ({"epochs": -1}, "epochs is -1; it must be at least 0"),
        ({"batch_size": 1}, "batch_size is 1; it must be at least 2"),
        ({"evaluate_every": 0}, "evaluate_every is 0; it must be at least 1"),
        ({"lr": -0.1}, "lr is -0.1; it must be at least 0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"lr": math.inf}, "lr is inf"),
        ({"weight_decay": -1e-4}, "weight_decay is -0.0001; it must be at least 0"),
        ({"momentum": 1.5}, "momentum is 1.5; it must be between 0 and 1"),
        ({"decay": 2.0}, "decay is 2.0; it must be between 0 and 1"),
        ({"warmup": -0.1}, "warmup is -0.1; it must be between 0 and 1"),
        ({"milestones": (3, 2)}, r"milestones are \(3, 2\); they must be rising"),
        ({"milestones": (-1, 2)}, r"milestones are \(-1, 2\)"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**changes)


@pytest.mark.parametrize("n", [0, 1])
def test_a_split_with_nothing_to_learn_from_is_refused(n):
    with pytest.raises(ValueError, match=f"at least two samples; the split has {n}"):
        train(flat(), Spy(), SPLIT.select(torch.arange(n)), config())
