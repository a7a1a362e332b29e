"""The README and the notebooks as pages: every link leads somewhere, and every picture has words."""

import re
from urllib.parse import unquote

import nbformat
import pytest

DOCUMENTS = ("README.md", "Step1_Setup.ipynb", "Step2_Regularize.ipynb", "Step3_Final.ipynb")
ADDRESS = "tiny-mnist/tiny-mnist"  # on GitHub; a fork puts its own here
OWN = f"https://github.com/{ADDRESS}/blob/main/"  # how the notebooks name a page, so that it is found from Colab too

LINK = re.compile(r"(!?)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\(([^)\s]+)\)")


@pytest.fixture(params=DOCUMENTS)
def text(request, repository) -> str:
    path = repository / request.param
    if path.suffix == ".md":
        return path.read_text()
    cells = nbformat.read(path, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def links(text: str) -> list[tuple[str, str, str]]:
    """Whether it is a picture ("!"), its words, and where it leads; badges within links too."""
    found = LINK.findall(text)
    return found + [inner for _, words, _ in found for inner in LINK.findall(words)]


def anchors(text: str) -> set[str]:
    """The headings of a page, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_are_found():
    badge = "[![Open](https://a/b.svg)](https://c/d)"
    assert links(f"{badge} [x](y.py#z)") == [
        ("", "![Open](https://a/b.svg)", "https://c/d"),
        ("", "x", "y.py#z"),
        ("!", "Open", "https://a/b.svg"),
    ]
    assert anchors("## Step 1: set-up, and more") == {"step-1-set-up-and-more"}


def test_every_link_within_the_repository_leads_somewhere(text, repository):
    assert len(links(text)) >= 3
    for _, _, target in links(text):
        path, _, anchor = unquote(target.removeprefix(OWN)).partition("#")
        if path.startswith("http"):
            continue
        assert (repository / path).exists(), target
        if anchor:
            page = (repository / path).read_text() if path else text
            assert anchor in anchors(page), target


def test_links_to_other_sites_are_encrypted_and_whole(text):
    for _, _, target in links(text):
        if "://" in target:
            assert re.fullmatch(r"https://[\w.-]+\.[a-z]+/\S*", target), target
    for repository, path in re.findall(r"colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/main/(\w+)", text):
        assert repository == ADDRESS
        assert f"{path}.ipynb" in DOCUMENTS


def test_every_picture_has_words(text):
    for picture, words, target in links(text):
        assert not picture or len(words) > (10 if target.startswith("http") else 40), target
