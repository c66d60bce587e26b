"""Live figures in a browser, from the disk and with every other host out of reach."""

import re
import statistics
from pathlib import Path

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from mmcl_book.live import circle, live
from mmcl_book.live.circle import forces
from mmcl_book.live.figure import HERE
from mmcl_book.live.packing import packed
from mmcl_core.data import ShapesCaptions
from mmcl_core.encoders import CaptionEncoder, ImageEncoder, TagEncoder
from mmcl_core.errors import MMCLError, ShapeError
from mmcl_core.methods import CLIP, FDT, GMC, LateFusion

pytestmark = pytest.mark.browser

WORDS = {
    "alt": "A scene of two objects in front of a grey background, at the beginning.",
    "moving": "Whatever is changed, the similarity is computed anew.",
}
GUESS = ("What comes next?", ("it <b>falls</b>", "it stays"), 'Press "swap the colours".')
LARGEST = 60_000  # bytes of the three scripts


def scenes(n=1, **settings) -> ShapesCaptions:
    return ShapesCaptions(n, **{"seed": 4, "size": 32, "objects": (2, 2)} | settings)


def encoders(data: ShapesCaptions) -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    return {
        "image": ImageEncoder(size=32, width=32),
        "caption": CaptionEncoder(len(data.tokenizer), width=32),
        "tags": TagEncoder(6, width=32),
    }


def clip() -> tuple[CLIP, ShapesCaptions]:
    data = scenes()
    trunks = encoders(data)
    return CLIP(trunks["image"], trunks["caption"], dim=16), data


def html_of(name: str) -> str:
    """A page with one figure, or two."""
    if name == "circle":
        angles = torch.tensor([[1.0, 1.2, 0.7], [1.4, 0.9, 1.1]])
        figures = [circle(angles, guess=GUESS, **WORDS)]
    elif name == "parts":
        data = scenes(objects=(1, 1), detail=1, tags=("colour",))
        fusion = LateFusion(encoders(data), 36, dim=16)
        gmc = GMC(encoders(data), common=16, dim=16, hidden=16)
        probe = torch.randn(36, 16), torch.zeros(36)
        models = {"fusion": fusion, "GMC": gmc}
        figures = [live(models, data, probes={"GMC": probe}, guess=GUESS, **WORDS)]
    elif name == "tokens":
        data = scenes()
        trunks = encoders(data)
        model = FDT(
            trunks["image"], trunks["caption"], codebook_size=40, dim=16, grounding_temperature=0.3
        )
        figures = [live(model, data, guess=GUESS, **WORDS)]
    else:
        figures = [live(*clip(), guess=GUESS, **WORDS) for _ in range(2)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A page</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"></head><body><main>'
        f"<h1>A page</h1>{''.join(f.html for f in figures)}</main></body></html>"
    )


ALL_ON = """document.querySelectorAll(".mmcl-on").length ===
    document.querySelectorAll(".mmcl-place").length"""
VIEWS = ["pair", "tokens", "parts", "circle"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name in VIEWS:
        (folder / f"{name}.html").write_text(html_of(name), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in VIEWS}


@pytest.fixture
def opened(browser: Browser, pages):
    """A function that opens a page and waits for its figures; no error, no other host."""
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    faults: list[str] = []

    def open_(name: str, **settings) -> Page:
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
        page.on("request", lambda r: faults.append(r.url) if r.url.startswith("http") else None)
        page.goto(pages[name].as_uri())
        page.wait_for_function(ALL_ON)
        return page

    yield open_
    context.close()
    assert not faults


def score(page: Page) -> float:
    page.wait_for_timeout(150)  # a frame, on a busy machine
    return float(page.locator(".mmcl-live").first.get_attribute("data-score"))


def quiet(page: Page) -> str:
    """The line for a screen reader, after it has come."""
    page.wait_for_timeout(900)
    return page.locator("[role=status]").first.inner_text()


@pytest.mark.parametrize("name", VIEWS)
def test_it_stands_and_is_reached_by_all(opened, name: str) -> None:
    page = opened(name)
    places = page.locator(".mmcl-place")
    assert page.locator(".mmcl-live:visible").count() == places.count()
    assert page.locator(".mmcl-still:visible").count() == 0
    for theme in ("light", "dark"):
        page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
        found = Axe().run(page).response["violations"]
        assert not found, [(v["help"], [n["html"][:150] for n in v["nodes"]]) for v in found]
    for width in (360, 768, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.emulate_media(media="print")
    assert page.locator(".mmcl-live:visible").count() == 0
    assert page.locator(".mmcl-still img:visible").count() == places.count()


@pytest.mark.parametrize("name", VIEWS)
def test_without_javascript_the_still_frame_stands(browser: Browser, pages, name: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages[name].as_uri())
    assert page.locator(".mmcl-still img:visible").count() > 0
    assert page.locator(".mmcl-still p:visible .mmcl-moving").count() > 0
    assert page.locator(".mmcl-live:visible").count() == 0
    context.close()


@pytest.mark.parametrize("name", ["pair", "tokens"])
def test_the_similarity_is_that_of_pytorch(opened, name: str) -> None:
    page = opened(name)
    still = page.locator(".mmcl-still p").first.text_content()
    assert f"similarity {score(page):.2f} " in still
    assert f"{score(page):.2f}" in page.locator(".mmcl-score").first.inner_text().replace("−", "-")


def test_the_classes_are_those_of_pytorch(opened) -> None:
    page = opened("parts")
    still = page.locator(".mmcl-still p").text_content()
    for i, name in enumerate(("fusion", "GMC")):
        told = page.locator("section").nth(i).inner_text()
        word, share = re.search(r"says: (\w+ \w+)\s+([\d.]+)", told).groups()
        assert f"{name} says {word} ({share})" in still
        assert "0°" in told


def test_selects_buttons_and_keys_change_the_picture(opened) -> None:
    page = opened("pair")
    before = score(page)
    page.get_by_label("colour").first.focus()
    page.keyboard.press("ArrowDown")
    assert score(page) != before
    changed = page.locator(".mmcl-change").first.inner_text()
    assert re.fullmatch(r"\w+ to \w+: from \S+ to \S+", changed)
    assert quiet(page).startswith("Similarity ")
    before = score(page)
    objects = page.locator(".mmcl-composer").first.locator("button[aria-pressed]")
    objects.first.focus()
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    assert score(page) != before
    assert "mmcl-live" in page.evaluate("document.activeElement.closest('.mmcl-live').className")
    page.get_by_role("button", name="add an object").first.click()
    page.get_by_role("button", name="add an object").first.click()
    assert objects.count() == 4
    assert page.get_by_role("button", name="add an object").first.is_disabled()
    page.get_by_role("button", name="remove it").first.click()
    assert objects.count() == 3
    names = page.locator("canvas[role=img]").first.get_attribute("aria-label")
    assert len(names.split(",")) == 3


def test_colours_are_swapped(opened) -> None:
    page = opened("pair")
    objects = page.locator(".mmcl-composer").first.locator("button[aria-pressed]")
    before = [text.split() for text in objects.all_inner_texts()]
    page.get_by_role("button", name="swap the colours").first.click()
    after = [text.split() for text in objects.all_inner_texts()]
    assert [c for c, _ in after] == [before[1][0], before[0][0]]
    assert [s for _, s in after] == [s for _, s in before]


def test_an_object_is_dragged(opened) -> None:
    page = opened("pair")
    canvas = page.locator("canvas[role=img]").first
    box, before = canvas.bounding_box(), score(page)
    label = canvas.get_attribute("aria-label")
    quarter = ["top left", "top right", "bottom left", "bottom right"].index(
        re.search(r"at (\w+ \w+)", label)[1]
    )
    half = box["width"] / 2
    start = box["x"] + half * (0.5 + quarter % 2), box["y"] + half * (0.5 + quarter // 2)
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(box["x"] + half * (1.5 - quarter % 2), start[1], steps=5)
    page.mouse.up()
    assert canvas.get_attribute("aria-label") != label
    assert score(page) != before
    assert page.locator(".mmcl-change").first.inner_text().startswith("moved: from ")


def test_what_is_typed_is_text(opened) -> None:
    page = opened("pair")
    before = score(page)
    page.get_by_label("your sentence").first.fill(
        'a red <img src=x onerror="document.title=1"> dinosaur and a tri'
    )
    assert score(page) != before
    assert page.title() == "A page"
    root = page.locator(".mmcl-live").first
    assert root.locator("img").count() == 0
    assert "dinosaur" in root.locator("s").all_inner_texts()
    page.get_by_role("button", name="triangle?").first.click()
    assert page.get_by_label("your sentence").first.input_value().endswith("and a triangle ")
    page.get_by_label("your sentence").first.fill("")
    assert score(page) == score(page)  # nothing written, and no error
    assert root.locator("fieldset b").count() == 0
    page.get_by_label("it <b>falls</b>").first.check()
    assert "Your guess: it <b>falls</b>." in page.locator(".mmcl-now").first.inner_text()


def test_other_pictures_are_ranked(opened) -> None:
    page = opened("pair")
    page.locator("summary").first.click()
    page.wait_for_timeout(4000)
    details = page.locator("details").first
    shares = [float(t.replace("−", "-")) for t in details.locator("figure b").all_inner_texts()]
    assert len(shares) == 6
    assert shares == sorted(shares, reverse=True)
    assert re.search(r"would be number \d+\.", details.inner_text())


def test_a_word_shows_where_it_is(opened) -> None:
    page = opened("pair")
    words = page.locator(".mmcl-words").first.locator("button")
    assert page.locator(".mmcl-veil:visible").count() == 0
    words.nth(2).click()
    assert page.locator(".mmcl-veil:visible").count() == 1
    assert words.nth(2).get_attribute("aria-pressed") == "true"
    before = page.locator(".mmcl-veil").first.evaluate("c => c.toDataURL()")
    page.get_by_label("colour").first.select_option("purple")
    page.get_by_label("shape").first.select_option("ring")
    score(page)
    assert page.locator(".mmcl-veil").first.evaluate("c => c.toDataURL()") != before
    words.nth(2).click()
    assert page.locator(".mmcl-veil:visible").count() == 0


def test_a_token_shows_where_it_is_called(opened) -> None:
    page = opened("tokens")
    assert page.locator(".mmcl-veil:visible").count() == 0
    page.locator(".mmcl-tokens button").first.click()
    assert page.locator(".mmcl-veil:visible").count() == 1
    assert page.locator(".mmcl-lit").count() > 3
    assert page.evaluate("document.activeElement.textContent").startswith("token ")
    page.keyboard.press("Enter")
    assert page.locator(".mmcl-veil:visible").count() == 0


def test_parts_are_switched_off(opened) -> None:
    page = opened("parts")
    assert page.get_by_role("button", name="add an object").count() == 0
    before = page.locator("section").all_inner_texts()
    page.get_by_label("caption", exact=True).uncheck()
    page.get_by_label("tags", exact=True).uncheck()
    page.wait_for_timeout(300)
    assert page.locator("section").all_inner_texts() != before
    assert page.get_by_label("picture", exact=True).is_disabled()
    assert quiet(page).startswith("With picture: fusion says ")
    told = page.locator("section p:nth-child(2)")
    alone = told.all_inner_texts()
    page.get_by_label("caption says").select_option("star")
    page.wait_for_timeout(300)
    assert told.all_inner_texts() == alone  # a caption that is switched off has no say


@pytest.mark.parametrize("temperature", [0.05, 0.2, 2.0])
def test_forces_on_the_circle_are_those_of_autograd(opened, temperature: float) -> None:
    page = opened("circle")
    generator = torch.Generator().manual_seed(1)
    for pairs in (2, 5, 8):
        angles = 6.3 * torch.rand(2, pairs, generator=generator, dtype=torch.float64)
        here = {
            kind: page.evaluate(
                "([a, t, kind]) => mmcl.forces(a, t, kind)", [angles.tolist(), temperature, kind]
            )
            for kind in ("pull and push", "pull alone", "push alone")
        }
        loss, gradient = forces(angles, temperature)
        both = torch.tensor(here["pull and push"]["gradient"], dtype=torch.float64)
        assert here["pull and push"]["loss"] == pytest.approx(loss, abs=1e-9)
        torch.testing.assert_close(both, gradient, atol=1e-9, rtol=0)
        turned = angles.clone().requires_grad_()
        pull = -(turned[0] - turned[1]).cos().mean() / temperature
        (pulled,) = torch.autograd.grad(pull, turned)
        assert here["pull alone"]["loss"] == pytest.approx(pull.item(), abs=1e-9)
        for kind, expected in {"pull alone": pulled, "push alone": gradient - pulled}.items():
            got = torch.tensor(here[kind]["gradient"], dtype=torch.float64)
            torch.testing.assert_close(got, expected, atol=1e-9, rtol=0)


def test_points_are_dragged_and_run(opened) -> None:
    page = opened("circle")
    root = page.locator(".mmcl-live")
    losses = [float(root.get_attribute("data-loss"))]

    def note() -> None:
        page.wait_for_timeout(200)
        losses.append(float(root.get_attribute("data-loss")))

    page.get_by_role("slider", name="image A").focus()
    page.keyboard.press("ArrowLeft")
    note()
    point = page.get_by_role("slider", name="sentence B")
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] - 60, box["y"] + 40, steps=4)
    page.mouse.up()
    note()
    page.get_by_role("button", name="step").click()
    note()
    assert len(set(losses)) == 4
    assert losses[3] < losses[2]
    page.get_by_role("button", name="run").click()
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="stop").click()
    note()
    assert losses[4] < losses[3]
    page.get_by_role("button", name="begin again").click()
    note()
    assert losses[5] == pytest.approx(losses[0])


def test_a_finger_beside_the_objects_scrolls_the_page(browser: Browser, pages) -> None:
    """A touch is kept from scrolling only where it begins on an object."""
    context = browser.new_context(viewport={"width": 360, "height": 640}, has_touch=True)
    page = context.new_page()
    page.goto(pages["pair"].as_uri())
    page.locator(".mmcl-on").first.wait_for()
    kept = page.evaluate(
        """() => {
          const canvas = document.querySelector("canvas[role=img]");
          const box = canvas.getBoundingClientRect();
          const quarters = ["top left", "top right", "bottom left", "bottom right"];
          const label = canvas.getAttribute("aria-label");
          return quarters.map((name, i) => {
            const clientX = box.left + box.width * (0.25 + 0.5 * (i % 2));
            const clientY = box.top + box.height * (0.25 + 0.5 * (i >> 1));
            const touch = new Touch({identifier: 1, target: canvas, clientX, clientY});
            const event = new TouchEvent("touchstart", {touches: [touch], cancelable: true});
            canvas.dispatchEvent(event);
            return event.defaultPrevented === label.includes(name);
          });
        }"""
    )
    assert kept == [True] * 4
    context.close()


def test_it_stands_in_a_frame_without_an_origin(browser: Browser, pages) -> None:
    """As an output of a notebook does in Colab."""
    page = browser.new_page()
    page.set_content('<iframe sandbox="allow-scripts" width="900" height="900"></iframe>')
    page.locator("iframe").evaluate(
        "(frame, text) => { frame.srcdoc = text; }", pages["pair"].read_text(encoding="utf-8")
    )
    page.frame_locator("iframe").locator(".mmcl-live:visible").first.wait_for()
    page.close()


def test_an_output_that_a_notebook_puts_in_later_stands(browser: Browser) -> None:
    """A notebook sets the HTML of an output, and then runs its scripts one by one."""
    page = browser.new_page()
    page.set_content("<main></main>")
    page.evaluate(
        """(text) => {
          const main = document.querySelector("main");
          main.innerHTML = text;
          for (const old of main.querySelectorAll("script:not([type])")) {
            const fresh = document.createElement("script");
            fresh.textContent = old.textContent;
            old.replaceWith(fresh);
          }
        }""",
        live(*clip(), **WORDS).html,
    )
    page.locator(".mmcl-live:visible").wait_for()
    page.close()


def test_an_answer_is_quick(opened) -> None:
    """What a change costs in the size of the chapters, printed: the clock fails no test."""
    page = opened("pair")
    data = ShapesCaptions(1)
    model = CLIP(ImageEncoder(), CaptionEncoder(len(data.tokenizer)))
    times = page.evaluate(
        """([spec]) => {
          const model = new mmcl.Model(spec);
          const random = mmcl.randomly(1);
          return Array.from({length: 30}, () => {
            const pixels = mmcl.render(mmcl.scene(random, 48, 1, 3), 48);
            const start = performance.now();
            model.embedOne("image", pixels);
            return performance.now() - start;
          });
        }""",
        [packed(model, data.tokenizer)],
    )
    print(f"\na picture of 48 pixels, width 128: {statistics.median(times):.0f} ms (median of 30)")


def test_the_scripts_are_small() -> None:
    names = ("model.js", "draw.js", "view.js")
    assert sum((HERE / name).stat().st_size for name in names) <= LARGEST
    text = "".join(path.read_text(encoding="utf-8") for path in HERE.glob("*.js"))
    for markup in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert markup not in text


def test_a_figure_is_html_and_words() -> None:
    figure = live(*clip(), **WORDS)
    bundle = figure._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    assert WORDS["alt"] in bundle["text/plain"] == repr(figure)
    again = live(*clip(), **WORDS)
    ids = [re.search(r'id="(mmcl-\w+)-\d+"', of.html)[1] for of in (figure, again)]
    assert ids[0] == ids[1]  # the same content; what is counted up differs


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, d: live(m, d, alt=" ", moving="x"), "alt and moving"),
        (lambda m, d: live({}, d, **WORDS), "got none"),
        (lambda m, d: live({"a": m, "b": m}, d, **WORDS), "side by side"),
        (lambda m, d: live(m, scenes(size=48), **WORDS), "scenes of 32 pixels"),
        (lambda m, d: live(m, d, probes={"b": 1}, **WORDS), "no model is named 'b'"),
        (lambda m, d: live(torch.nn.Linear(1, 1), d, **WORDS), "does not compute a Linear"),
        (
            lambda m, d: live(GMC(encoders(d)), scenes(objects=(1, 1), detail=1), **WORDS),
            "needs a probe",
        ),
        (lambda m, d: live(GMC(encoders(d)), d, **WORDS), "one object"),
    ],
)
def test_what_does_not_fit_is_said(call, message: str) -> None:
    with pytest.raises(MMCLError, match=message):
        call(*clip())


def test_angles_that_do_not_fit_are_said() -> None:
    with pytest.raises(ShapeError, match="angles"):
        circle(torch.zeros(2, 9), **WORDS)
    with pytest.raises(MMCLError, match="one of"):
        circle(torch.zeros(2, 3), temperature=0.3, **WORDS)
