// What the widgets of a built page lack. Loaded on every page.

// Their html-manager speaks to MathJax 2 (`MathJax.Hub`); the book has MathJax 3, which would leave
// an error for every label. Deferred scripts such as MathJax have run when this event comes, and
// the widgets start after it.
document.addEventListener("DOMContentLoaded", () => {
  const mathjax = window.MathJax;
  if (!mathjax?.startup || mathjax.Hub) return;
  mathjax.Hub = {
    Queue: ([, , element]) => {
      mathjax.startup.promise = mathjax.startup.promise.then(() =>
        mathjax.typesetPromise([element]),
      );
    },
  };
});

// The theme calls the bibliography a list, but its entries are no list items.
for (const list of document.querySelectorAll(".citation-list[role=list]")) {
  list.removeAttribute("role");
}

// What scrolls needs the focus, or the keyboard cannot reach what is outside: wide tables, printed
// lines and figures, on a narrow screen.
function reachWide() {
  for (const part of document.querySelectorAll(".bd-article :is(table, .cell_output, .widget-box)")) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
  }
}
window.addEventListener("load", reachWide);
window.addEventListener("resize", reachWide);

// For screen readers: a slider's handle has neither a name nor a readable value, so it gets the text
// of its label and of its readout; and radio buttons are told to belong together.
function nameControls() {
  for (const radio of document.querySelectorAll(".mmcl-scrub .widget-radio:not([role])")) {
    radio.setAttribute("role", "radiogroup");
    radio.setAttribute("aria-label", radio.querySelector(".widget-label")?.textContent ?? "");
  }
  for (const slider of document.querySelectorAll(".mmcl-scrub .widget-slider")) {
    const handle = slider.querySelector("[role=slider]");
    const label = slider.querySelector(".widget-label")?.textContent;
    const value = slider.querySelector(".widget-readout")?.textContent;
    if (!handle) continue;
    if (label && handle.getAttribute("aria-label") !== label) {
      handle.setAttribute("aria-label", label);
    }
    if (value && handle.getAttribute("aria-valuetext") !== value) {
      handle.setAttribute("aria-valuetext", value);
    }
  }
}

document.addEventListener("DOMContentLoaded", () => {
  if (!document.querySelector("script[type='application/vnd.jupyter.widget-view+json']")) return;
  const observer = new MutationObserver(() => {
    nameControls();
    reachWide();
  });
  observer.observe(document.body, { childList: true, subtree: true, characterData: true });
});

// Paper is white.
let shown = "";
window.addEventListener("beforeprint", () => {
  shown = document.documentElement.dataset.theme;
  document.documentElement.dataset.theme = "light";
});
window.addEventListener("afterprint", () => {
  document.documentElement.dataset.theme = shown;
});
