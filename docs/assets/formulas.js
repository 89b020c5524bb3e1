// Typesets the formulas. pymdownx.arithmatex has put each of them between \( and \), or \[ and \].
for (const formula of document.querySelectorAll(".arithmatex")) {
  katex.render(formula.textContent.trim().slice(2, -2), formula, {
    displayMode: formula.tagName === "DIV",
    throwOnError: false,
  });
}
