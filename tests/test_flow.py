"""Flow-matching maths against slow, obvious formulas."""

import pytest
import torch

from finetune import flow


def test_path_starts_at_the_image_and_ends_in_noise():
    """At t = 0 a noised latent is the image, at t = 1 it is the noise."""
    latents, noise = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)

    noised = flow.noise_latents(latents, noise, torch.tensor([0.0, 1.0]))

    assert torch.equal(noised[0], latents[0])
    assert torch.equal(noised[1], noise[1])


def test_velocity_is_the_slope_of_the_path():
    """Walking from t along the velocity for 1 - t ends in the noise."""
    latents, noise, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0.1, 0.5, 0.9])

    walked = flow.noise_latents(latents, noise, t) + (1 - t).view(-1, 1, 1, 1) * flow.velocity(latents, noise)

    assert torch.allclose(walked, noise, atol=1e-6)


def test_loss_is_the_mean_squared_error_in_float32():
    """The loss of half-precision predictions is computed in float32."""
    latents, noise, predicted = (torch.randn(2, 3, 4, 4) for _ in range(3))

    loss = flow.loss(predicted.bfloat16(), latents, noise)

    rows = zip(predicted.bfloat16().flatten().tolist(), (noise - latents).flatten().tolist(), strict=True)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(sum((a - b) ** 2 for a, b in rows) / 96, rel=1e-5)


def test_noise_and_times_depend_on_seed_and_step_alone():
    """What torch's own generator did before changes nothing; another seed or step changes all."""
    first = flow.draw_noise(1, 5, (2, 3)), flow.draw_times(1, 5, 4, 3.0)
    torch.manual_seed(123)
    again = flow.draw_noise(1, 5, (2, 3)), flow.draw_times(1, 5, 4, 3.0)

    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for seed, step in ((2, 5), (1, 6)):
        assert not torch.equal(first[0], flow.draw_noise(seed, step, (2, 3)))
        assert not torch.equal(first[1], flow.draw_times(seed, step, 4, 3.0))


def test_each_picture_of_a_batch_has_its_own_slice_of_time():
    """A batch of four always holds one time of each quarter."""
    for step in range(50):
        quarters = (flow.draw_times(0, step, 4, 1.0) * 4).floor().int().tolist()

        assert sorted(quarters) == [0, 1, 2, 3]


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_times_cover_all_of_a_short_run(batch):
    """After 300 steps each hundredth of [0, 1) was visited nearly as often as any other."""
    times = torch.cat([flow.draw_times(3, step, batch, 1.0) for step in range(300)])

    counts = torch.histc(times, bins=100, min=0, max=1)

    assert counts.min() >= 3 * batch - 2
    assert counts.max() <= 3 * batch + 2


def test_shift_moves_times_towards_noise():
    """The middle of the path moves to s / (1 + s); both ends stay."""
    shifted = flow.shift_times(torch.tensor([0.0, 0.5, 1.0]), 3.0)

    assert shifted.tolist() == [0.0, 0.75, 1.0]
