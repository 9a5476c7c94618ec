"""Errors and warnings hold any text of a user in one printable line."""

import copy
import logging
import pickle
from collections.abc import Sequence
from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedjax_masks.cli import main
from fedjax_masks.core.errors import UserError, one_line, unknown_name, user_errors
from fedjax_masks.core.messages import printable, single_line, warn
from fedjax_masks.core.options import Rate, Seed, coerce
from fedjax_masks.core.progress import lines, say

ORDINARY = "é漢字 'quoted' \"twice\" back\\slash  €"
LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
CONTROLS = "\0\t\x07\x1b[2J\x7f\x9b\u200b\u202e\ufeff\udc80"
texts = st.text(st.characters() | st.sampled_from(LINE_ENDS + CONTROLS))


@given(texts)
@example(LINE_ENDS + CONTROLS)
def test_a_text_becomes_printable_and_stays_so(text):
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)
    assert single_line(text).isprintable()


@given(texts)
def test_printable_characters_are_left_as_they_are(text):
    rest = "".join(filter(str.isprintable, text))
    assert printable(rest) == rest
    assert str(UserError(rest)) == rest


def test_ordinary_text_of_any_language_is_left_as_it_is():
    assert printable(ORDINARY) == str(UserError(ORDINARY)) == ORDINARY
    assert str(unknown_name("model.name", "漢字", ["é"])) == "model.name='漢字': must be one of é"


@pytest.mark.parametrize("letter", LINE_ENDS + CONTROLS.replace("[2J", ""))
def test_other_characters_are_escaped_as_by_repr(letter):
    assert str(UserError(f"a{letter}b")) == repr(f"a{letter}b")[1:-1]


@given(texts)
def test_an_error_is_copied_and_pickled_with_its_message(text):
    error = UserError(text)
    assert error.args == (str(error),)
    for clone in (pickle.loads(pickle.dumps(error)), copy.copy(error), type(error)(*error.args)):
        assert (type(clone), str(clone)) == (UserError, str(error))


def refusal(request):
    """The message of the error of a request; empty without one."""
    try:
        request()
    except UserError as error:
        return str(error)
    return ""


@given(texts, texts, st.sampled_from([Rate, Seed, bool, Literal["a"], Sequence[int], Rate | None]))
@example("devices=trace:t.csv", "\x00\x0b1e6", Rate)
def test_a_value_of_any_text_is_converted_or_refused_in_one_printable_line(key, value, annotation):
    assert refusal(lambda: coerce(key, value, annotation)).isprintable()


@given(texts, texts, st.lists(texts, max_size=3))
def test_an_unknown_name_of_any_text_is_one_printable_line(key, value, names):
    assert str(unknown_name(key, value, names)).isprintable()


@given(texts, st.sampled_from([ValueError, OSError, MemoryError, RecursionError, UserError]))
def test_errors_about_input_become_one_printable_line(text, kind):
    with pytest.raises(UserError) as caught, user_errors():
        raise kind(text)
    assert str(caught.value).isprintable()
    assert str(caught.value) or kind is UserError


@given(texts)
def test_an_error_of_a_library_is_quoted_in_one_printable_line(text):
    assert one_line(KeyError(text)).isprintable()
    assert one_line(RuntimeError(text)).isprintable()


def test_the_layout_of_a_library_s_error_becomes_single_spaces():
    assert one_line(ValueError("two\n  lines\x1b")) == r"ValueError: two lines\x1b"


def test_warnings_and_progress_are_printable_lines(caplog, capsys):
    hostile = f"out{LINE_ENDS}{CONTROLS} 100 %d"
    warn(hostile)
    assert caplog.messages == [printable(hostile)]
    assert (caplog.records[0].name, caplog.records[0].levelno) == ("fedjax_masks", logging.WARNING)
    assert caplog.records[0].filename == "test_messages.py"
    say(hostile)
    with lines(hostile, total=2) as show:
        show(1, "half\n", now=True)
    said, progress, end = capsys.readouterr().err.split("\n")
    assert said == printable(hostile)
    assert progress.startswith(f"{said}: 1/2")
    assert progress.isprintable()
    assert not end


@pytest.mark.parametrize(
    "arguments",
    [
        ["run\x1b"],
        ["run", "--fl\x0bag"],
        ["run", "--out", "o", "word\u2028"],
        ["run", "--out", "o", "--set", "\x85"],
        ["run", "--out", "o", "--set", "a\x1b=1"],
        ["run", "--out", "o", "--config", "file\x1c.toml"],
        ["run", "--out", "o", "--num-processes", "\x0c"],
        ["compare", "no\x1bdirectory\n"],
        ["bench", "--rounds", "1", "--plan", "\x1dplan"],
        ["list", "keys", "--algorithm", "fed\x1eavg"],
    ],
)
def test_a_command_refuses_any_argument_in_one_printable_line(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(arguments) == 2
    out, error = capsys.readouterr()
    assert (out, error[-1:]) == ("", "\n")
    assert error.startswith("error: ")
    assert error[:-1].isprintable()


def test_a_path_of_the_command_line_is_named_in_one_printable_line(tmp_path, monkeypatch, capsys):
    def refuse(arguments):
        raise PermissionError(13, "Permission denied", "no\x1bway\n")

    monkeypatch.setattr("fedjax_masks.cli.commands.report", refuse)
    assert main.main(["report", "run", "--out", "r.html"]) == 2
    assert capsys.readouterr().err == "error: no\\x1bway\\n: must be accessible; Permission denied\n"
