"""Guiders: the order of their branches, their mathematics, a state along a run, and what is not evaluated."""

import importlib
import inspect
import json
import pkgutil
from dataclasses import dataclass, replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdjax
from sdjax.diffusion import guiders, scan
from sdjax.diffusion.guidance import Guidance, Guided, classifier_free, prompt_or_all
from sdjax.diffusion.guidance_schedule import GuidanceSchedule
from sdjax.diffusion.guiders import GUIDERS
from sdjax.diffusion.guiders.cfg import ClassifierFree
from sdjax.diffusion.guiders.composed import ComposedPrompts
from sdjax.diffusion.guiders.guider import PICTURE, PROMPT, UNGUIDED, keeps_state
from sdjax.diffusion.guiders.pix2pix import InstructPix2Pix
from sdjax.diffusion.guiders.unguided import Unguided
from sdjax.diffusion.plan import plan
from sdjax.diffusion.plan_batch import stack_plans
from sdjax.runtime.denoisers import one_by_one
from tests import reference
from tests.reference import SD, SHAPE, toy

ALL = [Unguided(), ClassifierFree(), ComposedPrompts(1), ComposedPrompts(3), InstructPix2Pix()]
X_T = np.random.default_rng(0).standard_normal(SHAPE)
SCALES = np.array([4.0, 2.5])


# The table ------------------------------------------------------


def test_every_guider_is_in_the_table():
    found = set()
    for module in pkgutil.iter_modules(guiders.__path__, "sdjax.diffusion.guiders."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if kind.__module__ == module.name and hasattr(kind, "__dataclass_fields__"):
                found.add(kind)
    assert found == set(GUIDERS.values()) == {type(one) for one in ALL}


@pytest.mark.parametrize("guider", ALL, ids=repr)
def test_a_guider_is_static(guider):
    """Equal by value, hashable, and the same again from JSON, as it lies beside an exported program."""
    again = guiders.from_json(json.loads(json.dumps(guiders.to_json(guider))))
    assert again == guider and hash(again) == hash(guider)
    assert set(guider.branches) <= {UNGUIDED, PICTURE, PROMPT} and guider.branches[-1] == PROMPT
    assert not keeps_state(guider, SHAPE)


def test_a_guider_of_ones_own_is_no_part_of_an_export():
    with pytest.raises(ValueError, match=r"Momentum\(beta=0.5\) cannot be written: it is none of sdjax.*GUIDERS"):
        guiders.to_json(Momentum(0.5))


# What they do ------------------------------------------------------


@pytest.mark.parametrize("guider", ALL, ids=repr)
def test_branches_come_in_order(guider):
    """Each answer is that of its own branch: the network is told who it is by its place in the batch."""
    seen = []

    @dataclass(frozen=True)
    class Watched:
        branches = guider.branches
        prompt_alone = False

        def init(self, x):
            return None

        def __call__(self, answers, x, row, data, state):
            seen.extend(answers)
            return guider(answers, x, row, data, state)

    m, b = len(guider.branches), SHAPE[0]
    told = jnp.repeat(jnp.arange(1.0, m + 1), b)[:, None, None, None]
    strength = Guidance(SCALES, None, np.ones((m - 1, b)))
    model = Guided(lambda x, t: told * x + t, Watched(), lambda: strength)
    raw = model(jnp.ones(SHAPE), jnp.asarray(7.0))
    assert [float(one[0, 0, 0, 0]) for one in seen] == [k + 8.0 for k in range(m)] and raw.shape == SHAPE


def answers(m):
    return [np.random.default_rng(k).standard_normal(SHAPE) for k in range(m)]


@pytest.mark.parametrize("guider", ALL, ids=repr)
def test_mathematics_in_float64(guider):
    """Equations 1, 4 and 5 as they are printed, and what the unguided answer is."""
    found, s, s_i = answers(len(guider.branches)), SCALES[:, None, None, None], 1.5
    u, *rest = found
    weights = np.array([[0.5, 1.0], [2.0, 0.0], [-0.5, 0.3]])[: len(rest)]
    if isinstance(guider, InstructPix2Pix):
        weights = np.stack([(s_i - SCALES) / SCALES, np.ones(2)])
        want = u + s_i * (rest[0] - u) + s * (rest[1] - rest[0])
    elif isinstance(guider, ComposedPrompts):
        want = u + s * sum(w[:, None, None, None] * (c - u) for w, c in zip(weights, rest, strict=True))
    else:
        want = u if not rest else u + s * (rest[0] - u)
    with jax.enable_x64(True):
        told = Guidance(jnp.asarray(SCALES), None, jnp.asarray(weights))
        raw, unguided, state = guider([jnp.asarray(one) for one in found], jnp.zeros(SHAPE), None, told, None)
    assert np.abs(np.asarray(raw) - want).max() <= 1e-13 * np.abs(want).max() and state is None
    np.testing.assert_array_equal(unguided, u)


def test_prompt_alone_is_true():
    """Where a guider says so, scale 1 gives the prompt's answer to the last bit, rescaled or not."""
    told = Guidance(np.ones(2, np.float32), np.array([0.0, 0.7], np.float32))
    for guider in ALL:
        if guider.prompt_alone:
            found = [jnp.asarray(one, jnp.float32) for one in answers(len(guider.branches))]
            np.testing.assert_array_equal(guider(found, found[0], None, told, None)[0], found[-1])


def test_which_guider_follows_from_what_is_asked():
    p, each, two = plan("euler", 3, SD), ([2.0, 2.0], [GuidanceSchedule()] * 2, [0.0, 0.0], 4), np.ones((2, 2))
    assert Guidance.along(p, *each).guider == ClassifierFree()
    assert Guidance.along(p, *each, weights=two).guider == ComposedPrompts(2)
    assert Guidance.along(p, *each, weights=two, image_scales=np.ones(2)).guider == InstructPix2Pix()


# A state along a run ------------------------------------------------------


@dataclass(frozen=True)
class Momentum:
    """Along a run, differences of the clean latents add up: d_i = (c - u) + beta d_(i-1), and raw = c + (s - 1) d_i.

    As Sadat et al. 2024, arXiv:2410.02416, section 4.1, without their projection; counts the evaluations, too.
    """

    beta: float
    branches = (UNGUIDED, PROMPT)
    prompt_alone = False

    def init(self, x):
        return {"sum": jnp.zeros_like(x), "count": jnp.zeros(x.shape[:1], jnp.int32)}

    def __call__(self, answers, x, row, data, state):
        uncond, cond = answers
        total = cond - uncond + self.beta * state["sum"]
        raw = cond + (jnp.asarray(data.scale, x.dtype)[:, None, None, None] - 1) * total
        return raw, uncond, {"sum": total, "count": state["count"] + 1}


def half(xp, x, t, prompt):
    return toy(xp, x + 0.3 * prompt, t)


def both(x, t):
    """The toy network without a prompt, then with it."""
    u, c = jnp.split(x, 2)
    times = t if jnp.ndim(t) == 0 else jnp.split(t, 2)[0][:, None, None, None]
    return jnp.concatenate([half(jnp, u, times, 0), half(jnp, c, times, 1)])


MODEL = Guided(both, Momentum(-0.5), lambda *_: Guidance(SCALES, None))


def test_a_state_is_carried_step_by_step_in_float64():
    before = 0

    def by_hand(x, t):
        nonlocal before
        u, c = half(np, x, t, 0), half(np, x, t, 1)
        before = c - u - 0.5 * before
        return c + (SCALES[:, None, None, None] - 1) * before

    want = reference.euler(SD, 7, by_hand, X_T)
    with jax.enable_x64(True):
        made = np.asarray(scan.sample(plan("euler", 7, SD), MODEL, X_T))
    assert np.abs(made - want).max() <= 1e-10 * np.abs(want).max()


def two_draws(tape, schedule):
    """Two draws a step: every second row evaluates nothing."""
    x = tape.x_T / schedule.steps[0][0].alpha
    for here, there in schedule.steps:
        up = there.ve * np.sqrt(1 - (there.ve / here.ve) ** 2)
        down = np.sqrt(there.ve**2 - up**2)
        x = x + (down - here.ve) * (x - tape.denoise(here.alpha * x, here)) / here.ve
        x = x + up * (0.6 * tape.draw() + 0.8 * tape.draw())
    return x


def test_a_state_stays_where_nothing_is_evaluated_and_goes_on_in_the_next_segment():
    p = plan(two_draws, 5, SD)
    table, keys = p.table(16), scan.keys_per_image(jax.random.key(0), 2)
    assert not p.evaluate.all()
    carry = scan.draw(scan.init(table, jnp.asarray(X_T, jnp.float32), MODEL.guider), table, keys)
    whole = scan.run_rows(carry, table, MODEL)
    assert whole.guider["count"].tolist() == [p.evaluations] * 2
    run = jax.jit(lambda carry, rows: scan.run_rows(carry, rows, MODEL))
    pieces, idle = carry, carry
    for start in range(0, len(table) - 1, 4):
        pieces = run(pieces, table.rows(start, start + 4))
    for start in range(0, len(table), 5):
        idle = run(idle, table.only(start, start + 5))
    for other in (pieces, idle):
        np.testing.assert_allclose(other.x, whole.x, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(other.guider["sum"], whole.guider["sum"], rtol=1e-4, atol=1e-5)
        assert other.guider["count"].tolist() == whole.guider["count"].tolist()


def test_each_picture_of_a_plan_batch_has_a_state_of_its_own():
    """Each as it would be alone, and counted by its own evaluations."""
    plans = [plan("euler", 4, SD), plan("heun", 5, SD)]
    many = stack_plans(plans)
    table, x = many.table(12), jnp.asarray(X_T, jnp.float32)
    end = scan.run_rows(scan.init(table, x, MODEL.guider), table, MODEL)
    assert end.guider["count"].tolist() == many.evaluations.tolist()
    for i, one in enumerate(plans):
        alone = Guided(both, MODEL.guider, lambda *_, i=i: Guidance(SCALES[i : i + 1], None))
        np.testing.assert_allclose(end.x[i], scan.sample(one, alone, x[i : i + 1])[0], rtol=1e-4, atol=1e-5)


def test_a_guider_without_a_state_leaves_nothing_in_the_carry():
    carry = scan.init(plan("euler", 3, SD).table(4), jnp.asarray(X_T, jnp.float32), ClassifierFree())
    assert carry.guider is None and carry.unguided is None and len(jax.tree.leaves(carry)) == 4


def test_gradients_go_through_a_state():
    with jax.enable_x64(True):
        loss = jax.jit(lambda x: jnp.sin(scan.sample(plan("euler", 4, SD), MODEL, x)).sum())
        step = 1e-6 * np.random.default_rng(1).standard_normal(SHAPE)
        slope = (loss(X_T + step) - loss(X_T - step)) / 2
        np.testing.assert_allclose(jnp.vdot(jax.grad(loss)(X_T), step), slope, rtol=1e-6)


# What is not evaluated ------------------------------------------------------


def along(p, schedules, scales=SCALES, **more):
    return Guidance.along(p, scales, [GuidanceSchedule.read(one) for one in schedules], [0.0, 0.5], 8, **more)


def test_alone_outside_of_intervals():
    """By the schedules' kinds alone, so that no number, scale or prompt makes another program."""
    p = plan("euler", 5, SD)
    told = along(p, ["interval:0.2:0.5", "linear"])
    assert told.alone.T.tolist() == [[True, False, False, True, True, *[True] * 4], [False] * 5 + [True] * 4]
    for schedules in (["constant", "constant"], ["linear", "cosine"], ["linear:0:0", "constant"]):
        assert along(p, schedules).alone is None
    for schedules, scales in ((["interval:0:1", "constant"], [1.0, 1.0]), (["noise_interval:0:1000"] * 2, SCALES)):
        assert along(p, schedules, scales).alone is not None
    two = np.ones((2, 2))
    assert along(p, ["interval:0.2:0.5"] * 2, weights=two).alone is None  # all prompts count outside, too
    assert along(p, ["interval:0.2:0.5"] * 2, weights=two, image_scales=np.ones(2)).alone is None
    assert told.complete().alone is None and told.rows(1, 3).alone.shape == (2, 2)


def test_a_finished_neighbour_keeps_nobody_waiting():
    many = stack_plans([plan("euler", 5, SD), plan("euler", 3, SD)])
    assert along(many, ["interval:0:0.5", "constant"]).alone.all(1).tolist() == [False] * 3 + [True] * 6
    p = plan(two_draws, 3, SD)
    told = along(p, ["interval:0:1", "constant"]).alone[: p.rows - 1]
    assert told[:, 1].tolist() == (~p.evaluate).tolist() and not p.evaluate.all()


def guided_run(told, table, alone):
    """Latents of a run, and how many pictures' branches each evaluation had."""
    seen = []

    def network(inputs):
        x, t, told = inputs
        jax.debug.callback(lambda n: seen.append(int(n)), len(x))
        return toy(jnp, x + 0.3 * told[:, None, None, None], t[:, None, None, None])

    def model(x, t, row):
        prompts = jnp.repeat(jnp.arange(2.0), 2)
        inputs = (x, jnp.broadcast_to(t, x.shape[:1]), prompts)
        run = network if row.alone is None else prompt_or_all(network, told.guider)
        inputs = inputs if row.alone is None else (inputs, jnp.tile(row.alone, 2))
        return one_by_one(run, inputs, jnp.array(True), 2) if alone else run(inputs)

    run = jax.jit(lambda: scan.run_rows(
        scan.init(table, jnp.asarray(X_T, jnp.float32)), table, Guided(model, told.guider, lambda row: row), told
    ))  # fmt: skip
    made = np.asarray(jax.block_until_ready(run().x))
    jax.effects_barrier()
    return made, sorted(seen)


@pytest.mark.parametrize(
    ("schedules", "together", "single"),
    [
        (["interval:0.25:0.75"] * 2, [2, 2, 4, 4, 4], [1, 1, 1, 1, 2, 2, 2, 2, 2, 2]),
        (["interval:0.25:0.75", "interval:0.5:1"], [2, 4, 4, 4, 4], [1, 1, 1, 1, 2, 2, 2, 2, 2, 2]),
        (["interval:0.25:0.75", "constant"], [4] * 5, [1, 1] + [2] * 8),
        (["constant", "linear"], [4] * 5, [2] * 10),
    ],
)
def test_outside_an_interval_only_the_prompt_is_evaluated(schedules, together, single):
    """In a batch where all of it is outside, picture by picture where each is; and the latents are the same."""
    p = plan("euler", 5, SD)
    told, table = along(p, schedules), p.table(8)
    want, whole = guided_run(told.complete(), table, False)
    assert whole == [4] * 5
    for alone, counted in ((False, together), (True, single)):
        made, seen = guided_run(told, table, alone)
        assert seen == counted
        np.testing.assert_allclose(made, want, rtol=1e-5, atol=1e-5)


# The unguided prediction ------------------------------------------------------


def euler_cfg_pp(tape, schedule):
    """Euler that goes to the guided prediction and takes its noise from the unguided one.

    x' = D + ve' (x - U) / ve at the variance-exploding scale (Chung et al. 2024, arXiv:2406.08070, algorithm 2).
    """
    x = tape.x_T / schedule.steps[0][0].alpha
    for here, there in schedule.steps:
        denoised = tape.denoise(here.alpha * x, here)
        x = denoised + there.ve / here.ve * (x - tape.unguided(denoised))
    return schedule.end.alpha * x


def dpmpp_2m_cfg_pp(tape, schedule):
    """DPM-Solver++(2M) likewise: its second-order term is between the guided prediction and the last unguided one."""
    x, past = tape.x_T / schedule.steps[0][0].alpha, []
    for here, there in schedule.steps:
        denoised = tape.denoise(here.alpha * x, here)
        unguided, left = tape.unguided(denoised), there.ve / here.ve
        more = 0
        if past and there.ve > 0:
            before, last = past[-1]
            more = (1 - left) * np.log(there.ve / here.ve) / np.log(here.ve / last.ve) / 2 * (denoised - before)
        x = denoised + left * (x - unguided) + more
        past.append((unguided, here))
    return schedule.end.alpha * x


def by_steps(second_order, n):
    """Both of them as a loop over arrays, with no tape, no table and no scan."""
    ts, sigmas, start = reference.euler_levels(SD, n)
    x, before = X_T * start, None
    for i, (sigma, to) in enumerate(pairwise(sigmas)):
        u, c = (
            reference.denoise_ve(SD, lambda x, t, k=k: half(np, x, t, k), x, sigma, ts[i])  # noqa: B023
            for k in (0, 1)
        )
        d = u + SCALES[:, None, None, None] * (c - u)
        noise = (x - u) / sigma
        x = d + to * noise
        if second_order and i and to:
            h, h_before = np.log(sigma / to), np.log(sigmas[i - 1] / sigma)
            x = x + (1 - np.exp(-h)) * (d - before) * h / (2 * h_before)
        before = u
    return x


@pytest.mark.parametrize(("solver", "second_order"), [(euler_cfg_pp, False), (dpmpp_2m_cfg_pp, True)])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_cfg_pp_is_the_step_by_step_run_in_float64(solver, second_order, steps):
    p = plan(solver, steps, SD)
    assert p.unguided.shape == (steps + 1, steps) and p.weights.shape == (steps + 1, steps + 1)
    with jax.enable_x64(True):
        made = np.asarray(scan.sample(p, classifier_free(both, jnp.asarray(SCALES)), X_T))
    want = by_steps(second_order, steps)
    assert np.abs(made - want).max() <= 1e-10 * np.abs(want).max()


def test_without_guidance_cfg_pp_is_the_solver_itself():
    def alone(x, t):
        return half(jnp, x, t, 1)

    with jax.enable_x64(True):
        made = scan.sample(plan(euler_cfg_pp, 6, SD), Guided(alone, Unguided(), lambda: None), X_T)
        np.testing.assert_allclose(made, scan.sample(plan("euler", 6, SD), alone, X_T), rtol=1e-10, atol=1e-12)


def test_plans_that_do_not_ask_have_no_second_history():
    for name in ("euler", "dpmpp_2m", "ddim"):
        p = plan(name, 4, SD)
        assert p.unguided is None and p.table().u_weights is None
    assert len(jax.tree.leaves(plan("euler", 4, SD).table())) == 15
    asks = plan(euler_cfg_pp, 4, SD).table(6)
    assert asks.u_weights.shape == (7, 7) and asks.u_weights.dtype == np.float32
    assert scan.init(asks, jnp.zeros(SHAPE)).unguided.shape == (7, *SHAPE)
    assert not asks.only(2, 3).u_weights[[0, 1, 3, 4]].any() and asks.only(2, 3).u_weights[2].any()


def test_segments_keep_the_unguided_predictions():
    table, model = plan(dpmpp_2m_cfg_pp, 7, SD).table(7), classifier_free(both, jnp.asarray(SCALES))
    whole = scan.run(table, model, jnp.asarray(X_T, jnp.float32))
    carry = scan.init(table, jnp.asarray(X_T, jnp.float32), model.guider)
    for start in range(0, 8, 2):
        carry = scan.run_rows(carry, table.rows(start, start + 2), model)
    np.testing.assert_allclose(scan.result(carry), whole, rtol=1e-5, atol=1e-5)


def test_plans_with_and_without_in_one_batch():
    plans, x = [plan("euler", 4, SD), plan(dpmpp_2m_cfg_pp, 6, SD)], jnp.asarray(X_T, jnp.float32)
    many = stack_plans(plans)
    assert many.table(8).u_weights.shape == (9, 9, 2) and not many.table(8).u_weights[..., 0].any()
    together = scan.sample(many, classifier_free(both, jnp.asarray(SCALES, jnp.float32)), x)
    for i, one in enumerate(plans):
        model = classifier_free(both, jnp.asarray(SCALES[i : i + 1], jnp.float32))
        np.testing.assert_allclose(together[i], scan.sample(one, model, x[i : i + 1])[0], rtol=1e-5, atol=1e-5)


def test_a_plan_that_asks_evaluates_both_everywhere():
    """Outside of an interval the noise still comes from the unguided answer."""
    many = stack_plans([plan("euler", 4, SD), plan(euler_cfg_pp, 4, SD)])
    assert along(many, ["interval:0.5:1"] * 2).alone[:4].T.tolist() == [[True, True, False, False], [False] * 4]


def test_a_function_cannot_tell_the_unguided_prediction():
    with pytest.raises(ValueError, match=r"asks for the unguided prediction, which a function .*classifier_free"):
        scan.sample(plan(euler_cfg_pp, 3, SD), lambda x, t: x, jnp.zeros(SHAPE))


def test_unguided_predictions_are_checked_like_the_others():
    """Causal, of an evaluation, and right where all predictions are one constant picture."""
    p = plan(euler_cfg_pp, 4, SD)

    def changed(row, column, by):
        weights = p.unguided.copy()
        weights[row, column] += by
        return {**vars(p), "unguided": weights}

    for row, column, by, told in (
        (1, 2, 0.5, "does not exist yet"),
        (2, 1, 1e-6, "inconsistent"),
        (2, 1, np.nan, "unguided is not finite"),
    ):
        with pytest.raises(ValueError, match=told):
            type(p)(**changed(row, column, by))
    with pytest.raises(ValueError, match=r"unguided must be \[5, 4\]"):
        type(p)(**{**vars(p), "unguided": p.unguided[:, 1:]})
    idle = plan(two_draws, 3, SD)
    weights = np.zeros((idle.rows, idle.rows - 1))
    weights[-1, np.flatnonzero(~idle.evaluate)[0]] = 1e-3
    with pytest.raises(ValueError, match="does not exist yet, or ever"):
        type(idle)(**{**vars(idle), "unguided": weights})


def test_the_tape_gives_the_unguided_prediction_of_an_evaluation():
    def twice(tape, schedule):
        denoised = tape.denoise(tape.x_T, schedule.steps[0][0])
        assert np.array_equal(tape.unguided(denoised).weights, tape.unguided(denoised).weights)
        return 0.5 * (denoised + tape.unguided(denoised))

    assert plan(twice, 1, SD).unguided.tolist() == [[0], [0.5]]
    for wrong in (lambda tape, d: 2 * d, lambda tape, d: tape.x_T, lambda tape, d: tape.unguided(d), lambda tape, d: 3):
        with pytest.raises(ValueError, match="tape.unguided takes what tape.denoise gave"):
            plan(lambda tape, schedule: tape.unguided(wrong(tape, tape.denoise(tape.x_T, schedule.steps[0][0]))), 1, SD)  # noqa: B023


@pytest.fixture(scope="module")
def sd(tiny_checkpoint):
    return sdjax.load(tiny_checkpoint)


def test_generate_takes_a_solver_that_asks(sd):
    """Its programs make what `sample` makes of the public network."""
    given = np.random.default_rng(2).standard_normal((1, 8, 8, 4)).astype(np.float32)
    asked = dict(sampler=euler_cfg_pp, steps=4, guidance_scale=3.0, decode=False, progress=False)
    made = sd.generate("a red circle", latents=given, **asked).latents
    context = sd.encode_prompt(["", "a red circle"])
    model = classifier_free(lambda x, t: sd.predict(x, t, context), 3.0)
    want = jax.jit(lambda x: scan.sample(sd.plan(euler_cfg_pp, 4), model, x))(given)
    assert np.abs(made - want).max() <= 1e-4 * np.abs(want).max()


def test_a_guider_with_a_state_runs_in_the_compiled_programs(sd, monkeypatch):
    """Without momentum it is classifier-free guidance; in calls of one row each, a state goes from call to call."""
    asked = dict(prompt="a red circle", steps=4, sampler="euler", seed=3, guidance_scale=3.0, decode=False)
    plain, along = sd.generate(**asked).latents, Guidance.along
    made = {}
    for beta, shown in ((0.0, None), (-0.5, None), (-0.5, True)):
        monkeypatch.setattr(
            Guidance, "along", lambda *a, beta=beta, **k: replace(along(*a, **k), guider=Momentum(beta))
        )
        made[beta, shown] = sd.generate(**asked, show_steps=shown).latents
    np.testing.assert_allclose(made[0.0, None], plain, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(made[-0.5, True], made[-0.5, None], rtol=1e-4, atol=1e-4)
    assert np.abs(made[-0.5, None] - plain).max() > 1e-2


def test_an_interval_is_nothing_to_its_neighbour(sd):
    """To the last bit, on a CPU: each picture chooses alone what is evaluated for it."""
    asked, schedules = dict(steps=4, sampler="euler", decode=False, progress=False), ["interval:0.3:0.7", None]
    together = sd.generate(["a red circle", "an ant"], seed=[3, 4], guidance_schedule=schedules, **asked).latents
    for i, prompt in enumerate(["a red circle", "an ant"]):
        alone = sd.generate(prompt, seed=3 + i, guidance_schedule=schedules[i], **asked).latents[0]
        np.testing.assert_array_equal(together[i], alone)


def test_a_plan_that_asks_is_drawn():
    pytest.importorskip("matplotlib")
    figure = plan(euler_cfg_pp, 4, SD).plot()
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()][-1] == "unguided $U_j$"
    assert figure.axes[0].images[0].get_array().shape == (5, 9)
