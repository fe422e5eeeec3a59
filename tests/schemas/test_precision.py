import pytest

from stillhouse.schemas.precision import takes_bfloat16


@pytest.mark.parametrize("has", [{"avx512_bf16": True}, {"amx_bf16": True}, {"bf16": True, "neon": True}])
def test_auto_takes_it_where_the_cpu_multiplies_it(has: dict[str, bool]) -> None:
    assert takes_bfloat16("auto", has)


def test_auto_does_not_where_it_would_be_emulated() -> None:
    assert not takes_bfloat16("auto", {"avx512_f": True, "avx512_bf16": False})


def test_what_is_set_holds_on_every_machine() -> None:
    assert takes_bfloat16("bfloat16", {}) and not takes_bfloat16("float32", {"avx512_bf16": True})
