"""The HTML report: what it shows is right, it needs nothing else, and a browser renders it without complaint."""

import base64
import hashlib
import html
import json
import math
import pickle
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

import refloss
from refloss.golden.corpus import corpus
from refloss.golden.store import evaluate, expected_tensors
from refloss.testing.judging.judge import judge, question
from refloss.testing.report import charts, wording
from refloss.testing.report import page as report_page
from refloss.testing.report.judgement import Judgement
from refloss.testing.spacing import Elements, errors
from refloss.testing.spread import Gridding, Spreading, class_last
from refloss.testing.verdict import CaseVerdict, Diagnosis, TensorVerdict

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
    """Cases that pass, that fail in every way, that could not be judged, and that were not answered."""

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
    facts = {"subject": f"folder {HOSTILE}", "command": f"refloss {HOSTILE}", "corpus": f"corpus {HOSTILE}"}
    return Judgement.of(cases, seconds=12.5, **facts)


@pytest.fixture(scope="module")
def page(judgement):
    return report_page.render(judgement)


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
    assert page.index("Cases that pass") < page.index("not answered</h2>")
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
    row = re.search(r'<tr id="causal_lm-int32-labels/grad.logits" .*?</tr>', page, re.DOTALL)[0]
    assert '<td class="number" data-label="elements">306<' in row
    assert 'class="spark"' in row


def failing(function, number, fault="too far off", explanation=None):
    wrong = TensorVerdict("grad.input", False, fault, "", explanation=explanation)
    return CaseVerdict(f"{function}-{number}", function, False, (wrong,))


def shown_mistakes(text):
    """Of the report's first section: how many cases each mistake explains, and the words for it."""
    section = re.search(r'<ol class="mistakes panel">(.*?)</ol>', text, re.DOTALL)[1]
    return re.findall(r'<span class="count">(\d+) ×</span><div><span class="what[^"]*">([^<]*)<', section), section


def test_a_mistake_is_one_whatever_the_function():
    cases = [failing("mse", i) for i in range(9)] + [failing("l1", i, "missing") for i in range(3)]
    cases.append(CaseVerdict("l1-unusable", "l1", False, message="the golden case is unusable"))
    mse, l1 = (tuple(case.id for case in cases if case.function == name) for name in ("mse", "l1"))
    diagnoses = (
        Diagnosis("mse", "upstream gradient ignored", mse[:8], 9, "mse-0: by 3"),
        Diagnosis("l1", "upstream gradient ignored", l1[:1], 4),
        Diagnosis("mse", "zero <everywhere>", mse[8:], 9),
        Diagnosis("l1", None, l1[1:], 4),
    )
    judgement = Judgement(tuple(cases))
    vars(judgement)["diagnoses"] = diagnoses  # as if they had been found
    text = report_page.render(judgement)
    mistakes, section = shown_mistakes(text)
    assert mistakes == [
        ("9", "upstream gradient ignored"),
        ("1", "zero &lt;everywhere&gt;"),
        ("3", "What no usual mistake explains"),
    ]
    assert 'mse: 8 of 9 failing cases <span class="quiet">(mse-0: by 3)</span>' in section
    assert "l1: 1 of 4 failing cases" in section
    assert 'l1: 3 of 4 failing cases <span class="quiet">(missing in 2, an error in 1)</span>' in section
    assert '<a href="#mse-5">mse-5</a> and 2 more' in section
    assert '<a href="#l1-unusable">l1-unusable</a>' in section


def test_a_mistake_is_one_whatever_its_numbers():
    words = "off by a constant factor of {}, upstream gradient ({}) ignored"
    cases = [failing("mse", i, explanation=words.format(f"{i}.5", i)) for i in range(5)]
    cases += [failing("mse", -i, explanation=words.format(f"-{i}e-05", -i)) for i in (6, 7)]
    (diagnosis,) = Judgement.of(cases).diagnoses
    assert (diagnosis.cases, diagnosis.failing) == (tuple(case.id for case in cases), 7)


def test_what_a_case_was_and_how_it_was_judged(page, judgement):
    for case in ("causal_lm-num-items", "causal_lm-float32"):
        given = re.search(f'<details class="case" id="{case}".*?<dl class="given">(.*?)</dl>', page, re.DOTALL)[1]
        assert "<dt>logits</dt><dd>float32 [2, 9, 17]</dd>" in given
        assert ("<dt>num_items_in_batch</dt><dd>" in given) == (case == "causal_lm-num-items")
    assert "<dt>grad_output</dt><dd>-0.625</dd>" in given
    origin = re.search(r'<dl class="origin">(.*?)</dl>', page, re.DOTALL)[1]
    for name, value in judgement.environment.items():
        assert f"<dt>{name}</dt><dd>{value}</dd>" in origin
    assert f"<dt>refloss</dt><dd>{refloss.__version__}</dd>" in origin
    assert "<dt>time</dt><dd>12.5 s</dd>" in origin
    for name in ("command", "corpus"):
        assert f"<dt>{name}</dt><dd>" in origin


@pytest.mark.parametrize(("ulp", "told"), [(900.0, False), (2e7, True)])
def test_many_ulp_that_pass_are_explained(ulp, told):
    given = values((3,))
    tensor = TensorVerdict("grad.input", True, ulp=ulp, ratio=0.5, spread=spread(given))
    wrong = TensorVerdict("loss", False, "missing", "")
    alone = report_page.render(Judgement.of([CaseVerdict("a", "mse", True, (tensor,))]))
    beside = report_page.render(Judgement.of([CaseVerdict("a", "mse", False, (tensor, wrong))]))
    for text in (alone, beside):
        assert ('href="#many-ulp"' in text) == told
        assert text.count('id="many-ulp"') == 1


def test_the_same_judgement_gives_the_same_page(page, judgement):
    assert report_page.render(judgement) == page


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
    text = report_page.render(Judgement.of((CaseVerdict("a", "mse", None),)))
    assert "0 of 0 cases passed, 1 not answered" in text
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


def overlaps(svg, width):
    """Labels of a chart that touch: their places, and their sizes at the larger of two sizes of text."""
    found = []
    for kind, x, unit, y, turn, text in re.findall(
        r'<text(?: class="(.)")? x="([-\d.]+)(%?)" y="([-\d.]+)"( transform=[^>]*)?>([^<]*)<', svg
    ):
        middle, level, long = float(x) * (width / 100 if unit else 1), float(y), 6.4 * len(text)
        start = middle - {"": long / 2, "e": long, "s": 0.0}[kind]
        box = (
            (middle - 5, middle + 5, level - long / 2, level + long / 2)
            if turn
            else (start, start + long, level - 10, level)
        )
        found.append((text, *box))
    assert len(found) > 3
    assert all(left >= 0 and right <= width and top >= -1 for _, left, right, top, _ in found), found
    return [
        (a[0], b[0])
        for i, a in enumerate(found)
        for b in found[:i]
        if min(a[2], b[2]) > max(a[1], b[1]) and min(a[4], b[4]) > max(a[3], b[3])
    ]


@pytest.mark.parametrize(
    "shape", [(1, 128256), (1, 110000), (128256, 1), (7,), (2, 3, 1), (3000, 40), (1, 1, 2, 3, 1)], ids=str
)
def test_labels_of_charts_do_not_touch(shape):
    given = values(shape)
    given.got.flat[0] += 1e30
    given.got.flat[1] = np.nan
    found, words = spread(given, block=10**5), charts.labels("mse", "grad.input", tuple(range(len(shape))))
    for svg in (charts.histogram(found), charts.heat_map(found, words)):
        assert overlaps(svg, 460) == []


@pytest.mark.parametrize("width", [320, 700])
@pytest.mark.parametrize(
    "ratios", [(0.0, 0.5), (0.0, 1e-3, 3e9), (1e20, math.inf), (0.5, 1e20, math.inf, None)], ids=str
)
def test_labels_of_the_overview_do_not_touch(width, ratios):
    dots = [charts.Dot("mse", f"a{i}", "mse", ratio, passed=ratio == 0.5) for i, ratio in enumerate(ratios)]
    svg = charts.overview(dots)
    assert overlaps(svg, width) == []
    x = {label: float(re.search(f'x="([\\d.]+)%" y="[\\d.]+">{label}<', svg)[1]) for label in ("the bound", "1")}
    assert x["the bound"] == x["1"]
    circles = [float(each) for each in re.findall(r'cx="([\d.]+)%"', svg)]
    assert len(circles) == len(ratios)
    assert all(0 <= each <= 100 for each in circles)
    # Those that fail are drawn last.
    drawn = zip(sorted(ratios, key=lambda ratio: ratio != 0.5), circles, strict=True)
    assert all((each > x["1"]) == (ratio is None or ratio > 1) for ratio, each in drawn)


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
    assert len(report_page.render(Judgement.of(cases)).encode()) < 4e6


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
    function = r'<details class="function" data-group(?:="")?'
    passing = rf'{function}( open="")?>(?:(?!{function}).)*id="mse-sum/grad.input"'
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


def driven(page, tmp_path, width, script):
    """What a script of ours finds on the page at some width: it posts one value to the frame that the page is in."""
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    (tmp_path / "driven.html").write_text(
        free.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8"
    )
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe src="driven.html" style="border:0;width:{width}px;height:800px"></iframe><p id="told"></p>'
        '<script>onmessage = (e) => { document.getElementById("told").textContent = JSON.stringify(e.data); };</script>'
    )
    dom, complaints = browse(frame, tmp_path, "--dump-dom", "--allow-file-access-from-files")
    assert complaints == []
    return json.loads(html.unescape(re.search(r'<p id="told">(.*?)</p>', dom)[1]))


FILTER = """
const form = document.getElementById("filter");
const ask = (words, name, status) => {
  form.elements.words.value = words; form.elements.function.value = name; form.elements.status.value = status;
  form.dispatchEvent(new Event("input"));
  const seen = [...document.querySelectorAll("[data-item]")].filter((each) => each.checkVisibility());
  return [seen.map((each) => each.id || each.textContent.trim()), document.getElementById("shown").textContent];
};
const fold = (what) => document.querySelector(`[data-fold=${what}]`).click();
fold("open");
const found = {
  words: ask("Transposed negated", "", "")[0], number: ask("causal_lm-float32 GRAD.logits", "", ""),
  function: ask("", "mse", "passes")[0], absent: ask("", "", "absent")[0],
};
fold("closed");
found.unfolded = ask("", "mse", "passes")[0].length;
location.hash = "#causal_lm-float32/grad.logits";
setTimeout(() => {
  found.linked = document.getElementById("causal_lm-float32/grad.logits").checkVisibility();
  found.words_left = form.elements.function.value;
  parent.postMessage(found, "*");
}, 300);
"""


@browser
def test_a_filter_shows_what_is_asked_for(page, tmp_path, judgement):
    found = driven(page, tmp_path, 900, FILTER)
    assert found["words"] == []
    assert found["number"][0] == ["causal_lm-float32"]
    assert re.fullmatch(r"1 of \d+", found["number"][1])
    passing = [case for case in judgement.cases if case.function == "mse" and case.passed]
    tensors = [f"{case.id}/{tensor.name}" for case in passing for tensor in case.tensors]
    assert sorted(found["function"]) == sorted(tensors)
    assert len(found["absent"]) == 1
    assert found["unfolded"] == len(tensors)
    assert found["linked"]
    assert found["words_left"] == ""


NARROW = """
for (const each of document.querySelectorAll("details")) each.open = true;
const within = (selector) => [...document.querySelectorAll(selector)].every((each) => {
  const box = each.getBoundingClientRect();
  return box.left >= 0 && box.right <= innerWidth && box.height > 0;
});
parent.postMessage({
  width: document.documentElement.scrollWidth,
  limit: within("svg.overview .limit"), dots: within("svg.overview circle"),
  numbers: within("td.number") && within(".worst td"), charts: within("svg.histogram") && within("svg.heat"),
}, "*");
"""


@browser
@pytest.mark.parametrize("width", [390, 800])
def test_the_bound_and_the_numbers_are_on_every_screen(page, tmp_path, width):
    found = driven(page, tmp_path, width, NARROW)
    assert found == {"width": width, "limit": True, "dots": True, "numbers": True, "charts": True}


def test_a_judgement_shows_itself(judgement, page, tmp_path):
    judgement.html(str(tmp_path / "report.html"))
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    judgement.junit(tmp_path / "report.xml")
    assert (tmp_path / "report.xml").read_text(encoding="utf-8").startswith("<?xml")
    lines = str(judgement).splitlines()
    assert lines[0] == "What is wrong"
    assert lines[-1] == wording.summary(judgement)
    assert any(line.startswith("FAIL causal_lm-float32") for line in lines)
    frame = judgement._repr_html_()
    assert html.unescape(re.search(r'srcdoc="([^"]*)"', frame)[1]) == page
    again = pickle.loads(pickle.dumps(judgement))
    assert repr(again) == repr(judgement)  # its numbers may be NaN
    assert type(again) is refloss.testing.Judgement
    assert str(again) == str(judgement)
    assert report_page.render(again) == page
