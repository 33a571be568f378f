from __future__ import annotations

import pytest

from data.errors import UsageError
from pipeline.estimate.model.hardware import GIB, TABLE, parse_gpus
from pipeline.models.load import bf16_supported


def test_a_known_accelerator_by_name_and_number() -> None:
    cluster = parse_gpus("8xH100-80GB", nodes=2)
    assert cluster.size == 16
    assert cluster.accelerator.bf16 == 989.4e12
    assert cluster.usable == pytest.approx(0.9 * 80 * GIB)
    assert cluster.title == "16 x H100-80GB, 2 nodes"


@pytest.mark.parametrize("text", ["h100", "H100", "1xh100-80gb", "1 x H100_80GB"])
def test_names_in_other_writings(text: str) -> None:
    assert parse_gpus(text).accelerator.name == "H100-80GB"


def test_custom_accelerators() -> None:
    found = parse_gpus("4x24GB@165TFLOPS")
    assert (found.size, found.accelerator.memory) == (4, 24 * GIB)
    assert found.accelerator.bf16 == 165e12
    assert "assumed" in found.accelerator.note
    given = parse_gpus("24GB@165.2TFLOPS@1008GB/s").accelerator
    assert given.bandwidth == 1008e9


def test_the_processor_of_this_machine_is_measured() -> None:
    one, two = parse_gpus("cpu"), parse_gpus("2xcpu")
    assert one.accelerator.memory == pytest.approx(2 * two.accelerator.memory)
    assert one.accelerator.fp32 > 1e8
    assert "measured" in one.accelerator.note
    has_bf16 = bf16_supported("cpu")
    assert (one.accelerator.bf16 > 0) == ("in bf16" in one.accelerator.note) == has_bf16


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("8xH10-80GB", "Did you mean 'H100-80GB'?"),
        ("A100", "A100-40GB or A100-80GB"),
        ("0xH100", "write it as"),
        ("4x0GB@1TFLOPS", "above 0"),
        ("", "write it as"),
    ],
)
def test_mistakes_are_told(text: str, told: str) -> None:
    with pytest.raises(UsageError, match="--gpus") as caught:
        parse_gpus(text)
    assert told in str(caught.value)


def test_the_table_is_in_the_order_of_magnitude_of_what_exists() -> None:
    for name, sheet in TABLE.items():
        assert name.endswith(f"-{sheet.memory / GIB:.0f}GB")
        assert 100 < sheet.bf16 / sheet.bandwidth < 500
        assert 1.5 < sheet.bf16 / sheet.fp32 < 40
