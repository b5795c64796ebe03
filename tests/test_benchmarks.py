"""What the benchmarks count and claim; their times are nobody's test."""

import pytest

from benchmarks import scale, step
from hsakd_jax.nets import create


def test_collectives_are_counted_from_a_programs_text():
    program = """
      %a = f32[3,2]{1,0} all-reduce(%x), replica_groups={}
      %b = (f32[4]{0}, bf16[2,2]{1,0}, /*index=2*/f64[]) all-reduce-start(%x, %y, %z)
      %c = (f32[4]{0}, bf16[2,2]{1,0}, f64[]) all-reduce-done(%b)
      %d = u8[16]{0} all-gather(%x)
      %e = f32[9] add(%all-reduce.1, %x)
    """
    assert scale.collectives(program) == {"all-reduce": (2, 24 + 16 + 8 + 8), "all-gather": (1, 16)}


def test_a_step_on_eight_devices_sends_no_more_than_it_must():
    """Gradients once and BatchNorm's sums; what is above are the loss terms and the crop's corners."""
    sent = sum(size for _, size in scale.compiled("resnet8:resnet8", 16).values())
    least = sum(scale.minimum(create("resnet8", 100), (32, 32, 3)).values())
    assert least <= sent <= 1.02 * least


@pytest.mark.parametrize(
    ("pair", "petaflops"),
    [
        ("wrn_40_2:wrn_16_2", 143),
        ("resnet56:resnet20", 55),
        ("resnet32x4:resnet8x4", 368),
        ("ResNet50:mobilenetV2", 371),
    ],
)
def test_work_of_a_run_is_the_papers(pair, petaflops):
    """PAPER section 6: of 240 epochs of 50,000 images."""
    assert step.flops(pair) * 50_000 * 240 / 1e15 == pytest.approx(petaflops, rel=0.01)
