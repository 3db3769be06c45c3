"""`moxin_lab.vision.views`: views hide pixel alignment, follow `strength`, and do not depend on how
a step is cut.
"""

import torch

from moxin_lab.vision.views import ViewStream, augment
from tests.vision.conftest import DINO, colour_squares


def test_views_break_pixel_alignment_and_do_not_depend_on_the_cut():
    pictures = torch.as_tensor(colour_squares(8))
    one, two = (augment(pictures, 32, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert one.shape == (8, 3, 32, 32) and one.min() >= 0 and one.max() <= 1
    assert (one - two).abs().mean() > 0.05
    corner = one[:, :, 0, 0]
    assert (corner >= 0.8).all() and corner.std() > 0.01  # another background each time
    inside = (one - one[:, :, :1, :1]).abs().amax(dim=1) > 0.05
    assert len({int(shape.sum()) for shape in inside}) > 4  # the square has another size each time
    views = ViewStream(
        colour_squares(16),
        DINO.model_copy(update={"micro_batch_examples": 2}),
        3,
        size=32,
        name="dino",
        views=2,
    )
    whole = views.batch(1)
    parts = [views.batch(1, part=part, parts=4) for part in range(4)]
    for name, values in whole.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), values)
