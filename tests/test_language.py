"""Sentences and names that people read: rules that a program can check."""

import ast
import re
from pathlib import Path

import pytest

import fedjax_masks

PACKAGE = Path(fedjax_masks.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
PENDING = (
    "analysis",
    "benchmarks",
)  # sentences to be rewritten
RIDDLES = re.compile(r"(What|Where|How|Who|Which|Whose|When|Why|Of|By|From)\b")
OLD_ERRORS = re.compile(r"accepted (is|are|with|without|for|up|on|in)\b")
NO_NOUNS = {"found", "own", "kept", "told", "asked", "at", "of", "came"}
LONGEST_BODY = 60  # lines
REWRITTEN = [path for path in FILES if path.relative_to(PACKAGE).parts[0] not in PENDING]


def trees(path):
    tree = ast.parse(path.read_text("utf-8"))
    return list(ast.walk(tree))


def name_of(path):
    return str(path.relative_to(PACKAGE))


@pytest.fixture(params=REWRITTEN, ids=name_of, scope="module")
def nodes(request):
    return trees(request.param)


def documented(nodes):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [(node, ast.get_docstring(node)) for node in nodes if isinstance(node, kinds)]


def test_a_docstring_opens_with_a_noun_phrase_or_a_verb(nodes):
    assert not [doc.splitlines()[0] for _, doc in documented(nodes) if doc and RIDDLES.match(doc)]


def test_a_text_says_what_must_be(nodes):
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert not [text for text in texts if OLD_ERRORS.search(text)]


def test_names_are_nouns_or_verbs(nodes):
    names = [node.arg for node in nodes if isinstance(node, ast.arg)]
    names += [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    names += [node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert not NO_NOUNS & set(names)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_function_fits_a_screen(path):
    for node, doc in documented(trees(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if doc else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= LONGEST_BODY, node.name


def test_the_package_root_holds_one_module_and_its_types():
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == {"__init__.py", "py.typed"}
