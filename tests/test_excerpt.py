import pytest

from advcourse.excerpt import excerpt
from advcourse.gradients import Exact


def shown(subject: object) -> None:
    """Says something."""
    for word in ("some", "thing"):
        if word:
            print(word)
    print(subject)


def test_from_a_line_to_the_end_without_the_margin() -> None:
    assert excerpt(shown, "if word").data == "    if word:\n        print(word)\nprint(subject)"


def test_up_to_a_line_that_comes_later() -> None:
    assert excerpt(shown, "print(word)", "print(").data == "print(word)"
    assert excerpt(shown, "for word", "print(subject)").data.count("\n") == 2


def test_methods_and_classes_can_be_shown() -> None:
    assert excerpt(Exact.__call__, "return").data.startswith("return")
    assert excerpt(Exact, "class Exact").data.startswith("class Exact")


@pytest.mark.parametrize(("start", "end"), [("nowhere", None), ("print(subject)", "for word")])
def test_what_is_not_there_is_refused_with_what_is(start: str, end: str | None) -> None:
    with pytest.raises(ValueError, match=r"got .* expected a part of one of these lines:") as error:
        excerpt(shown, start, end)
    assert ("print(subject)" in str(error.value)) == (start == "nowhere")
