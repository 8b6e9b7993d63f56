"""The HTML report: what it shows is right, it needs nothing else, and a browser renders it without complaint."""

import base64
import hashlib
import math
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

from refloss.golden.corpus import corpus
from refloss.golden.store import evaluate, expected_tensors
from refloss.testing.judging.judge import judge, question
from refloss.testing.report import charts
from refloss.testing.report import page as report_page
from refloss.testing.spacing import Elements, errors
from refloss.testing.spread import Gridding, Spreading, class_last
from refloss.testing.verdict import CaseVerdict, Judgement, TensorVerdict

HOSTILE = "<script>alert(1)</script>\"'&\x1b"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def verdict_of(case, change):
    """A case judged with its right answers after a change."""
    tensors = {name.removeprefix("expected."): value for name, value in expected_tensors(evaluate(case)).items()}
    answers = {name: np.array(value) for name, value in tensors.items() if not name.startswith("intermediate.")}
    change(answers)
    return judge(question(case), answers)


@pytest.fixture(scope="module")
def judgement():
    """Cases that pass, that fail in every way, that could not be judged, and that were not brought."""

    def negate(answers):
        answers["grad.logits"] = -answers["grad.logits"]

    def poison(answers):
        answers["grad.logits"][0, 1, :3] = np.nan

    def one_element(answers):
        answers["grad.logits"][1, 2, 3] *= np.float32(1.01)

    def lose_the_loss(answers):
        del answers["loss"]

    def change_the_loss(answers):
        answers["loss"] = answers["loss"] * 1.5

    changes = {
        "causal_lm-float32": negate,
        "causal_lm-bfloat16": poison,
        "causal_lm-vocab-size": one_element,
        "causal_lm-num-items": lose_the_loss,
        "causal_lm-float64": change_the_loss,
    }
    cases = [verdict_of(case, changes.get(case.id, lambda _: None)) for case in corpus({"mse", "causal_lm"})]
    strange = TensorVerdict(f"grad.{HOSTILE}", False, "extra", f"no {HOSTILE}", explanation=f"some {HOSTILE}")
    cases.append(CaseVerdict(f"strange {HOSTILE}", f"strange {HOSTILE}", False, (strange, strange)))
    cases.append(CaseVerdict("unusable", "mse", False, message=f"the golden case is unusable: {HOSTILE}"))
    cases.append(CaseVerdict(f"absent {HOSTILE}", "mse", None))
    return Judgement(tuple(cases))


@pytest.fixture(scope="module")
def page(judgement):
    return report_page.render(judgement, f"folder {HOSTILE}")


class Page(HTMLParser):
    """Elements by tag with their attributes, and what is within each id."""

    VOID = frozenset(("meta", "link", "br", "img", "input", "hr"))

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def named(self, tag):
        return [attributes for each, attributes in self.elements if each == tag]

    def values(self, attribute):
        return [attributes[attribute] for _, attributes in self.elements if attribute in attributes]


def article(page, anchor):
    """The part of a page about a tensor that fails."""
    return re.search(f'<article id="{re.escape(anchor)}".*?</article>', page, re.DOTALL)[0]


def test_names_cannot_become_markup(page):
    tags = Counter(tag for tag, _ in Page(page).elements)
    assert tags["script"] == 1
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "\x1b" not in page


def test_every_link_has_its_place(page):
    parsed = Page(page)
    ids = Counter(parsed.values("id"))
    assert max(ids.values()) == 1
    links = [value for value in parsed.values("href") if value.startswith("#")]
    assert len(links) > 100
    assert {link[1:] for link in links} <= set(ids)


def test_nothing_is_fetched(page):
    parsed = Page(page)
    assert not parsed.values("src")
    assert all(value.startswith(("#", "data:")) for value in parsed.values("href"))
    assert not re.search(r"https?:|//[a-z]|@import", page)
    assert all(value.startswith("(#") for value in re.findall(r"url(\(..)", page))
    policy = next(each["content"] for each in parsed.named("meta") if "http-equiv" in each)
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.split("; ")[:4] == [
        "default-src 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
    ]


def test_what_fails_comes_first_and_shows_everything(page, judgement):
    assert page.index("What is wrong") < page.index("Cases that fail") < page.index("Cases that pass")
    assert page.index("Cases that pass") < page.index("not brought</h2>")
    unfolded = [each["id"] for each in Page(page).named("details") if each.get("class") == "case" and "open" in each]
    failing = [case.id for case in judgement.judged if not case.passed and "<" not in case.id]
    assert sorted(anchor for anchor in unfolded if "strange" not in anchor) == sorted(failing)
    for name in ("causal_lm-float32", "causal_lm-bfloat16", "causal_lm-vocab-size"):
        text = article(page, f"{name}/grad.logits")
        assert text.count("<svg") == 2
        assert "the worst at [" in text
        assert article(page, f"{name}/loss").count("<svg") == 0
    assert ">missing: the candidate does not have it<" in article(page, "causal_lm-num-items/loss")
    only = article(page, "causal_lm-float64/loss")
    assert "<table" not in only
    assert "<dt>expected</dt>" in only


def test_a_tensor_that_passes_is_a_row(page):
    row = re.search(r'<tr id="causal_lm-int32-labels/grad.logits">.*?</tr>', page, re.DOTALL)[0]
    assert '<td class="number">306<' in row
    assert 'class="spark"' in row


def test_explanations_are_counted(judgement):
    wrong = TensorVerdict("grad.input", False, "too far off", "", explanation="off by a factor 2")
    cases = [CaseVerdict(f"case-{i}", "mse", False, (wrong,)) for i in range(9)]
    text = report_page.render(Judgement((*judgement.cases, *cases)))
    assert re.search(r'9 ×</span><div><span class="what explained">off by a factor 2</span>', text)
    assert "and 3 more" in text
    assert text.index("off by a factor 2") < text.index('<span class="what">missing')


def test_the_same_judgement_gives_the_same_page(page, judgement):
    assert report_page.render(judgement, f"folder {HOSTILE}") == page


def test_a_report_is_whole_or_not_there(judgement, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    report_page.write(path, judgement)
    whole = path.read_bytes()
    assert whole.decode().rstrip().endswith("</html>")

    def full(file, text, **_):
        file.write_bytes(text.encode()[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        report_page.write(path, judgement)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_a_page_without_anything_judged():
    text = report_page.render(Judgement((CaseVerdict("a", "mse", None),)))
    assert "0 of 0 cases passed, 1 not brought" in text
    assert "What is wrong" not in text


def values(shape, seed=0):
    generator = np.random.default_rng(seed)
    expected = generator.standard_normal(shape)
    ulp = np.full(shape, 2.0**-23)
    return Elements(expected.copy(), expected, 4 * ulp, ulp)


def spread(given, order=(), block=97):
    """Of elements of any shape, taken in blocks."""
    shape = given.got.shape
    spreading, gridding = Spreading(shape), Gridding(shape, order or tuple(range(len(shape))))
    for first in range(0, given.got.size, block):
        part = Elements(*(array.ravel()[first : first + block] for array in given))
        spreading.add(part, errors(part))
        gridding.add(errors(part).ratio)
    return spreading.spread(gridding.grid())


def test_errors_are_in_ulp_and_in_bounds():
    given = values((5,))
    given.got[:] += np.array([0.0, 1.0, 8.0, np.nan, np.inf]) * 2.0**-23
    found = errors(given)
    np.testing.assert_allclose(found.error, [0, 1, 8, np.inf, np.inf])
    np.testing.assert_allclose(found.ratio, [0, 0.25, 2, np.inf, np.inf])
    assert (found.bound == 4).all()
    both = Elements(*(np.array([value]) for value in (np.nan, np.nan, np.nan, 1.0)))
    assert errors(both).ratio == 0
    undefined = Elements(*(np.array([value]) for value in (1.0, np.nan, np.nan, 1.0)))
    assert errors(undefined).ratio == np.inf


def test_the_worst_elements_whatever_the_blocks():
    given = values((7, 11, 13))
    given.got[:] += np.random.default_rng(1).standard_normal(given.got.shape) * 2.0**-21
    given.got[3, 4, 5] = np.inf
    ratio = errors(given).ratio
    for block in (1, 97, 10**4):
        found = spread(given, block=block)
        assert [element.ratio for element in found.worst] == sorted(ratio.ravel())[::-1][:10]
        for element in found.worst:
            assert (element.got, element.expected) == (given.got[element.index], given.right[element.index])
            assert element.ratio == ratio[element.index]
            assert element.ulp == errors(given).error[element.index]
        assert found.worst[0].index == (3, 4, 5)
        assert found.above == np.count_nonzero(ratio > 1)


def bars(svg, kind):
    """Left edges and heights of the bars of a histogram."""
    path = re.search(f'<path class="{kind}" d="([^"]*)"', svg)[1]
    return [(float(x), 158 - float(top)) for x, top in re.findall(r"M([\d.]+) 158V([\d.]+)h", path)]


def test_a_histogram_has_a_bar_for_every_size_of_error():
    given = values((1000,))
    given.got[:900] += 2.0**-23
    given.got[900] += 1e3
    given.got[901] = np.nan
    svg = charts.histogram(spread(given))
    (exact, inside, far, infinite), above = (
        bars(svg, "within")[:1] + sorted(bars(svg, "within")[2:]) + bars(svg, "within")[1:2],
        bars(svg, "above"),
    )
    assert exact[0] < inside[0] < far[0] < infinite[0]
    assert inside[1] > exact[1] > far[1] == infinite[1] > 0
    assert sorted(above) == sorted([far, infinite])
    # Bounds are 4 ulp, between errors of 1 ulp and of 10^10.
    bound = float(re.search(r'<path class="bound" d="M([\d.]+) ', svg)[1])
    assert inside[0] < bound < far[0]
    assert "2 of them above" in svg


def pixels(svg, rows, columns):
    """Of a heat map, with the part of each colour in [0, 1]."""
    image = np.zeros((rows, columns, 4))
    cells = re.search(r'<g class="cells" transform="translate\([^)]*\) scale\(([^)]*)\)">(.*?)</g>', svg)
    frame = re.search(r'<rect class="frame" x="[^"]*" y="[^"]*" width="([^"]*)" height="([^"]*)" data-shape', svg)
    # As many cells fill the frame.
    scales, sizes = map(float, cells[1].split()), map(float, frame.groups())
    np.testing.assert_allclose([size / scale for scale, size in zip(scales, sizes, strict=True)], [columns, rows], 1e-3)
    for colour, opacity, path in re.findall(r'stroke="rgb\(([^)]*)\)" stroke-opacity="([^"]*)" d="([^"]*)"', cells[2]):
        for x, y, length in re.findall(r"M(\d+) (\d+)\.5h(\d+)", path):
            stroke = image[int(y), int(x) : int(x) + int(length)]
            assert len(stroke) == int(length)
            assert not stroke.any()
            stroke[:] = [*(float(part) / 255 for part in colour.split(",")), float(opacity)]
    return image


def test_a_heat_map_shows_where_the_errors_are():
    given = values((2, 3, 7))
    given.got[1, 0, 5] += 1.0
    given.got[0, 2, 1] = np.nan
    given.got[0, 1, 6] += 2.0**-23
    svg = charts.heat_map(spread(given), charts.labels("causal_lm", "grad.logits", (0, 1, 2)))
    image = pixels(svg, 6, 7)
    opaque = {tuple(map(int, place)) for place in np.argwhere(image[..., 3] == 1)}
    assert opaque == {(3, 5), (2, 1)}
    faint = {tuple(map(int, place)) for place in np.argwhere((image[..., 3] > 0) & (image[..., 3] < 1))}
    assert faint == {(1, 6)}
    assert image[1, 6, 2] > image[1, 6, 0]
    assert image[3, 5, 0] > image[3, 5, 2]
    assert "class (axis 2)" in svg
    assert "axes 0 × 1" in svg
    assert "not-finite" in svg


def test_classes_on_axis_1_are_columns():
    given = values((2, 5, 3, 4))
    given.got[1, 4, 2, 3] += 1.0
    order = class_last(given.got.shape, 1)
    assert order == (0, 2, 3, 1)
    svg = charts.heat_map(spread(given, order), charts.labels("cross_entropy", "grad.logits", order))
    image = pixels(svg, 24, 5)
    assert np.argwhere(image[..., 3] > 0).tolist() == [[23, 4]]
    assert "class (axis 1)" in svg


@pytest.mark.parametrize("place", [(0, 0), (999, 1499), (617, 1000)])
def test_one_wrong_element_of_many_is_seen(place):
    given = values((1000, 1500))
    given.got[place] += 1.0
    image = pixels(charts.heat_map(spread(given, block=10**5), charts.labels("mse", "grad.input", (0, 1))), 96, 160)
    ((row, column),) = np.argwhere(image[..., 3] > 0)
    assert row == place[0] * 96 // 1000
    assert column == place[1] * 160 // 1500


def test_axes_are_in_powers_of_ten():
    axis = charts.LogAxis(-2, 4, 0.0, 600.0)
    values = (0.01, 1, 10, 1e4, 1e9, math.inf, 1e-9)
    assert [axis.position(value) for value in values] == [0, 200, 300, 600, 600, 600, 0]
    assert axis.ticks() == [
        (0, "10⁻²"),
        (100, "10⁻¹"),
        (200, "1"),
        (300, "10"),
        (400, "10²"),
        (500, "10³"),
        (600, "10⁴"),
    ]
    assert list(charts._round_indices(2048, 12)) == list(range(0, 2048, 200))
    assert list(charts._round_indices(3, 12)) == [0, 1, 2]


def test_a_large_corpus_fits_a_few_megabytes():
    """As many tensors as all built-in cases have, a tenth of them wrong."""
    right, wrong = values((18, 17)), values((18, 17))
    wrong.got[:] += 2.0**-20
    good = TensorVerdict("grad.logits", True, ulp=0.0, ratio=0.0, spread=spread(right))
    bad = TensorVerdict("grad.logits", False, "too far off", "all of it", ulp=8.0, ratio=2.0, spread=spread(wrong))
    cases = [
        CaseVerdict(f"causal_lm-{i}", "causal_lm", i % 10 > 0, (bad if i % 10 == 0 else good,)) for i in range(2000)
    ]
    assert len(report_page.render(Judgement(tuple(cases))).encode()) < 4e6


def browse(path, tmp_path, *options, anchor=""):
    """The page's elements after its scripts have run, and what the browser had to say about it."""
    assert BROWSER is not None
    run = subprocess.run(
        [
            BROWSER,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--hide-scrollbars",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--virtual-time-budget=2000",
            *options,
            f"{path.as_uri()}{anchor}",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return run.stdout, [line for line in run.stderr.splitlines() if "CONSOLE" in line]


browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")


@pytest.fixture
def file(page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


@browser
def test_a_browser_has_nothing_to_complain_about(file, tmp_path):
    passing = r'<details class="function"( open="")?>(?:(?!<details).)*id="mse-sum/grad.input"'
    assert re.search(passing, file.read_text(), re.DOTALL)[1] is None
    dom, complaints = browse(file, tmp_path, "--dump-dom", anchor="#mse-sum/grad.input")
    assert complaints == []
    assert 'class="scripted"' in dom
    # Its script ran to the end: what the address points at is unfolded, and headings sort.
    assert re.search(passing, dom, re.DOTALL)[1]
    assert '<button type="button">error ÷ bound</button>' in dom


@browser
def test_a_request_would_be_noticed(file, tmp_path):
    spoilt = file.read_text().replace("<main>", '<main><img src="http://127.0.0.1:9/x.png">')
    file.write_text(spoilt)
    _, complaints = browse(file, tmp_path, "--dump-dom")
    assert any("Content Security Policy" in line for line in complaints)


@browser
@pytest.mark.parametrize(("scheme", "dark"), [(0, True), (1, False)], ids=["dark", "light"])
def test_both_colour_schemes(file, tmp_path, scheme, dark):
    picture = tmp_path / "page.png"
    options = (f"--blink-settings=preferredColorScheme={scheme}", "--window-size=900,900", f"--screenshot={picture}")
    _, complaints = browse(file, tmp_path, *options)
    assert complaints == []
    image = imread(picture)[..., :3]
    ground = image[-1, 0]
    assert (ground.max() < 0.2) == dark
    assert (ground.min() > 0.8) != dark
    # Words and charts stand out from it.
    contrast = np.abs(image - ground).max(axis=-1)
    assert (contrast > 0.5).mean() > 0.005
