"""What is said of a name that the application does not have."""

from __future__ import annotations

from ackline.infra.unknown import unknown


def test_the_likeliest_is_named_and_what_there_is() -> None:
    said = unknown("job", "media.rendr", ["media.report", "media.render"])
    assert said == (
        "There is no job 'media.rendr'. Did you mean media.render or media.report? "
        "There are: media.render, media.report."
    )


def test_an_application_that_has_none_is_told_where_they_come_from() -> None:
    assert unknown("job", "x", []) == "There is no job 'x': ACKLINE_APP names no module that has any."


def test_a_long_name_and_many_others_are_cut() -> None:
    said = unknown("job", "x" * 10_000, [f"job-{number:02}" for number in range(12)])
    assert said == f"There is no job '{'x' * 79}…. There are: {', '.join(f'job-{n:02}' for n in range(10))} and 2 more."
