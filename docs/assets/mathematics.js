// Renders the formulas that pymdownx.arithmatex leaves in \( \) and \[ \].
document.addEventListener("DOMContentLoaded", () =>
  document.querySelectorAll(".arithmatex").forEach((formula) => renderMathInElement(formula, {
    delimiters: [{left: "\\(", right: "\\)", display: false}, {left: "\\[", right: "\\]", display: true}],
  })));
