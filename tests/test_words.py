"""Plain English in pages, docstrings, comments and messages: words to avoid, and at most 25 words per sentence."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Words that hide the actor or the noun: pattern, the remedy, and a sentence that it must find.
AVOID = {
    r"[Ww]hat(?![^.]*\?)": ("a noun: 'the results of a run'", "What a run reaches."),
    r"(lies?|lay|lying)": ("'is', 'contains' or 'in place'", "The file lies there."),
    r"(says?|said|tells?|told)(?!:)": ("'contains', 'prints' or 'states'", "A line says so."),
    r"knows": ("'has', 'lists' or 'stores'", "The only file that knows them."),
    r"stands?": ("'is' or 'follows'", "Both stand on one page."),
    r"[Ll]ikewise": ("the words again", "Likewise the teacher."),
    r"[Bb]ut for": ("'except'", "All but for the last one."),
    r"[Mm]end(s|ed|ing)?": ("'fix'", "No package mends it."),
    r"[Gg](ive|ives|iven|iving|ave)": ("'set' for a user, else 'return' or 'have'", "Give a batch size."),
    r"asked|asks? for": ("'set' for a user, else 'need' or 'request'", "The epochs asked for."),
    r"[Aa]new": ("'again'", "It starts anew."),
    r"([Nn]obody|[Ww]hoever)": ("the actor, or 'no' with a noun", "Settings that nobody published."),
    r"(images?|classes|numbers?|seconds|one) an? (step|second|class|core|chip|channel|image|file)": (
        "'per'",
        "The images a step.",
    ),
    r"[Bb]eside": ("'next to', 'with' or 'in addition to'", "The folder beside it."),
}
MOST_WORDS = 25
LONG = {
    "A network is a stem, stages and a head": "the package in one sentence, as in models/network.py",
}


def pages():
    """The text of each page by path: of notebooks the Markdown cells; without blocks of code."""
    for pattern in ("*.md", "docs/*.md", "results/*.md", "benchmarks/[RS]*.md", "colab/*.ipynb"):
        for path in sorted(ROOT.glob(pattern)):
            text = path.read_text()
            if path.suffix == ".ipynb":
                cells = (cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
                text = "\n\n".join("".join(cell["source"]) for cell in cells)
            yield path, re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def prose(source):
    """Docstrings, messages (strings with a space) and comments of Python code."""
    nodes = ast.walk(ast.parse(source))
    strings = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    comments = re.findall(r"(?:^|\s)# (.*)", source, re.MULTILINE)
    return "\n".join([*(string for string in strings if " " in string), *comments])


def to_avoid(text):
    """Each line of a text with a word of `AVOID`, and the remedy."""
    return [
        f"{found[0]!r} in {line.strip()!r}: write {remedy}"
        for pattern, (remedy, _) in AVOID.items()
        for line in text.splitlines()
        if (found := re.search(rf"\b(?:{pattern})\b", line))
    ]


def sentences(page):
    """The sentences of paragraphs and lists, with inline code as one word; tables, headings and images left out."""
    page = re.sub(r"^\s*([|#<]|!?\[!\[|!\[).*$", "\n", page, flags=re.MULTILINE)
    page = re.sub(r"\[([^\[\]]*)\]\([^)]*\)", r"\1", re.sub(r"`[^`]*`", "CODE", page)).replace("et al.", "et al")
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", page):
        text = re.sub(r"^\s*(?:[-*]|\d+\.) ", "", paragraph).replace("*", "")
        yield from re.split(r"(?<=[.!?])[)\"]?\s+", " ".join(text.split()))


def too_long(page):
    """The sentences of more than `MOST_WORDS` words."""
    return [one for one in sentences(page) if len(re.findall(r"\w\S*", one)) > MOST_WORDS]


def test_pages_have_no_word_to_avoid():
    found = {str(path.relative_to(ROOT)): to_avoid(text) for path, text in pages()}
    assert len(found) > 30
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_code_has_no_word_to_avoid():
    files = [path for folder in ("hsakd_jax", "configs") for path in sorted((ROOT / folder).rglob("*.py"))]
    found = {str(path.relative_to(ROOT)): to_avoid(prose(path.read_text())) for path in files}
    assert len(found) > 100
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_sentences_of_pages_are_short():
    found = {str(path.relative_to(ROOT)): too_long(text) for path, text in pages()}
    long = {path: [one for one in lines if not one.startswith(tuple(LONG))] for path, lines in found.items()}
    assert {path: lines for path, lines in long.items() if lines} == {}
    # An exception that is not needed is removed.
    assert all(any(one.startswith(start) for lines in found.values() for one in lines) for start in LONG)


@pytest.mark.parametrize(("pattern", "bad"), [(pattern, bad) for pattern, (_, bad) in AVOID.items()])
def test_each_pattern_finds_its_sentence_in_a_page_and_in_code(pattern, bad):
    source = f'"""{bad}"""\n\nx = 1  # {bad}\nraise ValueError(f"{{x}}: {bad}")\n'
    assert len([line for line in to_avoid(bad) if line.endswith(AVOID[pattern][0])]) == 1
    assert len([line for line in to_avoid(prose(source)) if line.endswith(AVOID[pattern][0])]) == 3


def test_words_that_only_look_alike_are_left_alone():
    assert to_avoid("Somewhat outlying: besides, whatever the standard requires.\n  say: prints a line.") == []
    assert to_avoid("Questions that people ask: What now?") == []


def test_a_long_sentence_is_found_in_a_paragraph_and_a_list_but_not_in_a_table_or_code():
    long, short = " ".join(["word"] * 26) + ".", " ".join(["word"] * 25) + "."
    page = f"# {long}\n\n{short} {long}\n{short}\n\n- {short}\n- {long}\n\n| {long} |\n|---|\n\n`{long}` [a]({long})\n"
    assert too_long(page) == [long, long]
