"""What the package gives by name, each from its place when it is first asked for."""

import pytest

import generator


@pytest.mark.parametrize("name", generator.__all__)
def test_every_public_name_is_found_in_its_place(name: str) -> None:
    assert getattr(generator, name) is not None


def test_a_name_that_there_is_not_is_an_error_as_of_any_module() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Wheel'"):
        _ = generator.Wheel
